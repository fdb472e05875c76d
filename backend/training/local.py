"""A fine-tuning on this worker: dataset to files, base model to disk, trainer, evaluation, artifacts."""

import asyncio
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, update

from backend.datasets import versions
from backend.datasets.versions import VersionName
from backend.jobs import queue
from backend.jobs.running import JobRun
from backend.kit.config import Settings
from backend.kit.text import storable
from backend.projects import queries as project_queries
from backend.projects.models import Project
from backend.providers.base_models import ModelLibrary
from backend.storage import Storage, StorageUnavailable
from backend.training import admission, checkpoint_store, data_files, evaluation, keeping, methods, queries, statuses
from backend.training.admission import Outlook
from backend.training.checkpoint_uploads import CheckpointUploads
from backend.training.child import OnEvent, run_trainer
from backend.training.errors import TrainerKeepsBeingKilled, TrainerKilled
from backend.training.models import FineTuning

# Where each part of a run lies on its progress bar, in percent.
_PREPARED, _TRAINED, _EVALUATED = 5.0, 85.0, 97.0
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
    """The training job. Killed in the middle, it goes on from the last whole checkpoint, on whichever worker."""
    async with run.reading() as session:
        fine_tuning = await session.get_one(FineTuning, int(run.params["fine_tuning_id"]))
        project = await project_queries.get_by_id(session, run.project_id)
    await _set(run, fine_tuning, status="preparing", started_at=func.coalesce(FineTuning.started_at, func.now()))
    folder = run_folder(bench.settings, fine_tuning)
    name = await _version(run, fine_tuning)
    await data_files.write(folder, run.reading, fine_tuning.dataset_id, name.version, fine_tuning.method)
    has_eval = (folder / data_files.EVAL).stat().st_size > 0
    if not has_eval:
        await run.emit("log", {"message": methods.nothing_held_out(fine_tuning.method)})
    base = await _base_model(run, bench, project, fine_tuning)

    await _set(run, fine_tuning, status="training")
    metrics = await keeping.bring_back(run, bench.storage, fine_tuning, folder / "out")
    if metrics is None:
        # First, so that a worker without room for the run fetches no checkpoint of it.
        room = await _settle_memory(run, bench, fine_tuning, name.version)
        with suppress(StorageUnavailable):
            await checkpoint_store.clear_lost_uploads(run, bench.storage, project, fine_tuning)
        await checkpoint_store.bring_newest(run, bench.storage, fine_tuning, folder / "out")
        config = _config(bench.settings, fine_tuning, folder, base, has_eval=has_eval)
        config["fit"] = room.cut.as_config() if room.cut is not None else {}
        metrics = await _run_training(run, bench, project, fine_tuning, folder, config)
        await _set(run, fine_tuning, memory=admission.compare(room.memory, metrics))
        _name_version(folder / "out" / keeping.CONFIG, name)
        # What the run is for comes first: nothing that goes wrong from here on can lose the adapter.
        await run.progress(_TRAINED, "Saving the adapter", force=True)
        await keeping.keep_patiently(run, bench.storage, project, fine_tuning, folder / "out", metrics)
    else:
        await run.emit("log", {"message": "The training was done already; the run goes on with its evaluation."})
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
    """Asks the base and the tuned model the same questions, with the system prompt that was trained on."""
    async with run.reading() as session:
        fine_tuning = await session.get_one(FineTuning, int(run.params["fine_tuning_id"]))
    before = [{"role": "system", "content": fine_tuning.system_prompt}] if fine_tuning.system_prompt else []
    prompts = [[*before, {"role": "user", "content": question}] for question in run.params["questions"]]
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


async def _settle_memory(run: JobRun, bench: Bench, fine_tuning: FineTuning, version: int) -> Outlook:
    """How the run is cut on this worker; told and kept. Raises DoesNotFit, WorkerTooSmall."""
    async with run.reading() as session:
        room = await admission.settle(session, bench.library, fine_tuning, version)
    await _set(run, fine_tuning, memory=room.memory)
    for sentence in room.warnings:
        await run.emit("log", {"message": sentence})
    return room


def _config(settings: Settings, fine_tuning: FineTuning, folder: Path, base: Path, *, has_eval: bool) -> dict[str, Any]:
    """What the trainer is told, see backend.trainers.config.TrainConfig."""
    return {
        "run_dir": str(folder / "out"),
        "base_model": str(base),
        "base_model_id": fine_tuning.model,
        "train_file": str(folder / "train.jsonl"),
        "eval_file": str(folder / "eval.jsonl") if has_eval else None,
        "method": fine_tuning.method,
        "hyperparams": fine_tuning.hyperparameters,
        "device": settings.training_device,
        "threads": settings.training_threads,
        "processes": settings.training_processes,
        "sharding": settings.training_sharding,
        "checkpoint_seconds": settings.checkpoint_seconds,
    }


async def _run_training(
    run: JobRun, bench: Bench, project: Project, fine_tuning: FineTuning, folder: Path, config: dict[str, Any]
) -> dict[str, Any]:
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
            if name == "checkpoint":
                await uploads.offer(int(data["step"]))
        elif name == "stage":
            await run.progress(0, _MESSAGE_OF_STAGE.get(data["name"], data["name"]), force=True)
        elif name in ("warning", "stopped"):
            await run.emit("log", {"message": data["message"]})
        elif name == "resumed":
            # What was told of later steps is of an attempt that was lost: who draws the loss drops it here.
            message = f"Resumed from step {data['step']}."
            await run.emit("log", {"message": message, "resumed_from_step": data["step"]})

    async with CheckpointUploads(
        run,
        bench.storage,
        project,
        fine_tuning,
        folder / "out",
        max_mb=bench.settings.checkpoint_upload_max_mb,
        grace_seconds=bench.settings.training_cancel_grace_seconds,
    ) as uploads:
        await _run_child(run, bench, "qlora", config, folder, on_event, out=folder / "out")
    metrics: dict[str, Any] = _read_json(folder / "out" / "metrics.json")
    # The last step's figures stay beside those of the whole run, so that the status has all its fields to the end.
    return {**seen, **metrics}


def _read_json(path: Path) -> Any:
    """A trainer's result. A model may have answered with anything, NUL characters included."""
    return storable(json.loads(path.read_text(encoding="utf-8")))


async def _run_child(
    run: JobRun,
    bench: Bench,
    module: str,
    config: dict[str, Any],
    folder: Path,
    on_event: OnEvent,
    *,
    out: Path | None = None,
) -> None:
    """`out`: where a child keeps checkpoints. Kills in a row are counted anew from each of them."""
    grace = bench.settings.training_cancel_grace_seconds
    try:
        await run_trainer(module, config, folder, on_event, grace_seconds=grace)
    except TrainerKilled as error:
        # Once may be chance. A run that the kernel kills for its memory each time must say so, not go on for ever.
        times = run.claim.attempts if out is None else await _count_kill(run, checkpoint_store.newest_step(out))
        if times >= _KILLED_ATTEMPTS:
            raise TrainerKeepsBeingKilled(error.detail) from error
        raise


async def _count_kill(run: JobRun, step: int) -> int:
    """How often the trainer was killed in a row without a checkpoint later than that of the kill before."""
    before = run.params.get("killed")
    times = before["times"] + 1 if before is not None and step <= before["step"] else 1
    async with run.writing() as session:
        await queue.note(session, run.claim, killed={"step": step, "times": times})
    return int(times)


async def _set(run: JobRun, fine_tuning: FineTuning, **values: Any) -> None:
    statement = update(FineTuning).where(FineTuning.id == fine_tuning.id)
    if "status" in values:
        statement = statement.where(FineTuning.status.in_(statuses.sources_of(values["status"])))
    async with run.writing() as session:
        await session.execute(statement.values(**values))


_SHOWN = ("train_loss", "eval_loss", "learning_rate", "epoch")
