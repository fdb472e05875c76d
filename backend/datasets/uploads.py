"""What people do with uploaded datasets: have them imported, and take them away again."""

from sqlalchemy import delete, exists, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents.models import Content
from backend.datasets import carrying
from backend.datasets.models import Dataset, Example
from backend.jobs import kinds, queue
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import JobState
from backend.kit.broker import Broker
from backend.projects import service as projects
from backend.projects.models import Project

SPLITS = ("auto", "train", "eval")

# Of the duplicates that no longer have a valid twin, the first of each.
_REVIVE = text("""
UPDATE examples SET is_valid = true, invalid_reason = NULL
WHERE id IN (
  SELECT DISTINCT ON (e.dataset_id, e.fingerprint) e.id FROM examples e
  WHERE e.dataset_id = ANY(CAST(:datasets AS bigint[])) AND e.source = 'imported' AND e.edited_at IS NULL
    AND e.invalid_reason = 'duplicate'
    AND NOT EXISTS (
      SELECT FROM examples t WHERE t.dataset_id = e.dataset_id AND t.fingerprint = e.fingerprint
        AND t.is_valid AND t.split <> 'preview')
  ORDER BY e.dataset_id, e.fingerprint, e.id)
""")
# A dataset that only held the examples of a file goes with it, unless something else names it.
_DELETE_EMPTY = text("""
DELETE FROM datasets d
WHERE d.id = ANY(CAST(:datasets AS bigint[])) AND d.status = 'ready' AND d.model IS NULL
  AND NOT EXISTS (SELECT FROM examples e WHERE e.dataset_id = d.id)
  AND NOT EXISTS (SELECT FROM dataset_versions v WHERE v.dataset_id = d.id)
  AND NOT EXISTS (SELECT FROM fine_tunings f WHERE f.dataset_id = d.id)
""")


async def start_import(session: AsyncSession, broker: Broker, project: Project, content: Content, *, split: str) -> Job:
    """Enqueues the import of one file, beside whatever else runs in the project."""
    assert content.import_report is not None, "only files whose rows were read are imported"
    job = await queue.enqueue(
        session,
        broker,
        IMPORTING,
        user_id=project.user_id,
        project_id=project.id,
        params={"content_id": content.id, "split": split},
        exclusive_key=f"import:{content.id}",
    )
    content.import_report = {**content.import_report, "job_id": str(job.public_id)}
    await session.flush()
    return job


async def withdraw(session: AsyncSession, content: Content) -> None:
    """Deletes the examples that were imported from a file, edited ones too; frozen versions keep theirs.

    Duplicates of them in other files become valid. Datasets are locked before the file, as an import does.
    """
    rows = await session.scalars(select(Dataset.id).where(Dataset.project_id == content.project_id))
    datasets = sorted(rows.all())
    await carrying.lock(session, datasets)
    await session.execute(select(Content.id).where(Content.id == content.id).with_for_update())
    imported = (Example.content_id == content.id, Example.source == "imported")
    if not await session.scalar(select(exists().where(*imported))):
        return
    await session.execute(delete(Example).where(*imported))
    await session.execute(_REVIVE, {"datasets": datasets})
    await session.execute(_DELETE_EMPTY, {"datasets": datasets})


async def _import_ended(session: AsyncSession, job: Job) -> None:
    assert job.project_id is not None
    await projects.settle_stage(session, job.project_id, failed=job.state == JobState.FAILED)


IMPORTING = kinds.register(JobKind("dataset_import", "default", ending=_import_ended))
