"""Frozen versions of a dataset: what a training names, and can read again whatever is edited afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets.errors import DatasetNotFound, NoDataset, VersionNotFound
from backend.datasets.models import Dataset, DatasetVersion
from backend.projects.models import Project

# SHA-256 over the SHA-256 of each row, in the order of ids: a digest of all texts at once would have to fit in one
# value. No text holds a NUL, so it separates the parts without doubt. An example without a rejected answer has one
# part less: versions of a time when there were none keep their digest.
_DIGEST = """
SELECT encode(sha256(coalesce(string_agg(sha256(
         convert_to(split, 'UTF8') || '\\x00'::bytea || convert_to(instruction, 'UTF8') || '\\x00'::bytea
         || convert_to(input, 'UTF8') || '\\x00'::bytea || convert_to(output, 'UTF8') || '\\x00'::bytea
         || convert_to(coalesce(history::text, ''), 'UTF8')
         || CASE WHEN rejected IS NULL THEN ''::bytea ELSE '\\x00'::bytea || convert_to(rejected, 'UTF8') END
       ), ''::bytea ORDER BY id), ''::bytea)), 'hex') AS sha256,
       count(*) FILTER (WHERE split = 'train') AS train_count,
       count(*) FILTER (WHERE split = 'eval') AS eval_count
"""
_OPEN = text(_DIGEST + "FROM examples WHERE dataset_id = :dataset_id AND is_valid AND split <> 'preview'")
_FROZEN = text(f"""
{_DIGEST} FROM (
  SELECT id, split, instruction, input, output, history, rejected FROM examples
  WHERE dataset_id = :dataset_id AND from_version <= :number AND is_valid AND split <> 'preview'
  UNION ALL
  SELECT example_id, split, instruction, input, output, history, rejected FROM retired_examples
  WHERE dataset_id = :dataset_id AND from_version <= :number AND until_version > :number AND is_valid
) AS held
""")  # noqa: S608  (constants of this file)
_PREFERENCES = text("""
SELECT split, count(*) AS pairs FROM (
  SELECT split FROM examples
  WHERE dataset_id = :dataset_id AND from_version <= :number AND is_valid AND split <> 'preview'
    AND rejected IS NOT NULL
  UNION ALL
  SELECT split FROM retired_examples
  WHERE dataset_id = :dataset_id AND from_version <= :number AND until_version > :number AND is_valid
    AND rejected IS NOT NULL
) AS held GROUP BY split
""")


@dataclass(frozen=True, slots=True)
class VersionName:
    """What says exactly which examples were used, wherever a run is described."""

    dataset_id: UUID
    version: int
    sha256: str

    def as_dict(self) -> dict[str, str | int]:
        return {"id": str(self.dataset_id), "version": self.version, "sha256": self.sha256}


async def freeze(session: AsyncSession, dataset_id: int, note: str | None = None) -> tuple[DatasetVersion, bool]:
    """The dataset's valid examples as a version, and whether it is new: nothing changed gives the last one again.

    Waits for those who are writing examples; those who come later write into the next version.
    Raises NoDataset when there is no example to train on, DatasetNotFound.
    """
    dataset = await session.scalar(
        select(Dataset).where(Dataset.id == dataset_id).with_for_update().execution_options(populate_existing=True)
    )
    if dataset is None:
        raise DatasetNotFound()
    found = (await session.execute(_OPEN, {"dataset_id": dataset_id})).one()
    if not found.train_count:
        project_id = await session.scalar(select(Project.public_id).where(Project.id == dataset.project_id))
        raise NoDataset(project_id=str(project_id))
    last = await find(session, dataset_id, dataset.version - 1)
    if last is not None and last.sha256 == found.sha256:
        return last, False
    version = DatasetVersion(
        dataset_id=dataset_id,
        number=dataset.version,
        sha256=found.sha256,
        train_count=found.train_count,
        eval_count=found.eval_count,
        note=note,
    )
    session.add(version)
    dataset.version += 1
    await session.flush()
    await session.refresh(version)
    return version, True


async def verify(session: AsyncSession, version: DatasetVersion) -> bool:
    """Whether the rows that the version holds today are those that were frozen."""
    found = (await session.execute(_FROZEN, {"dataset_id": version.dataset_id, "number": version.number})).one()
    return (found.sha256, found.train_count, found.eval_count) == (
        version.sha256,
        version.train_count,
        version.eval_count,
    )


async def count_preferences(session: AsyncSession, version: DatasetVersion) -> dict[str, int]:
    """How many of the version's examples have a rejected answer: {"train": ..., "eval": ...}."""
    rows = await session.execute(_PREFERENCES, {"dataset_id": version.dataset_id, "number": version.number})
    return {"train": 0, "eval": 0} | {row.split: int(row.pairs) for row in rows}


async def find(session: AsyncSession, dataset_id: int, number: int) -> DatasetVersion | None:
    return await session.scalar(
        select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id, DatasetVersion.number == number)
    )


async def get(session: AsyncSession, dataset_id: int, number: int) -> DatasetVersion:
    """Raises VersionNotFound."""
    found = await find(session, dataset_id, number)
    if found is None:
        raise VersionNotFound(number=number)
    return found


async def name_of(session: AsyncSession, version: DatasetVersion) -> VersionName:
    dataset = await session.get_one(Dataset, version.dataset_id)
    return VersionName(dataset.public_id, version.number, version.sha256)


async def list_versions(session: AsyncSession, project_id: int) -> Sequence[tuple[DatasetVersion, UUID]]:
    """All versions of all the project's datasets with the dataset's public id, newest first."""
    rows = await session.execute(
        select(DatasetVersion, Dataset.public_id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(Dataset.project_id == project_id)
        .order_by(DatasetVersion.id.desc())
    )
    return [(version, dataset_id) for version, dataset_id in rows]
