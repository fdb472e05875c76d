"""Where ids of the platform face die: an integer in the path becomes the caller's own object, or 404."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Path, Query, Response

from backend.api.auth import OwnerDep
from backend.api.session import SessionDep
from backend.billing import orders
from backend.billing.models import Order
from backend.contents import queries as content_queries
from backend.contents.models import Content
from backend.datasets import queries as dataset_queries
from backend.datasets.models import Dataset
from backend.kit.pagination import Window
from backend.projects import queries as project_queries
from backend.projects.models import Project
from backend.training import queries as training_queries
from backend.training.models import FineTuning

LARGEST_ID = 2**63 - 1
# An integer that no row can have is 422 before it reaches the database.
RowId = Annotated[int, Path(ge=1, le=LARGEST_ID)]
RowIdQuery = Annotated[int | None, Query(ge=1, le=LARGEST_ID)]
Row = TypeVar("Row")


async def owned_project(project_id: RowId, owner: OwnerDep, session: SessionDep) -> Project:
    return await project_queries.get_by_number(session, owner, project_id)


async def owned_content(content_id: RowId, owner: OwnerDep, session: SessionDep) -> Content:
    return await content_queries.get_by_number(session, owner, content_id)


async def owned_dataset(dataset_id: RowId, owner: OwnerDep, session: SessionDep) -> Dataset:
    return await dataset_queries.get_by_number(session, owner, dataset_id)


async def owned_fine_tuning(fine_tuning_id: RowId, owner: OwnerDep, session: SessionDep) -> FineTuning:
    return await training_queries.get_by_number(session, owner, fine_tuning_id)


async def owned_order(order_id: RowId, owner: OwnerDep, session: SessionDep) -> Order:
    return await orders.get_by_number(session, owner, order_id)


async def window(
    limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0
) -> Window:
    return Window(limit=limit, offset=offset)


OwnedProject = Annotated[Project, Depends(owned_project)]
OwnedContent = Annotated[Content, Depends(owned_content)]
OwnedDataset = Annotated[Dataset, Depends(owned_dataset)]
OwnedFineTuning = Annotated[FineTuning, Depends(owned_fine_tuning)]
OwnedOrder = Annotated[Order, Depends(owned_order)]
WindowDep = Annotated[Window, Depends(window)]


def count_all(response: Response, total: int) -> None:
    """The lists of this face are bare, so the number of rows in all travels in a header."""
    response.headers["X-Total-Count"] = str(total)


def shown(response: Response, window: Window, rows: Sequence[Row]) -> Sequence[Row]:
    """The window of a list that is short by nature, counted."""
    count_all(response, len(rows))
    return rows[window.offset : window.offset + window.limit]
