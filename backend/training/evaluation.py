"""The proof at the end of a run: base and tuned on the held-out examples, by source document, with a verdict."""

import json
import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import delete, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs.running import JobRun
from backend.kit.config import Settings
from backend.kit.text import storable
from backend.projects import service as projects
from backend.projects.models import Project
from backend.storage import BlobNotFound, Storage, file_digest
from backend.training import data_files, preference_verdicts, queries, verdicts
from backend.training.child import run_trainer
from backend.training.errors import TrainerFailed, TrainerKilled
from backend.training.methods import PREFERENCES
from backend.training.models import Artifact, FineTuning
from backend.training.verdicts import Document

log = logging.getLogger(__name__)

ROLE = "evaluation"
ANSWERS_FILE = "evaluation.json"
_FOUND_FILE = "evaluation.found.json"
SAMPLES = 6
_ANSWER_TOKENS = 128
# A killed child most likely ran out of memory: the next ones answer fewer questions at once.
_BATCHES = (8, 2, 1)
_OUT_OF_MEMORY = "OUT_OF_MEMORY"
# Answering never takes longer than the training did, or than this.
_LEAST_SECONDS = 60.0
_NOT_EVALUATED = "The run has no evaluation: only local runs that completed have one."
_MESSAGES = {
    "loading": "Loading both models",
    "baseline": "Scoring the base model on held-out examples",
    "evaluating": "Scoring the tuned model on held-out examples",
    "generating": "Both models answer held-out questions",
}
# In the order in which the examples of a frozen version are written to files.
_SOURCES = text("""
SELECT c.public_id::text AS id, c.name FROM (
  SELECT id, content_id FROM examples
  WHERE dataset_id = :dataset_id AND split = 'eval' AND is_valid AND from_version <= :version
  UNION ALL
  SELECT example_id, content_id FROM retired_examples
  WHERE dataset_id = :dataset_id AND split = 'eval' AND is_valid
    AND from_version <= :version AND until_version > :version
) AS held LEFT JOIN contents c ON c.id = held.content_id
ORDER BY held.id
""")


async def prove(
    run: JobRun,
    settings: Settings,
    storage: Storage,
    project: Project,
    fine_tuning: FineTuning,
    *,
    base: Path,
    tuned: Path,
    folder: Path,
    version: int,
    metrics: dict[str, Any],
    bar: tuple[float, float],
) -> None:
    """Evaluates what a run delivered, and stores figures, verdict and answers; a failure of it fails no run.

    `folder` is the run's own, with its data files; `bar`: from where to where on the job's progress bar, in percent.
    """
    if "evaluation" in metrics:
        # An earlier attempt proved it, and was lost before it could say so.
        return
    held_out = data_files.held_out(folder, fine_tuning.method)
    rated = folder / data_files.EVAL if fine_tuning.method == PREFERENCES else None
    if held_out.stat().st_size == 0:
        await _store(run, fine_tuning, {**metrics, "evaluation": verdicts.unproven(verdicts.NOTHING_HELD_OUT)})
        return
    async with run.reading() as session:
        documents = await _documents(session, fine_tuning.dataset_id, version)
    limit = min(settings.evaluation_max_seconds, max(_LEAST_SECONDS, float(metrics.get("train_seconds") or 0)))
    config = {
        "base_model": str(base),
        "adapter": str(tuned),
        "eval_file": str(held_out),
        "pairs_file": str(rated) if rated is not None and rated.stat().st_size else None,
        "output_file": str(folder / _FOUND_FILE),
        "questions": choose(documents, settings.evaluation_examples),
        "max_seconds": limit,
        "max_new_tokens": _ANSWER_TOKENS,
        "max_seq_length": fine_tuning.hyperparameters["max_seq_length"],
        "long_examples": fine_tuning.hyperparameters.get("long_examples", "truncate"),
        "load_in_4bit": fine_tuning.method == "qlora",
        "device": settings.training_device,
        "threads": settings.training_threads,
    }
    try:
        await _run_child(run, settings, config, folder, bar)
    except (TrainerFailed, TrainerKilled) as error:
        log.warning("a run stays without evaluation: %s", error)
        await run.emit("log", {"message": f"The run could not be evaluated: {error.detail}"})
        failed = verdicts.unproven(f"The run could not be evaluated, so nothing is proven: {error.detail}")
        await _store(run, fine_tuning, {**metrics, "samples": [], "evaluation": failed})
        return
    found = storable(json.loads((folder / _FOUND_FILE).read_text(encoding="utf-8")))
    scored = verdicts.score(found["samples"])
    preferences = None
    if fine_tuning.method == PREFERENCES:
        beta = float(fine_tuning.hyperparameters["dpo_beta"])
        preferences = preference_verdicts.summarise(found.get("preferences"), beta)
    summary = verdicts.summarise(found, scored, documents, preferences)
    samples = [{key: item[key] for key in ("messages", "expected", "base", "tuned")} for item in scored[:SAMPLES]]
    (folder / ANSWERS_FILE).write_text(json.dumps(_answers(scored, documents), ensure_ascii=False), encoding="utf-8")
    proven = {**metrics, "samples": samples, "evaluation": summary}
    await _store(
        run, fine_tuning, proven, await _put(run, storage, project, fine_tuning, folder / ANSWERS_FILE), storage
    )
    await run.emit("log", {"message": summary["sentence"]})


def choose(documents: Sequence[Document], most: int) -> list[int]:
    """Which held-out examples are asked, at most `most`: each document in turn, by a fixed chance within it."""
    by_document: dict[Document, list[int]] = defaultdict(list)
    for number, document in enumerate(documents):
        by_document[document].append(number)
    chance = random.Random(42)
    for numbers in by_document.values():
        chance.shuffle(numbers)
    chosen: list[int] = []
    waiting = list(by_document.values())
    while waiting and len(chosen) < most:
        chosen += [numbers.pop() for numbers in waiting]
        waiting = [numbers for numbers in waiting if numbers]
    return chosen[:most]


def summary_of(fine_tuning: FineTuning) -> dict[str, Any]:
    """A run's evaluation without the answers; one that says why there is none."""
    found: dict[str, Any] | None = fine_tuning.metrics.get("evaluation")
    return found if found is not None else verdicts.unproven(_NOT_EVALUATED)


async def find_answers(session: AsyncSession, fine_tuning: FineTuning) -> Artifact | None:
    """The file with the answers, for `read_answers` after the transaction."""
    artifacts = await queries.list_artifacts(session, fine_tuning.id, ROLE)
    return artifacts[0] if artifacts else None


async def read_answers(storage: Storage, artifact: Artifact | None) -> list[dict[str, Any]]:
    """Every question of a run's evaluation with both answers and their scores; none when they are gone."""
    if artifact is None:
        return []
    try:
        answers: list[dict[str, Any]] = json.loads(await storage.get_bytes(artifact.file_key))
    except BlobNotFound:
        return []
    return answers


async def _run_child(
    run: JobRun, settings: Settings, config: dict[str, Any], folder: Path, bar: tuple[float, float]
) -> None:
    start, end = bar

    async def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "stage":
            await run.progress(start, _MESSAGES.get(event["name"], event["name"]), force=True)
        elif event["event"] == "progress":
            await run.progress(start + (end - start) * event["progress_pct"] / 100, str(event["message"]))

    grace = settings.training_cancel_grace_seconds
    for number, batch_size in enumerate(_BATCHES, 1):
        try:
            await run_trainer("evaluate", {**config, "batch_size": batch_size}, folder, on_event, grace_seconds=grace)
        except (TrainerFailed, TrainerKilled) as error:
            if number == len(_BATCHES) or (isinstance(error, TrainerFailed) and error.code != _OUT_OF_MEMORY):
                raise
            log.warning("the evaluation goes on with smaller batches: %s", error)
        else:
            return


async def _documents(session: AsyncSession, dataset_id: int, version: int) -> list[Document]:
    rows = await session.execute(_SOURCES, {"dataset_id": dataset_id, "version": version})
    return [Document(row.id, row.name) for row in rows]


def _answers(scored: Sequence[dict[str, Any]], documents: Sequence[Document]) -> list[dict[str, Any]]:
    return [
        {
            "question": item["messages"][-1]["content"],
            "document": documents[item["index"]].name if item["index"] < len(documents) else None,
            **{key: item[key] for key in ("expected", "base", "tuned", "f1_base", "f1_tuned")},
            **{key: item[key] for key in ("exact_base", "exact_tuned")},
        }
        for item in scored
    ]


async def _put(run: JobRun, storage: Storage, project: Project, fine_tuning: FineTuning, path: Path) -> Artifact:
    key = f"{projects.folder_of(project)}/runs/{fine_tuning.public_id}/{run.claim.fence}/{path.name}"
    artifact = Artifact(
        fine_tuning_id=fine_tuning.id,
        role=ROLE,
        filename=path.name,
        size_bytes=path.stat().st_size,
        sha256=file_digest(path),
        file_key=key,
    )
    await storage.put_file(key, path)
    return artifact


async def _store(
    run: JobRun,
    fine_tuning: FineTuning,
    metrics: dict[str, Any],
    artifact: Artifact | None = None,
    storage: Storage | None = None,
) -> None:
    try:
        async with run.writing() as session:
            previous = [item.file_key for item in await queries.list_artifacts(session, fine_tuning.id, ROLE)]
            await session.execute(
                delete(Artifact).where(Artifact.fine_tuning_id == fine_tuning.id, Artifact.role == ROLE)
            )
            if artifact is not None:
                session.add(artifact)
            await session.execute(update(FineTuning).where(FineTuning.id == fine_tuning.id).values(metrics=metrics))
    except BaseException:
        if artifact is not None and storage is not None:
            await storage.delete([artifact.file_key])
        raise
    if storage is not None:
        await storage.delete([key for key in previous if artifact is None or key != artifact.file_key])
