"""The examples that a run trains on: frozen as they are at its start, and of a number that its base model takes."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets import versions
from backend.datasets.errors import NoDataset, UnknownDataset
from backend.datasets.models import Dataset, DatasetVersion
from backend.providers import catalogue
from backend.training.errors import DatasetNotReady, DatasetTooLarge, DatasetTooSmall


@dataclass(frozen=True, slots=True)
class Checked:
    """What a run may be: the base with its limits and warnings, the hyperparameters and the memory as they are kept."""

    base: catalogue.Trainable
    hyperparameters: dict[str, Any]
    memory: dict[str, Any] = field(default_factory=dict)


async def freeze(session: AsyncSession, dataset_id: int, checked: Checked) -> DatasetVersion:
    """The dataset as it is now. Raises UnknownDataset, DatasetNotReady, DatasetTooSmall."""
    dataset = await session.get(Dataset, dataset_id, populate_existing=True)
    if dataset is None:
        raise UnknownDataset()
    if dataset.status != "ready":
        raise DatasetNotReady(dataset_id=dataset.id, state=dataset.status)
    try:
        version, _ = await versions.freeze(session, dataset.id)
    except NoDataset as error:
        provider, least = checked.base.provider.id, checked.base.limits.min_examples
        raise DatasetTooSmall(provider=provider, least=least, examples=0) from error
    return version


def require_size(checked: Checked, version: DatasetVersion) -> None:
    """Raises DatasetTooSmall, DatasetTooLarge."""
    provider, limits = checked.base.provider.id, checked.base.limits
    if version.train_count < limits.min_examples:
        raise DatasetTooSmall(provider=provider, least=limits.min_examples, examples=version.train_count)
    if limits.max_examples is not None and version.train_count > limits.max_examples:
        raise DatasetTooLarge(provider=provider, most=limits.max_examples, examples=version.train_count)
