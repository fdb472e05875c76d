"""The export job: a run's adapter, merged model and GGUF files with card, settings, figures and report, and one zip."""

import asyncio
import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete

from backend.datasets import exporting, formats
from backend.datasets.versions import VersionName
from backend.jobs.running import JobRun
from backend.kit.config import Settings
from backend.projects import queries as project_queries
from backend.projects import service as projects
from backend.projects.models import Project
from backend.providers.base_models import ModelLibrary
from backend.storage import Storage, file_digest
from backend.training import evaluation, export_formats, queries
from backend.training.child import run_trainer
from backend.training.export_formats import FILE_OF, MERGED, Format
from backend.training.model_card import render_card
from backend.training.models import Artifact, FineTuning
from backend.training.report import render_report

ARCHIVE = "finetuneflow_export.zip"
DESCRIPTION = "export.json"
# A fixed time in the archive's entries: the same run gives the same bytes.
_ZIP_TIME = (2020, 1, 1, 0, 0, 0)
_STORED = {".safetensors", ".gguf"}
_PROMPTS = 24
_COLLECTED, _COMPUTED, _PACKED = 20.0, 80.0, 90.0
_MESSAGES = {
    "loading": "Loading the tuned model",
    "generating": "Asking the tuned model the questions that the exports must answer alike",
    "saving": "Writing the model",
    "evaluating": "Comparing the written model with the tuned one",
}


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported."""

    project: Project
    fine_tuning: FineTuning
    version: VersionName | None
    formats: list[Format]

    @property
    def license_name(self) -> str | None:
        info = self.project.model_info or {}
        return info.get("license") if info.get("model_id") == self.fine_tuning.model else None


async def export(run: JobRun, settings: Settings, storage: Storage, library: ModelLibrary) -> dict[str, Any]:
    """Makes the export of one run again from its artifacts; the files of an earlier export are replaced."""
    async with run.reading() as session:
        fine_tuning = await session.get_one(FineTuning, int(run.params["fine_tuning_id"]))
        project = await project_queries.get_by_id(session, run.project_id)
        version = await queries.version_of(session, fine_tuning)
        adapter = await queries.list_artifacts(session, fine_tuning.id, queries.ADAPTER)
        answers = await queries.list_artifacts(session, fine_tuning.id, evaluation.ROLE)
        previous = [item.file_key for item in await queries.list_artifacts(session, fine_tuning.id, queries.EXPORT)]
    source = Source(project, fine_tuning, version, export_formats.in_order(run.params.get("formats") or ["adapter"]))
    prefix = f"{projects.folder_of(project)}/exports/{fine_tuning.public_id}/{run.claim.public_id}-{run.claim.fence}"
    artifacts: list[Artifact] = []
    work = settings.data_dir / "runs" / folder_name(run.claim.public_id)
    shutil.rmtree(work, ignore_errors=True)
    folder = work / "files"
    folder.mkdir(parents=True)
    try:
        base = None
        if export_formats.needs_models(source.formats):
            await run.progress(0, "Preparing the base model", force=True)
            base = await library.ensure_weights(fine_tuning.model, _revision(source))
        size = sum(item.size_bytes for item in adapter)
        export_formats.require_space(settings, folder, source.formats, _weights_of(base), size)
        collected = [*adapter, *answers]
        for number, artifact in enumerate(collected):
            await run.progress(_COLLECTED * number / len(collected), f"Collecting {artifact.filename}")
            await storage.save_to(artifact.file_key, folder / artifact.filename)
        drift = await _compute(run, settings, source, base, work, folder) if base is not None else {}
        _describe(folder, source, drift)
        await run.progress(_COMPUTED, "Packing the archive", force=True)
        await asyncio.to_thread(pack, folder, folder / ARCHIVE)
        paths = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: _order(folder, path))
        artifacts = [await _artifact(fine_tuning, folder, path, prefix) for path in paths]
        for number, (path, artifact) in enumerate(zip(paths, artifacts, strict=True)):
            await run.progress(_PACKED + (100 - _PACKED) * number / len(paths), f"Storing {artifact.filename}")
            await storage.put_file(artifact.file_key, path)
        async with run.writing() as session:
            await session.execute(
                delete(Artifact).where(Artifact.fine_tuning_id == fine_tuning.id, Artifact.role == queries.EXPORT)
            )
            session.add_all(artifacts)
    except BaseException:
        await storage.delete([artifact.file_key for artifact in artifacts])
        raise
    finally:
        await asyncio.to_thread(shutil.rmtree, work, True)
    await storage.delete(previous)
    names = [artifact.filename for artifact in artifacts]
    return {"files": names, "archive_bytes": artifacts[-1].size_bytes, "formats": source.formats, "drift": drift}


def folder_name(job_id: object) -> str:
    """Of an export's own folder among the worker's run folders."""
    return f"export-{job_id}"


def pack(folder: Path, archive: Path) -> None:
    """Zips all files of a folder; weights are stored as they are, because they do not compress."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, path in sorted(files.items()):
            if path == archive:
                continue
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if path.suffix in _STORED else zipfile.ZIP_DEFLATED
            with path.open("rb") as source, zipped.open(entry, "w", force_zip64=True) as target:
                while part := source.read(1024 * 1024):
                    target.write(part)


async def _compute(
    run: JobRun, settings: Settings, source: Source, base: Path, work: Path, folder: Path
) -> dict[str, Any]:
    """Merged model and GGUF files, each only once it computes what was trained; returns how far each drifts."""
    computed = work / "computed"
    prompts = work / "prompts.jsonl"
    await _write_prompts(run, source, prompts)

    async def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "stage":
            await run.progress(_COLLECTED, _MESSAGES.get(event["name"], event["name"]), force=True)

    grace = settings.training_cancel_grace_seconds
    asked = [kind for kind in source.formats if kind != "adapter"]
    config = {
        "base_model": str(base),
        "adapter": str(folder),
        "output_dir": str(computed),
        "formats": asked,
        "prompts_file": str(prompts),
        "name": source.project.name,
        "license_name": source.license_name,
        "threads": settings.training_threads,
    }
    complete = await run_trainer("export", config, work, on_event, grace_seconds=grace)
    drift = {MERGED: {"runtime": "transformers", **complete["drift"]}}
    for kind in asked:
        if kind not in FILE_OF:
            continue
        await run.progress(_COLLECTED, f"Trying {FILE_OF[kind]} in llama.cpp", force=True)
        tried = {
            "gguf_file": str(computed / FILE_OF[kind]),
            "probes_file": str(computed / "probes.json"),
            "output_file": str(work / f"{kind}.json"),
            "format": kind,
            "threads": settings.training_threads,
        }
        drift[kind] = (await run_trainer("gguf_probe", tried, work, on_event, grace_seconds=grace))["drift"]
        (computed / FILE_OF[kind]).rename(folder / FILE_OF[kind])
    if MERGED in asked:
        (computed / MERGED).rename(folder / MERGED)
    return drift


async def _write_prompts(run: JobRun, source: Source, path: Path) -> None:
    """Some held-out conversations; none where nothing is held out."""
    lines: list[str] = []
    if source.version is not None:
        tuning = source.fine_tuning
        batches = exporting.rows(run.reading, tuning.dataset_id, split="eval", version=source.version.version)
        async for batch in batches:
            for row in batch[: _PROMPTS - len(lines)]:
                messages = formats.messages_of(row.instruction, row.input, row.output, row.history)
                lines.append(json.dumps({"messages": messages}))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _describe(folder: Path, source: Source, drift: dict[str, Any]) -> None:
    """Figures, report and card; the merged model, which travels alone, has card and training settings of its own."""
    tuning = source.fine_tuning
    described = {
        "base_model": tuning.model,
        "method": tuning.method,
        "formats": source.formats,
        "dataset": source.version.as_dict() if source.version else None,
        "drift": drift,
    }
    card = render_card(source.project, tuning, source.version, source.formats, source.license_name)
    texts = {
        "metrics.json": json.dumps(tuning.metrics, indent=2, ensure_ascii=False) + "\n",
        "report.md": render_report(source.project, tuning, source.version),
        "README.md": card,
        DESCRIPTION: json.dumps(described, indent=2) + "\n",
    }
    if (folder / MERGED).is_dir():
        texts[f"{MERGED}/README.md"] = card
        for name in ("training_config.json", "chat_template.jinja"):
            if (folder / name).is_file() and not (folder / MERGED / name).exists():
                shutil.copyfile(folder / name, folder / MERGED / name)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _order(folder: Path, path: Path) -> tuple[int, str]:
    """The contract's order: what matters first, the archive last."""
    first = ["adapter_model.safetensors", "adapter_config.json", "training_config.json", "metrics.json", "report.md"]
    name = path.relative_to(folder).as_posix()
    if name == ARCHIVE:
        return len(first) + 1, ""
    return (first.index(name) if name in first else len(first)), name


async def _artifact(fine_tuning: FineTuning, folder: Path, path: Path, prefix: str) -> Artifact:
    name = path.relative_to(folder).as_posix()
    return Artifact(
        fine_tuning_id=fine_tuning.id,
        role=queries.EXPORT,
        filename=name,
        size_bytes=path.stat().st_size,
        sha256=await asyncio.to_thread(file_digest, path),
        file_key=f"{prefix}/{name}",
    )


def _revision(source: Source) -> str | None:
    info = source.project.model_info or {}
    return info.get("revision") if info.get("model_id") == source.fine_tuning.model else None


def _weights_of(base: Path | None) -> int:
    return sum(path.stat().st_size for path in base.glob("*.safetensors")) if base is not None else 0
