"""Dataset versions that cannot change, what uploads and edits of examples need, and answers kept for Idempotency-Key."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_RETIRED = "dataset_id, public_id, content_id, source, split, instruction, input, output, history, is_valid, token_count, meta"

# What is written belongs to the open version. A row of a frozen version is copied aside before it changes or goes.
# KEY SHARE makes the writer and a freeze (FOR UPDATE) take turns, and writers do not wait for each other.
_KEEP_VERSIONS = f"""
CREATE FUNCTION keep_dataset_versions() RETURNS trigger AS $$
DECLARE
  open_version integer;
BEGIN
  IF TG_OP = 'INSERT' THEN
    SELECT version INTO open_version FROM datasets WHERE id = NEW.dataset_id FOR KEY SHARE;
    NEW.from_version := coalesce(open_version, 1);
    RETURN NEW;
  END IF;
  IF TG_OP = 'UPDATE' AND (NEW.split, NEW.instruction, NEW.input, NEW.output, NEW.history, NEW.is_valid)
     IS NOT DISTINCT FROM (OLD.split, OLD.instruction, OLD.input, OLD.output, OLD.history, OLD.is_valid) THEN
    RETURN NEW;
  END IF;
  SELECT version INTO open_version FROM datasets WHERE id = OLD.dataset_id FOR KEY SHARE;
  -- No row: the whole dataset is being deleted, its versions with it.
  IF open_version > OLD.from_version AND OLD.split <> 'preview' THEN
    INSERT INTO retired_examples (example_id, from_version, until_version, {_RETIRED})
    SELECT OLD.id, OLD.from_version, open_version,
           {", ".join("OLD." + name for name in _RETIRED.split(", "))};
  END IF;
  IF TG_OP = 'DELETE' THEN
    RETURN OLD;
  END IF;
  NEW.from_version := open_version;
  RETURN NEW;
END $$ LANGUAGE plpgsql
"""

# Only what the statistics count makes a new revision: a chunk that goes from under its examples does not.
_COUNT_REVISIONS = """
CREATE FUNCTION count_dataset_revisions() RETURNS trigger AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    UPDATE datasets SET revision = revision + 1 WHERE id IN (SELECT dataset_id FROM added);
  ELSIF TG_OP = 'DELETE' THEN
    UPDATE datasets SET revision = revision + 1 WHERE id IN (SELECT dataset_id FROM gone);
  ELSE
    UPDATE datasets SET revision = revision + 1 WHERE id IN (
      SELECT gone.dataset_id FROM gone JOIN added USING (id)
      WHERE (gone.split, gone.is_valid, gone.invalid_reason, gone.token_count)
            IS DISTINCT FROM (added.split, added.is_valid, added.invalid_reason, added.token_count));
  END IF;
  RETURN NULL;
END $$ LANGUAGE plpgsql
"""


def upgrade() -> None:
    op.add_column("contents", sa.Column("language", sa.String(8)))
    op.add_column("contents", sa.Column("purpose", sa.String(12), server_default="examples", nullable=False))
    op.add_column("contents", sa.Column("import_report", JSONB))

    op.add_column("datasets", sa.Column("version", sa.Integer(), server_default="1", nullable=False))
    op.add_column("datasets", sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("datasets", sa.Column("stats", JSONB))
    op.add_column("datasets", sa.Column("stats_revision", sa.BigInteger()))
    op.add_column("datasets", sa.Column("report", JSONB, server_default="{}", nullable=False))
    op.create_table(
        "dataset_versions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("public_id", sa.Uuid(), nullable=False),
        sa.Column("dataset_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("train_count", sa.Integer(), nullable=False),
        sa.Column("eval_count", sa.Integer(), nullable=False),
        sa.Column("note", sa.Text()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_dataset_versions_dataset_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_dataset_versions"),
        sa.UniqueConstraint("dataset_id", "number", name="uq_dataset_versions_dataset_id_number"),
        sa.UniqueConstraint("public_id", name="uq_dataset_versions_public_id"),
    )

    op.add_column("examples", sa.Column("content_id", sa.BigInteger()))
    op.add_column("examples", sa.Column("source", sa.String(12), server_default="generated", nullable=False))
    op.add_column("examples", sa.Column("from_version", sa.Integer(), server_default="1", nullable=False))
    op.add_column("examples", sa.Column("history", JSONB))
    op.add_column("examples", sa.Column("original", JSONB))
    op.add_column("examples", sa.Column("edited_at", sa.DateTime(timezone=True)))
    op.execute("UPDATE examples e SET content_id = k.content_id FROM chunks k WHERE k.id = e.chunk_id")
    op.create_foreign_key(
        "fk_examples_content_id", "examples", "contents", ["content_id"], ["id"], ondelete="SET NULL"
    )
    op.create_index("ix_examples_content_id", "examples", ["content_id"])
    op.create_index("ix_examples_dataset_id_id", "examples", ["dataset_id", "id"])
    op.create_table(
        "retired_examples",
        sa.Column("example_id", sa.BigInteger(), nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=False),
        sa.Column("until_version", sa.Integer(), nullable=False),
        sa.Column("dataset_id", sa.BigInteger(), nullable=False),
        sa.Column("public_id", sa.Uuid(), nullable=False),
        sa.Column("content_id", sa.BigInteger()),
        sa.Column("source", sa.String(12), nullable=False),
        sa.Column("split", sa.String(10), nullable=False),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.Column("history", JSONB),
        sa.Column("is_valid", sa.Boolean(), nullable=False),
        sa.Column("token_count", sa.Integer(), nullable=False),
        sa.Column("meta", JSONB, nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_retired_examples_dataset_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("example_id", "from_version", name="pk_retired_examples"),
    )
    op.create_index("ix_retired_examples_dataset_id_until_version", "retired_examples", ["dataset_id", "until_version"])
    op.create_index("ix_retired_examples_dataset_id_example_id", "retired_examples", ["dataset_id", "example_id"])
    op.create_index(
        "ix_examples_refused", "examples", ["dataset_id", "id"], postgresql_where=sa.text("NOT is_valid")
    )
    op.execute(_KEEP_VERSIONS)
    op.execute(
        "CREATE TRIGGER examples_keep_versions BEFORE INSERT OR UPDATE OR DELETE ON examples "
        "FOR EACH ROW EXECUTE FUNCTION keep_dataset_versions()"
    )
    op.execute(_COUNT_REVISIONS)
    for event, tables in (
        ("INSERT", "NEW TABLE AS added"),
        ("UPDATE", "OLD TABLE AS gone NEW TABLE AS added"),
        ("DELETE", "OLD TABLE AS gone"),
    ):
        op.execute(
            f"CREATE TRIGGER examples_count_revisions_{event.lower()} AFTER {event} ON examples REFERENCING {tables} "
            "FOR EACH STATEMENT EXECUTE FUNCTION count_dataset_revisions()"
        )

    op.add_column("chunk_marks", sa.Column("dataset_id", sa.BigInteger()))
    op.add_column("chunk_marks", sa.Column("round", sa.Integer(), server_default="1", nullable=False))
    op.execute(
        "UPDATE chunk_marks m SET dataset_id = d.id FROM jobs j JOIN datasets d ON d.id = (j.params->>'dataset_id')::bigint "
        "WHERE j.id = m.job_id"
    )
    op.execute("DELETE FROM chunk_marks WHERE dataset_id IS NULL")
    op.alter_column("chunk_marks", "dataset_id", nullable=False)
    op.create_foreign_key(
        "fk_chunk_marks_dataset_id", "chunk_marks", "datasets", ["dataset_id"], ["id"], ondelete="CASCADE"
    )
    op.create_index("ix_chunk_marks_dataset_id", "chunk_marks", ["dataset_id"])
    op.drop_constraint("uq_chunk_marks_job_id_chunk_id", "chunk_marks")
    op.create_unique_constraint(
        "uq_chunk_marks_job_id_chunk_id_round", "chunk_marks", ["job_id", "chunk_id", "round"]
    )

    op.add_column("fine_tunings", sa.Column("dataset_version", sa.Integer()))

    op.create_table(
        "idempotency_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("public_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_idempotency_keys_user_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_idempotency_keys"),
        sa.UniqueConstraint("public_id", name="uq_idempotency_keys_public_id"),
        sa.UniqueConstraint("user_id", "key", name="uq_idempotency_keys_user_id_key"),
    )


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    op.drop_column("fine_tunings", "dataset_version")
    op.drop_constraint("uq_chunk_marks_job_id_chunk_id_round", "chunk_marks")
    op.execute("DELETE FROM chunk_marks WHERE round > 1")
    op.create_unique_constraint("uq_chunk_marks_job_id_chunk_id", "chunk_marks", ["job_id", "chunk_id"])
    op.drop_column("chunk_marks", "round")
    op.drop_column("chunk_marks", "dataset_id")
    for event in ("insert", "update", "delete"):
        op.execute(f"DROP TRIGGER examples_count_revisions_{event} ON examples")
    op.execute("DROP FUNCTION count_dataset_revisions()")
    op.execute("DROP TRIGGER examples_keep_versions ON examples")
    op.execute("DROP FUNCTION keep_dataset_versions()")
    op.drop_table("retired_examples")
    op.drop_index("ix_examples_refused", "examples")
    op.drop_index("ix_examples_dataset_id_id", "examples")
    for name in ("edited_at", "original", "history", "from_version", "source", "content_id"):
        op.drop_column("examples", name)
    op.drop_table("dataset_versions")
    for name in ("report", "stats_revision", "stats", "revision", "version"):
        op.drop_column("datasets", name)
    for name in ("import_report", "purpose", "language"):
        op.drop_column("contents", name)
