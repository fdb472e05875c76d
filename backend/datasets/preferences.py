"""Rated answers: of two answers to one question a person says which is better, and training can learn from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents.token_counting import ApproximateTokenCounter
from backend.datasets import editing, pairs, queries
from backend.datasets.errors import DatasetFailed, PairRefused, SameAnswers, UnknownDataset
from backend.datasets.fingerprints import fingerprint, normalised
from backend.datasets.models import Dataset, Example
from backend.kit.text import storable
from backend.projects import service as projects

Message = Mapping[str, str]
_ESTIMATE = ApproximateTokenCounter()


@dataclass(frozen=True, slots=True)
class Rating:
    """Two answers to one question; `history` are the turns before it, as {role, content}, system prompt included."""

    question: str
    preferred: str
    rejected: str
    history: Sequence[Message] = field(default_factory=list)


async def rate(session: AsyncSession, dataset: Dataset, given: Rating) -> tuple[Example, bool]:
    """Keeps the rating in an example, and says whether anything is new: the same one twice is one.

    One that was rated the other way round is turned; else the dataset's own example of that question and answer gets
    the rejected answer; else there is a new one, on the side where the question is already, for training where it is
    not.
    Raises PairRefused, SameAnswers, DatasetFailed, UnknownDataset.
    """
    rating = _cleaned(given)
    locked = await queries.lock(session, dataset.id)
    if locked is None:
        raise UnknownDataset()
    if locked.status == "error":
        raise DatasetFailed()
    same = await _find(session, locked, rating, rating.preferred, rating.rejected)
    # Answers that differ in case or white space alone are the same to a fingerprint, whichever is preferred.
    if same is not None and (same.output, same.rejected) != (rating.rejected, rating.preferred):
        return same, False
    # First of all what says the contrary: left as it is, both would be learned.
    if (turned := await _find(session, locked, rating, rating.rejected, rating.preferred)) is not None:
        answers = {"output": rating.preferred, "rejected": rating.rejected}
        changed = await editing.change(session, turned, texts=answers)
    elif (unrated := await _find(session, locked, rating, rating.preferred, None)) is not None:
        changed = await editing.change(session, unrated, texts={"rejected": rating.rejected})
    else:
        changed = await _insert(session, locked, rating)
    locked.updated_at = func.clock_timestamp()
    await session.flush()
    await session.refresh(dataset)
    return changed, True


def _cleaned(given: Rating) -> Rating:
    question, preferred, rejected = (
        str(storable(text)).strip() for text in (given.question, given.preferred, given.rejected)
    )
    for name, text in (("question", question), ("preferred answer", preferred), ("rejected answer", rejected)):
        if reason := pairs.fault_of(name, text):
            raise PairRefused(reason=reason)
    if preferred == rejected:
        raise SameAnswers()
    history = [{"role": turn["role"], "content": str(storable(turn["content"]))} for turn in given.history]
    return Rating(question, preferred, rejected, history)


async def _find(
    session: AsyncSession, dataset: Dataset, rating: Rating, answer: str, rejected: str | None
) -> Example | None:
    """The dataset's valid example of the question with these answers, however its question is divided.

    Of a question without earlier turns also the one that has a system prompt alone before it: a launch puts its prompt
    before every example, after their fingerprints are made.
    """
    if rating.history:
        known = [fingerprint(rating.question, "", answer, rating.history, rejected)]
    else:
        known = list(pairs.alike(rating.question, answer, rejected))
    counted = Example.dataset_id == dataset.id, Example.is_valid, Example.split != "preview"
    first = select(Example).where(*counted).order_by(Example.id).limit(1)
    for same in (Example.fingerprint.in_(known), _reads_as(rating, answer, rejected)):
        found: Example | None = await session.scalar(first.where(same))
        if found is not None:
            return found
    return None


def _reads_as(rating: Rating, answer: str, rejected: str | None) -> ColumnElement[bool]:
    """Of an example with earlier turns: whether its texts are these."""
    texts = [(pairs.QUESTION, rating.question), (Example.output, answer)]
    if rating.history:
        turns = Example.history == [dict(turn) for turn in rating.history]
    else:
        turns = and_(func.jsonb_array_length(Example.history) == 1, Example.history[0]["role"].astext == "system")
    if rejected is not None:
        texts.append((Example.rejected, rejected))
    else:
        turns = and_(turns, Example.rejected.is_(None))
    return and_(turns, *[func.lower(column) == func.lower(text) for column, text in texts])


async def _insert(session: AsyncSession, dataset: Dataset, rating: Rating) -> Example:
    history = [dict(turn) for turn in rating.history] or None
    texts = [*(turn["content"] for turn in rating.history), rating.question, rating.preferred]
    example = Example(
        dataset_id=dataset.id,
        source="manual",
        split=await _side(session, dataset, rating.question),
        instruction=rating.question,
        output=rating.preferred,
        rejected=rating.rejected,
        history=history,
        token_count=_ESTIMATE.count_many(["\n".join(texts)])[0],
        fingerprint=fingerprint(rating.question, "", rating.preferred, history, rating.rejected),
    )
    session.add(example)
    if dataset.status == "processing" and await queries.find_making(session, dataset) is None:
        dataset.status = "ready"  # it held previews alone
    await session.flush()
    await session.refresh(example)
    await projects.settle_stage(session, dataset.project_id)
    return example


async def _side(session: AsyncSession, dataset: Dataset, question: str) -> str:
    """Trained on, unless the question is held out: an evaluation of it would tell nothing any more."""
    return (await pairs.sides_of(session, dataset.id, [question])).get(normalised(question), "train")
