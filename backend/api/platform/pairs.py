"""The pairs of a dataset: questions with answers, read and written one by one or by the thousand."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.platform.datasets import DatasetOut, dataset_fields
from backend.api.platform.deps import OwnedDataset, RowId, WindowDep, count_all
from backend.api.ratings import RatingIn
from backend.api.session import SessionDep
from backend.datasets import pairs, preferences, stats
from backend.datasets.models import Example
from backend.datasets.pairs import NewPair

router = APIRouter(prefix="/datasets/{dataset_id}/pairs", tags=["pairs"], route_class=IdempotentRoute)
rating = APIRouter(prefix="/datasets/{dataset_id}/preferences", tags=["pairs"], route_class=IdempotentRoute)

MOST_PAIRS = 10_000
# Longer ones are refused by the service, in bulk without the others.
_Metadata = Annotated[dict[str, Any] | None, Field(description="Anything that tells pairs apart, up to 8 KB")]
_Rejected = Annotated[str | None, Field(description="An answer that is worse, for training on preferences")]


class PairIn(BaseModel):
    question: str
    answer: str
    metadata: _Metadata = None
    rejected: _Rejected = None


class PairChange(BaseModel):
    """What is left out stays as it is; metadata is replaced whole, and `rejected` null takes the worse answer away."""

    question: str | None = None
    answer: str | None = None
    metadata: _Metadata = None
    rejected: _Rejected = None


class PairsIn(BaseModel):
    pairs: list[PairIn] = Field(min_length=1, max_length=MOST_PAIRS)


class PairOut(BaseModel):
    id: int
    dataset_id: int
    question: str
    answer: str
    metadata: dict[str, Any]
    # An answer that is worse than `answer`, where there is one.
    rejected: str | None
    created_at: datetime


class DatasetPairsOut(DatasetOut):
    pairs: list[PairOut]


class DuplicateOut(BaseModel):
    index: int
    duplicate_of: int


class RejectedOut(BaseModel):
    index: int
    reason: str


class BulkOut(DatasetOut):
    added: int
    duplicates: list[DuplicateOut]
    rejected: list[RejectedOut]


@router.get("", responses=error_responses(401, 404))
async def list_pairs(
    dataset: OwnedDataset, session: SessionDep, window: WindowDep, response: Response
) -> DatasetPairsOut:
    """The dataset with a window of its pairs, oldest first; how many there are in all is in X-Total-Count, too."""
    found = await stats.of(session, dataset)
    count_all(response, found.valid)
    page = await pairs.page(session, dataset, window)
    return DatasetPairsOut(**dataset_fields(dataset, found), pairs=[_pair_out(example) for example in page])


@router.post("", status_code=201, responses=error_responses(400, 401, 404, 409))
async def add_pair(body: PairIn, dataset: OwnedDataset, session: SessionDep) -> PairOut:
    """A pair that the dataset has already is 409 DUPLICATE_PAIR with the id of that one."""
    return _pair_out(await pairs.add(session, dataset, _new(body)))


@router.post("/bulk", status_code=201, responses=error_responses(400, 401, 404, 409, 413))
async def add_pairs(body: PairsIn, dataset: OwnedDataset, session: SessionDep) -> BulkOut:
    """Adds what is new and fit in one transaction, and names the pairs that are not by their index."""
    added = await pairs.add_many(session, dataset, [_new(pair) for pair in body.pairs])
    return BulkOut(
        **dataset_fields(dataset, await stats.of(session, dataset)),
        added=len(added.ids),
        duplicates=[DuplicateOut(index=index, duplicate_of=number) for index, number in added.duplicates],
        rejected=[RejectedOut(index=index, reason=reason) for index, reason in added.rejected],
    )


@router.get("/{pair_id}", responses=error_responses(401, 404))
async def get_pair(pair_id: RowId, dataset: OwnedDataset, session: SessionDep) -> PairOut:
    return _pair_out(await pairs.get(session, dataset, pair_id))


@router.put("/{pair_id}", responses=error_responses(400, 401, 404, 409))
async def change_pair(body: PairChange, pair_id: RowId, dataset: OwnedDataset, session: SessionDep) -> PairOut:
    """An edit as on the studio face: frozen versions keep the pair as it was, and it can be restored there."""
    changes = body.model_dump(exclude_none=True)
    drops = "rejected" in body.model_fields_set and body.rejected is None
    return _pair_out(await pairs.change(session, dataset, pair_id, **changes, drops_rejected=drops))


@router.delete("/{pair_id}", status_code=204, responses=error_responses(401, 404))
async def delete_pair(pair_id: RowId, dataset: OwnedDataset, session: SessionDep) -> None:
    await pairs.delete(session, dataset, pair_id)


@rating.post(
    "",
    status_code=201,
    responses={200: {"model": PairOut, "description": "It is known already."}, **error_responses(400, 401, 404, 409)},
)
async def rate_answers(body: RatingIn, dataset: OwnedDataset, session: SessionDep, response: Response) -> PairOut:
    """Of two answers to one question one is better: the pair that holds both, new or not. The last word counts."""
    example, is_new = await preferences.rate(session, dataset, body.as_rating())
    if not is_new:
        response.status_code = 200
    return _pair_out(example)


def _new(pair: PairIn) -> NewPair:
    return NewPair(pair.question, pair.answer, pair.metadata, pair.rejected)


def _pair_out(example: Example) -> PairOut:
    return PairOut(
        id=example.id,
        dataset_id=example.dataset_id,
        question=pairs.question_of(example),
        answer=example.output,
        metadata=pairs.metadata_of(example),
        rejected=example.rejected,
        created_at=example.created_at,
    )
