"""How long the examples of a dataset are, in tokens of its base model: what a memory forecast needs to know of them."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.training.forecasting import TEMPLATE_TOKENS, DataSize

_NOW = 2**31 - 1
# The rejected answer is as long in tokens as its characters say, by those of the preferred conversation.
_SIZES = text("""
SELECT max(tokens) FILTER (WHERE split = 'train') AS longest,
       avg(tokens) FILTER (WHERE split = 'train') AS mean,
       sum(answer)::float / greatest(sum(characters), 1) AS share,
       coalesce(bool_or(split = 'eval'), false) AS has_held_out
FROM (
  SELECT split, length(output) AS answer, length(instruction) + length(input) + length(output) AS characters,
         token_count * greatest(1.0, (length(instruction) + length(input) + coalesce(length(rejected), 0))::float
                                     / greatest(length(instruction) + length(input) + length(output), 1)) AS tokens
  FROM (
    SELECT split, instruction, input, output, rejected, token_count FROM examples
    WHERE dataset_id = :dataset_id AND from_version <= :number AND is_valid AND split <> 'preview'
    UNION ALL
    SELECT split, instruction, input, output, rejected, token_count FROM retired_examples
    WHERE dataset_id = :dataset_id AND from_version <= :number AND until_version > :number AND is_valid
      AND split <> 'preview'
  ) AS held
  WHERE rejected IS NOT NULL OR NOT :rated
) AS sized
""")


async def measure(
    session: AsyncSession, dataset_id: int, *, version: int | None = None, rated: bool = False
) -> DataSize | None:
    """Of a frozen version, or of the dataset as it is now; `rated`: of the examples with a rejected answer alone.

    None when there is nothing to train on.
    """
    number = _NOW if version is None else version
    row = (await session.execute(_SIZES, {"dataset_id": dataset_id, "number": number, "rated": rated})).one()
    if not row.longest:
        return None
    mean = float(row.mean)
    return DataSize(
        longest=round(row.longest) + TEMPLATE_TOKENS,
        mean=mean + TEMPLATE_TOKENS,
        scored_share=float(row.share) * mean / (mean + TEMPLATE_TOKENS),
        has_held_out=bool(row.has_held_out),
    )
