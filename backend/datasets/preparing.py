"""Before the first question: which chunks may be asked, for how many examples, and what is in the dataset already."""

from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import func, select, update

from backend.datasets import carrying, planning, queries, reading, service, sources, versions
from backend.datasets.asking import Writer
from backend.datasets.errors import NoChunks, NoDataset
from backend.datasets.models import ChunkMark, Dataset, Example
from backend.datasets.sources import Outline
from backend.jobs.running import JobRun
from backend.projects import queries as project_queries
from backend.projects.models import Project


@dataclass(slots=True)
class Work:
    """One run of the job. `chunks` are those that it may ask; `target` counts the dataset's generated examples."""

    run: JobRun
    writer: Writer
    project: Project
    dataset: Dataset
    whole: Outline
    chunks: Outline
    target: int | None
    # How often each chunk has been asked, by id; and those that gave nothing the last time.
    times: Counter[int] = field(default_factory=Counter)
    barren: set[int] = field(default_factory=set)

    @property
    def only_changed(self) -> bool:
        return bool(self.run.params.get("only_changed"))

    @property
    def most(self) -> int | None:
        """The caller's own count for each chunk: a cap where there is a target."""
        per_chunk = self.run.params["examples_per_chunk"]
        return None if per_chunk is None else int(per_chunk)


async def load(run: JobRun, writer: Writer) -> Work:
    """Raises NoChunks when the last document has gone since the job was asked for."""
    async with run.reading() as session:
        project = await project_queries.get_by_id(session, run.project_id)
        dataset = await session.get_one(Dataset, int(run.params["dataset_id"]))
    whole = await sources.outline(run)
    if not len(whole):
        raise NoChunks(project_id=str(project.public_id))
    work = Work(run, writer, project, dataset, whole, whole, run.params["target"])
    by_others = set()
    async with run.reading() as session:
        marks = await session.execute(
            select(ChunkMark.chunk_id, func.count(), func.bool_or(ChunkMark.job_id != run.claim.id))
            .where(ChunkMark.dataset_id == dataset.id)
            .group_by(ChunkMark.chunk_id)
        )
        for chunk_id, count, is_by_others in marks:
            work.times[chunk_id] = count
            if is_by_others:
                by_others.add(chunk_id)
    if work.only_changed:
        await _narrow(work, by_others)
    return work


async def prepare(work: Work) -> int:
    """Takes along what people brought; or marks what has lost its source, after a freeze of the dataset as it was.

    Returns how many examples lost theirs. A run that goes on after a cut-off changes nothing more.
    """
    run, dataset = work.run, work.dataset
    if not work.only_changed:
        if run.params.get("carry_from") is not None and not work.times:
            async with run.writing() as session:
                earlier = await session.get(Dataset, int(run.params["carry_from"]))
                if earlier is not None:
                    await carrying.carry_over(session, earlier, dataset)
        return 0
    lost = (
        Example.dataset_id == dataset.id,
        Example.source == "generated",
        Example.chunk_id.is_(None),
        Example.edited_at.is_(None),
        Example.is_valid,
        Example.split != "preview",
    )
    async with run.writing() as session:
        await queries.lock(session, dataset.id)
        found = int(await session.scalar(select(func.count()).where(*lost)) or 0)
        if (found or len(work.chunks)) and not any(work.times[chunk_id] for chunk_id in work.chunks.ids):
            with suppress(NoDataset):  # without an example to train on there is nothing to freeze
                await versions.freeze(session, dataset.id, "before the changed chunks were generated anew")
        if found:
            await session.execute(
                update(Example).where(*lost).values(is_valid=False, invalid_reason=queries.SOURCE_CHANGED)
            )
    return found


async def room(work: Work) -> Sequence[int]:
    """How many more valid examples each chunk can give, in their order."""
    async with work.run.reading() as session:
        rows = await session.execute(
            select(Example.chunk_id, func.count())
            .where(Example.dataset_id == work.dataset.id, Example.is_valid, Example.split != "preview")
            .where(Example.chunk_id.is_not(None))
            .group_by(Example.chunk_id)
        )
        given = {int(chunk_id): int(count) for chunk_id, count in rows if chunk_id is not None}
    found = array("i")
    for chunk_id, weight in zip(work.chunks.ids, work.chunks.weights, strict=True):
        is_spent = chunk_id in work.barren or (chunk_id not in given and work.times[chunk_id] > 0)
        found.append(0 if is_spent else max(0, planning.capacity(weight, work.most) - given.get(chunk_id, 0)))
    return found


async def valid_elsewhere(work: Work) -> int:
    """The dataset's generated examples that count and are of no chunk that this job may ask."""
    if not work.only_changed:
        return 0
    own = set(work.chunks.ids)
    async with work.run.reading() as session:
        rows = await session.execute(
            select(Example.chunk_id, func.count())
            .where(Example.dataset_id == work.dataset.id, Example.source == "generated", Example.is_valid)
            # Those that lost their chunk are about to lose their place.
            .where(Example.split != "preview", Example.chunk_id.is_not(None) | Example.edited_at.is_not(None))
            .group_by(Example.chunk_id)
        )
        return sum(int(count) for chunk_id, count in rows if chunk_id not in own)


async def _narrow(work: Work, by_others: set[int]) -> None:
    """Leaves only the chunks that came after the last generation; without a target they get as many as the others."""
    made = work.dataset.report.get("generation") or {}
    seen = reading.last_chunk_of(work.dataset)
    chosen = [index for index, chunk_id in enumerate(work.whole.ids) if chunk_id > seen and chunk_id not in by_others]
    work.chunks = work.whole.only(chosen)
    if work.target is None and work.most is None:
        weight = int(made.get("weight") or 0) or work.whole.weight
        density = int(made.get("target") or service.DEFAULT_TARGET) / weight
        work.target = await valid_elsewhere(work) + round(density * work.chunks.weight)
