"""A fine-tuning on this worker: dataset to files, base model to disk, trainer, evaluation, artifacts."""

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import delete, func, update

from backend.datasets import exporting, formats, versions
from backend.datasets.versions import VersionName
from backend.jobs.running import JobRun
from backend.kit.config import Settings
from backend.kit.text import storable
from backend.projects import queries as project_queries
from backend.projects import service as projects
from backend.projects.models import Project
from backend.providers.base_models import ModelLibrary
from backend.storage import Storage, file_digest
from backend.training import evaluation, queries, statuses
from backend.training.child import OnEvent, run_trainer
from backend.training.errors import TrainerKeepsBeingKilled, TrainerKilled
from backend.training.models import Artifact, FineTuning

# Where each part of a run lies on its progress bar, in percent.
_PREPARED, _TRAINED, _EVALUATED = 5.0, 85.0, 97.0
_SPLITS: tuple[Literal["eval", "train"], ...] = ("eval", "train")
_KILLED_ATTEMPTS = 3
_MESSAGE_OF_STAGE = {
    "loading": "Loading the base model",
    "baseline": "Scoring the base model on held-out examples",
    "training": "Training",
    "evaluating": "Scoring the tuned model on held-out examples",
    "saving": "Saving the adapter",
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What a gpu worker works with."""

    settings: Settings
    storage: Storage
    library: ModelLibrary


async def train(run: JobRun, bench: Bench) -> dict[str, Any]:
    """The training job. Killed in the middle, the next attempt resumes from the last whole checkpoint."""
    async with run.reading() as session:
        fine_tuning = await session.get_one(FineTuning, int(run.params["fine_tuning_id"]))
        project = await project_queries.get_by_id(session, run.project_id)
    await _set(run, fine_tuning, status="preparing", started_at=func.coalesce(FineTuning.started_at, func.now()))
    folder = run_folder(bench.settings, fine_tuning)
    name = await _version(run, fine_tuning)
    # The training set is written last: where it is, both are whole.
    if not (folder / "train.jsonl").exists():
        for split in _SPLITS:
            await write_conversations(
                folder / f"{split}.jsonl", run.reading, fine_tuning.dataset_id, split, name.version
            )
    has_eval = (folder / "eval.jsonl").stat().st_size > 0
    base = await _base_model(run, bench, project, fine_tuning)

    await _set(run, fine_tuning, status="training")
    metrics = await _run_training(run, bench, fine_tuning, folder, base, has_eval=has_eval)
    _name_version(folder / "out" / "training_config.json", name)
    # What the run is for comes first: nothing that goes wrong from here on can lose the adapter.
    await _keep(run, bench, project, fine_tuning, folder, metrics)
    await evaluation.prove(
        run,
        bench.settings,
        bench.storage,
        project,
        fine_tuning,
        base=base,
        tuned=folder / "out" / "adapter",
        folder=folder,
        version=name.version,
        metrics=metrics,
        bar=(_TRAINED, _EVALUATED),
    )
    return {
        key: metrics[key]
        for key in (
            "steps",
            "final_train_loss",
            "eval_loss_base",
            "eval_loss_tuned",
            "train_seconds",
            "train_examples",
            "eval_examples",
            "adapter_bytes",
        )
        if key in metrics
    }


async def compare(run: JobRun, bench: Bench) -> dict[str, Any]:
    """Asks the base and the tuned model the same questions."""
    prompts = [[{"role": "user", "content": question}] for question in run.params["questions"]]
    rows = await answer(run, bench, prompts, ["base", "tuned"], int(run.params["max_new_tokens"]))
    return {
        "answers": [
            {"question": row["messages"][-1]["content"], "base": row["base"], "tuned": row["tuned"]} for row in rows
        ]
    }


async def answer(
    run: JobRun, bench: Bench, prompts: list[list[dict[str, str]]], which: list[str], max_new_tokens: int
) -> list[dict[str, Any]]:
    """The answers of a finished run's models to conversations: {messages, and a text for each of `which`}."""
    async with run.reading() as session:
        fine_tuning = await session.get_one(FineTuning, int(run.params["fine_tuning_id"]))
        project = await project_queries.get_by_id(session, run.project_id)
        adapter = await queries.list_artifacts(session, fine_tuning.id, queries.ADAPTER)
    folder = bench.settings.data_dir / "runs" / f"compare-{run.claim.public_id}"
    try:
        base = await _base_model(run, bench, project, fine_tuning)
        for artifact in adapter:
            (folder / "adapter").mkdir(parents=True, exist_ok=True)
            await bench.storage.save_to(artifact.file_key, folder / "adapter" / artifact.filename)
        config = {
            "base_model": str(base),
            "adapter": str(folder / "adapter"),
            "prompts": prompts,
            "output_file": str(folder / "answers.json"),
            "which": which,
            "max_new_tokens": max_new_tokens,
            "load_in_4bit": fine_tuning.method == "qlora",
            "device": bench.settings.training_device,
            "threads": bench.settings.training_threads,
        }

        async def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "progress":
                await run.progress(float(event["progress_pct"]), str(event["message"]))

        await _run_child(run, bench, "generate", config, folder, on_event)
        answers: list[dict[str, Any]] = _read_json(folder / "answers.json")["answers"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return answers


def run_folder(settings: Settings, fine_tuning: FineTuning) -> Path:
    """The worker's own folder of one run: its data, checkpoints and logs until it is over."""
    return settings.data_dir / "runs" / str(fine_tuning.public_id)


async def write_conversations(
    path: Path, open: exporting.Open, dataset_id: int, split: Literal["train", "eval"], version: int
) -> None:
    """Writes one split of a frozen version as {"messages": [...]} lines, in the order of the examples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    batches = exporting.rows(open, dataset_id, split=split, version=version)
    with aside.open("w", encoding="utf-8") as file:
        async for batch in batches:
            for row in batch:
                messages = formats.messages_of(row.instruction, row.input, row.output, row.history)
                # In ASCII, because a text may hold characters that end a line for some readers (U+2028).
                file.write(json.dumps({"messages": messages}) + "\n")
    aside.replace(path)


async def _version(run: JobRun, fine_tuning: FineTuning) -> VersionName:
    """The version that the run trains on; one that was queued before there were versions gets its own now."""
    if fine_tuning.dataset_version is None:
        async with run.writing() as session:
            version, _ = await versions.freeze(session, fine_tuning.dataset_id)
            of_run = update(FineTuning).where(FineTuning.id == fine_tuning.id)
            await session.execute(of_run.values(dataset_version=version.number))
            return await versions.name_of(session, version)
    async with run.reading() as session:
        name = await queries.version_of(session, fine_tuning)
    assert name is not None, "it has a number"
    return name


def _name_version(path: Path, name: VersionName) -> None:
    """Adds the version to the trainer's own description of the run."""
    described = {**json.loads(path.read_text(encoding="utf-8")), "dataset": name.as_dict()}
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


async def _base_model(run: JobRun, bench: Bench, project: Project, fine_tuning: FineTuning) -> Path:
    info = project.model_info or {}
    revision = info.get("revision") if info.get("model_id") == fine_tuning.model else None
    seen = (0, 0)

    def on_progress(done: int, total: int) -> None:
        nonlocal seen
        seen = (done, total)

    await run.progress(0, "Preparing the base model", force=True)
    fetching = asyncio.ensure_future(bench.library.ensure_weights(fine_tuning.model, revision, on_progress))
    try:
        while not (await asyncio.wait({fetching}, timeout=1.0))[0]:
            done, total = seen
            if total:
                message = f"Fetching the base model, {done / 1e6:.0f} of {total / 1e6:.0f} MB"
                await run.progress(_PREPARED * done / total, message)
    finally:
        if not fetching.done():
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
    return fetching.result()


async def _run_training(
    run: JobRun, bench: Bench, fine_tuning: FineTuning, folder: Path, base: Path, *, has_eval: bool
) -> dict[str, Any]:
    config = {
        "run_dir": str(folder / "out"),
        "base_model": str(base),
        "base_model_id": fine_tuning.model,
        "train_file": str(folder / "train.jsonl"),
        "eval_file": str(folder / "eval.jsonl") if has_eval else None,
        "method": fine_tuning.method,
        "hyperparams": fine_tuning.hyperparameters,
        "device": bench.settings.training_device,
        "threads": bench.settings.training_threads,
    }
    seen: dict[str, Any] = dict(fine_tuning.metrics)

    async def on_event(event: dict[str, Any]) -> None:
        name, data = event["event"], {key: value for key, value in event.items() if key != "event"}
        if name == "progress":
            share = _PREPARED + (_TRAINED - _PREPARED) * float(data["progress_pct"]) / 100
            seen.update(step=data["step"], total_steps=data["total_steps"])
            await _set(run, fine_tuning, metrics=dict(seen), progress=share)
            await run.progress(share, str(data["message"]))
        elif name in ("log", "eval", "checkpoint"):
            seen.update({key: data[key] for key in _SHOWN if key in data})
            await run.emit(name, data)
        elif name == "stage":
            await run.progress(0, _MESSAGE_OF_STAGE.get(data["name"], data["name"]), force=True)
        elif name in ("warning", "stopped"):
            await run.emit("log", {"message": data["message"]})

    await _run_child(run, bench, "qlora", config, folder, on_event)
    metrics: dict[str, Any] = _read_json(folder / "out" / "metrics.json")
    # The last step's figures stay beside those of the whole run, so that the status has all its fields to the end.
    return {**seen, **metrics}


def _read_json(path: Path) -> Any:
    """A trainer's result. A model may have answered with anything, NUL characters included."""
    return storable(json.loads(path.read_text(encoding="utf-8")))


async def _run_child(
    run: JobRun, bench: Bench, module: str, config: dict[str, Any], folder: Path, on_event: OnEvent
) -> None:
    grace = bench.settings.training_cancel_grace_seconds
    try:
        await run_trainer(module, config, folder, on_event, grace_seconds=grace)
    except TrainerKilled as error:
        # Once may be chance. A run that the kernel kills for its memory each time must say so, not go on for ever.
        if run.claim.attempts >= _KILLED_ATTEMPTS:
            raise TrainerKeepsBeingKilled(error.detail) from error
        raise


async def _keep(
    run: JobRun, bench: Bench, project: Project, fine_tuning: FineTuning, folder: Path, metrics: dict[str, Any]
) -> None:
    """Stores the adapter's files and gives them rows; an attempt that lost its job leaves none behind."""
    await run.progress(_TRAINED, "Saving the adapter", force=True)
    files = sorted(path for path in (folder / "out" / "adapter").iterdir() if path.is_file())
    files += [folder / "out" / "training_config.json"]
    # The attempt is part of the key: a zombie that is still writing cannot touch the files of its successor.
    prefix = f"{projects.folder_of(project)}/runs/{fine_tuning.public_id}/{run.claim.fence}"
    artifacts = [
        Artifact(
            fine_tuning_id=fine_tuning.id,
            role=queries.ADAPTER,
            filename=path.name,
            size_bytes=path.stat().st_size,
            sha256=await asyncio.to_thread(file_digest, path),
            file_key=f"{prefix}/{path.name}",
        )
        for path in files
    ]
    try:
        for path, artifact in zip(files, artifacts, strict=True):
            await bench.storage.put_file(artifact.file_key, path)
        async with run.writing() as session:
            previous = [
                item.file_key for item in await queries.list_artifacts(session, fine_tuning.id, queries.ADAPTER)
            ]
            await session.execute(
                delete(Artifact).where(Artifact.fine_tuning_id == fine_tuning.id, Artifact.role == queries.ADAPTER)
            )
            session.add_all(artifacts)
            await session.execute(update(FineTuning).where(FineTuning.id == fine_tuning.id).values(metrics=metrics))
    except BaseException:
        await bench.storage.delete([artifact.file_key for artifact in artifacts])
        raise
    await bench.storage.delete(previous)


async def _set(run: JobRun, fine_tuning: FineTuning, **values: Any) -> None:
    statement = update(FineTuning).where(FineTuning.id == fine_tuning.id)
    if "status" in values:
        statement = statement.where(FineTuning.status.in_(statuses.sources_of(values["status"])))
    async with run.writing() as session:
        await session.execute(statement.values(**values))


_SHOWN = ("train_loss", "eval_loss", "learning_rate", "epoch")
