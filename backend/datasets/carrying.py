"""Takes what people brought in or corrected from one dataset of a project into another."""

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets import queries
from backend.datasets.models import Dataset

_COLUMNS = (
    "chunk_id, content_id, source, split, instruction, input, output, rejected, history, token_count, fingerprint, meta"
)
# Work of people's: imported, written by hand, or generated and then corrected.
_BROUGHT = "(e.source IN ('imported', 'manual') OR e.edited_at IS NOT NULL)"
# What the new dataset has already stays as it is, so that a second call adds nothing. A duplicate whose valid twin
# does not come along is no duplicate there.
_CARRY = text(f"""
WITH brought AS (
  SELECT e.*, e.invalid_reason = 'duplicate' AND e.edited_at IS NULL AND row_number() OVER (
           PARTITION BY e.fingerprint ORDER BY e.is_valid DESC, e.id) = 1 AS is_first
  FROM examples e
  WHERE e.dataset_id = :old AND {_BROUGHT} AND e.split <> 'preview'
)
INSERT INTO examples (public_id, dataset_id, {_COLUMNS}, is_valid, invalid_reason, original, edited_at, created_at)
SELECT gen_random_uuid(), :new, {_COLUMNS}, is_valid OR coalesce(is_first, false),
       CASE WHEN coalesce(is_first, false) THEN NULL ELSE invalid_reason END, original, edited_at, created_at
FROM brought b
WHERE NOT EXISTS (
  SELECT FROM examples n
  WHERE n.dataset_id = :new AND n.source = b.source AND n.fingerprint = b.fingerprint
    AND n.content_id IS NOT DISTINCT FROM b.content_id AND n.meta->'line' IS NOT DISTINCT FROM b.meta->'line')
ORDER BY b.id
""")  # noqa: S608  (constants of this file)


async def carry_over(session: AsyncSession, old: Dataset, new: Dataset) -> int:
    """Copies the imported, manual and edited examples of `old` into `new`; returns how many.

    It locks both rows until the end of the transaction, the older one first: what an import writes before that is
    copied, and what it writes after that goes into the current dataset. Calling it again copies only what is missing.
    """
    await lock(session, [old.id, new.id])
    result = await session.execute(_CARRY, {"old": old.id, "new": new.id})
    return int(result.rowcount)  # type: ignore[attr-defined]  # the result of an INSERT has it


async def rescue(session: AsyncSession, failed: Dataset) -> int:
    """Saves what people brought into a dataset whose generation failed; returns how many were copied.

    Call it once the dataset has the status `error`: they go into the dataset that is current then, or into a new one.
    """
    await session.flush()
    current = await queries.find_current(session, failed.project_id)
    if current is None:
        if not await _has_brought(session, failed):
            return 0
        current = Dataset(project_id=failed.project_id, name=failed.name, status="ready")
        session.add(current)
        await session.flush()
    return await carry_over(session, failed, current)


async def lock(session: AsyncSession, dataset_ids: list[int]) -> None:
    """Locks datasets for the rest of the transaction, in the order in which everyone must: by id, before examples."""
    await session.execute(
        select(Dataset.id).where(Dataset.id.in_(dataset_ids)).order_by(Dataset.id).with_for_update(key_share=True)
    )


async def _has_brought(session: AsyncSession, dataset: Dataset) -> bool:
    found = text(f"SELECT 1 FROM examples e WHERE e.dataset_id = :id AND {_BROUGHT} LIMIT 1")  # noqa: S608  (a constant)
    return (await session.execute(found, {"id": dataset.id})).first() is not None
