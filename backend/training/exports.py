"""The export job: a finished run's adapter, its settings, figures and a readable report, singly and as one zip."""

import asyncio
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from sqlalchemy import delete

from backend.datasets.versions import VersionName
from backend.jobs.running import JobRun
from backend.projects import queries as project_queries
from backend.projects import service as projects
from backend.projects.models import Project
from backend.storage import Storage, file_digest
from backend.training import queries
from backend.training.models import Artifact, FineTuning
from backend.training.report import render_report

ARCHIVE = "finetuneflow_export.zip"
# A fixed time in the archive's entries: the same run gives the same bytes.
_ZIP_TIME = (2020, 1, 1, 0, 0, 0)


async def export(run: JobRun, storage: Storage) -> dict[str, Any]:
    """Makes the export of one run again from its artifacts; the files of an earlier export are replaced."""
    async with run.reading() as session:
        fine_tuning = await session.get_one(FineTuning, int(run.params["fine_tuning_id"]))
        project = await project_queries.get_by_id(session, run.project_id)
        version = await queries.version_of(session, fine_tuning)
        adapter = await queries.list_artifacts(session, fine_tuning.id, queries.ADAPTER)
        previous = [item.file_key for item in await queries.list_artifacts(session, fine_tuning.id, queries.EXPORT)]
    prefix = f"{projects.folder_of(project)}/exports/{fine_tuning.public_id}/{run.claim.public_id}-{run.claim.fence}"
    artifacts: list[Artifact] = []
    try:
        with tempfile.TemporaryDirectory(prefix="finetuneflow-export-") as temporary:
            folder = Path(temporary)
            for number, artifact in enumerate(adapter):
                await run.progress(60 * number / len(adapter), f"Collecting {artifact.filename}")
                await storage.save_to(artifact.file_key, folder / artifact.filename)
            _describe(folder, project, fine_tuning, version)
            await run.progress(60, "Packing the archive", force=True)
            await asyncio.to_thread(pack, folder, folder / ARCHIVE)
            paths = sorted(folder.iterdir(), key=_order)
            artifacts = [await _artifact(fine_tuning, path, f"{prefix}/{path.name}") for path in paths]
            for path, artifact in zip(paths, artifacts, strict=True):
                await storage.put_file(artifact.file_key, path)
        async with run.writing() as session:
            await session.execute(
                delete(Artifact).where(Artifact.fine_tuning_id == fine_tuning.id, Artifact.role == queries.EXPORT)
            )
            session.add_all(artifacts)
    except BaseException:
        await storage.delete([artifact.file_key for artifact in artifacts])
        raise
    await storage.delete(previous)
    return {"files": [artifact.filename for artifact in artifacts], "archive_bytes": artifacts[-1].size_bytes}


def pack(folder: Path, archive: Path) -> None:
    """Zips all files of a folder; weights are stored as they are, because they do not compress."""
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in sorted(item for item in folder.iterdir() if item != archive):
            entry = zipfile.ZipInfo(path.name, _ZIP_TIME)
            entry.external_attr = 0o644 << 16
            weights = path.suffix == ".safetensors"
            entry.compress_type = zipfile.ZIP_STORED if weights else zipfile.ZIP_DEFLATED
            with path.open("rb") as source, zipped.open(entry, "w", force_zip64=True) as target:
                while part := source.read(1024 * 1024):
                    target.write(part)


def _describe(folder: Path, project: Project, fine_tuning: FineTuning, version: VersionName | None) -> None:
    metrics = fine_tuning.metrics
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(render_report(project, fine_tuning, version), encoding="utf-8")


def _order(path: Path) -> tuple[int, str]:
    """The contract's order: what matters first, the archive last."""
    first = ["adapter_model.safetensors", "adapter_config.json", "training_config.json", "metrics.json", "report.md"]
    if path.name == ARCHIVE:
        return len(first) + 1, ""
    return (first.index(path.name) if path.name in first else len(first)), path.name


async def _artifact(fine_tuning: FineTuning, path: Path, key: str) -> Artifact:
    return Artifact(
        fine_tuning_id=fine_tuning.id,
        role=queries.EXPORT,
        filename=path.name,
        size_bytes=path.stat().st_size,
        sha256=await asyncio.to_thread(file_digest, path),
        file_key=key,
    )
