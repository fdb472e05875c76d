"""What a run was forecast to need and needed, and the answers that a user likes less than an example's own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _keep_versions(held: str, retired: str) -> str:
    """The trigger of 0002. A row of a frozen version is copied aside before one of its `held` columns changes.

    `retired` are the columns that are copied.
    """
    columns = held.split(", ")
    new, old = (", ".join(f"{row}.{name}" for name in columns) for row in ("NEW", "OLD"))
    return f"""
CREATE OR REPLACE FUNCTION keep_dataset_versions() RETURNS trigger AS $$
DECLARE
  open_version integer;
BEGIN
  IF TG_OP = 'INSERT' THEN
    SELECT version INTO open_version FROM datasets WHERE id = NEW.dataset_id FOR KEY SHARE;
    NEW.from_version := coalesce(open_version, 1);
    RETURN NEW;
  END IF;
  IF TG_OP = 'UPDATE' AND ({new}) IS NOT DISTINCT FROM ({old}) THEN
    RETURN NEW;
  END IF;
  SELECT version INTO open_version FROM datasets WHERE id = OLD.dataset_id FOR KEY SHARE;
  -- No row: the whole dataset is being deleted, its versions with it.
  IF open_version > OLD.from_version AND OLD.split <> 'preview' THEN
    INSERT INTO retired_examples (example_id, from_version, until_version, {retired})
    SELECT OLD.id, OLD.from_version, open_version, {", ".join("OLD." + name for name in retired.split(", "))};
  END IF;
  IF TG_OP = 'DELETE' THEN
    RETURN OLD;
  END IF;
  NEW.from_version := open_version;
  RETURN NEW;
END $$ LANGUAGE plpgsql
"""


def _count_revisions(counted: str) -> str:
    """The other trigger of 0002: a change of one of the `counted` columns makes a new revision."""
    columns = counted.split(", ")
    gone, added = (", ".join(f"{row}.{name}" for name in columns) for row in ("gone", "added"))
    return f"""
CREATE OR REPLACE FUNCTION count_dataset_revisions() RETURNS trigger AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    UPDATE datasets SET revision = revision + 1 WHERE id IN (SELECT dataset_id FROM added);
  ELSIF TG_OP = 'DELETE' THEN
    UPDATE datasets SET revision = revision + 1 WHERE id IN (SELECT dataset_id FROM gone);
  ELSE
    UPDATE datasets SET revision = revision + 1 WHERE id IN (
      SELECT gone.dataset_id FROM gone JOIN added USING (id)
      WHERE ({gone}) IS DISTINCT FROM ({added}));
  END IF;
  RETURN NULL;
END $$ LANGUAGE plpgsql
"""


_HELD = "split, instruction, input, output, history, is_valid"
_RETIRED = (
    "dataset_id, public_id, content_id, source, split, instruction, input, output, history, is_valid, token_count, meta"
)
_COUNTED = "split, is_valid, invalid_reason, token_count"


def upgrade() -> None:
    memory = sa.Column(
        "memory", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
    )
    op.add_column("fine_tunings", memory)
    op.add_column("fine_tunings", sa.Column("error_code", sa.String(length=60), nullable=True))
    error_context = postgresql.JSONB(astext_type=sa.Text())
    op.add_column("fine_tunings", sa.Column("error_context", error_context, nullable=True))
    op.add_column("fine_tunings", sa.Column("system_prompt", sa.Text(), nullable=True))
    op.execute(
        "UPDATE fine_tunings SET error_code = jobs.error_code, error_context = jobs.error_context FROM jobs "
        "WHERE jobs.id = fine_tunings.job_id AND jobs.error_message = fine_tunings.error_message"
    )
    op.add_column("examples", sa.Column("rejected", sa.Text(), nullable=True))
    op.add_column("retired_examples", sa.Column("rejected", sa.Text(), nullable=True))
    op.execute(_keep_versions(f"{_HELD}, rejected", f"{_RETIRED}, rejected"))
    op.execute(_count_revisions(f"{_COUNTED}, rejected"))


def downgrade() -> None:
    op.execute(_count_revisions(_COUNTED))
    op.execute(_keep_versions(_HELD, _RETIRED))
    op.drop_column("retired_examples", "rejected")
    op.drop_column("examples", "rejected")
    for name in ("system_prompt", "error_context", "error_code", "memory"):
        op.drop_column("fine_tunings", name)
