"""The push job: one format of a run's export goes to the HuggingFace Hub, with its owner's own token."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs import kinds, queue
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.kit.broker import Broker
from backend.kit.config import Settings
from backend.kit.crypto import Sealer
from backend.projects.models import Project
from backend.providers import hub_publishing
from backend.storage import Storage
from backend.training import queries
from backend.training.errors import ExportNotFound
from backend.training.export_formats import FILE_OF, MERGED
from backend.training.exports import ARCHIVE, folder_name
from backend.training.models import Artifact, FineTuning
from backend.users import provider_keys

PUSHING = kinds.register(JobKind("hub_push", "default", max_attempts=3))
KEY_PROVIDER = "huggingface"
What = Literal["adapter", "merged", "gguf"]
_WITNESS: dict[What, str] = {
    "adapter": "training_config.json",
    "merged": f"{MERGED}/config.json",
    "gguf": "model-*.gguf",
}


async def start(
    session: AsyncSession,
    broker: Broker,
    project: Project,
    fine_tuning: FineTuning,
    *,
    repo_id: str,
    private: bool,
    what: What,
) -> Job:
    """Enqueues the push of files that are exported already. Raises NoProviderKey, ExportNotFound, JobAlreadyRunning."""
    await provider_keys.require(session, project.user_id, KEY_PROVIDER)
    choose(await queries.list_artifacts(session, fine_tuning.id, queries.EXPORT), what)
    return await queue.enqueue(
        session,
        broker,
        PUSHING,
        user_id=project.user_id,
        project_id=project.id,
        params={"fine_tuning_id": fine_tuning.id, "repo_id": repo_id, "private": private, "what": what},
        exclusive_key=f"push:{project.id}",
    )


async def push(run: JobRun, settings: Settings, storage: Storage) -> dict[str, Any]:
    """The job. The token is opened here and handed to the child alone. Raises HubRefusesPush, HubOutOfReach."""
    params = run.params
    async with run.reading() as session:
        artifacts = await queries.list_artifacts(session, int(params["fine_tuning_id"]), queries.EXPORT)
        token = await provider_keys.reveal(session, Sealer(settings.sealing_keys), run.claim.user_id, KEY_PROVIDER)
    chosen = choose(artifacts, params["what"])
    work = settings.data_dir / "runs" / folder_name(run.claim.public_id)
    folder = work / "files"
    try:
        for number, (name, artifact) in enumerate(chosen.items()):
            await run.progress(50 * number / len(chosen), f"Collecting {name}")
            path = folder / Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            await storage.save_to(artifact.file_key, path)

        async def on_start() -> None:
            await run.progress(50, f"Uploading {len(chosen)} files to {params['repo_id']}", force=True)

        url = await hub_publishing.publish(
            settings.hf_endpoint, token, params["repo_id"], folder, private=params["private"], on_start=on_start
        )
    finally:
        await asyncio.to_thread(shutil.rmtree, work, True)
    return {"url": url, "files": list(chosen)}


def choose(artifacts: Sequence[Artifact], what: What) -> dict[str, Artifact]:
    """The files of one format, by their names in the repository. Raises ExportNotFound when they are not exported."""
    chosen: dict[str, Artifact] = {}
    for artifact in artifacts:
        path = PurePosixPath(artifact.filename)
        is_gguf = artifact.filename in FILE_OF.values()
        if what == "merged" and path.parts[0] == MERGED:
            chosen["/".join(path.parts[1:])] = artifact
            continue
        with_gguf = what == "gguf" and (is_gguf or artifact.filename in ("README.md", "training_config.json"))
        with_adapter = what == "adapter" and len(path.parts) == 1 and not is_gguf and artifact.filename != ARCHIVE
        if with_gguf or with_adapter:
            chosen[artifact.filename] = artifact
    found = any(name in FILE_OF.values() for name in chosen) if what == "gguf" else bool(chosen)
    if not found:
        raise ExportNotFound(_WITNESS[what])
    return chosen
