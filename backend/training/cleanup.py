"""What killed processes leave behind: run folders on a worker's disk, and stored files that no row names."""

import asyncio
import logging
import shutil
from datetime import UTC, datetime, timedelta

from backend.contents import queries as content_queries
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.storage import Storage
from backend.training import queries

log = logging.getLogger(__name__)

# Files are stored before their rows are committed: what is younger may still get one.
GRACE = timedelta(hours=1)


async def clear_run_folders(db: Database, settings: Settings) -> int:
    """Deletes this worker's folders of runs and comparisons that are over; returns how many."""
    folders = [path for path in (settings.data_dir / "runs").glob("*") if path.is_dir()]
    if not folders:
        return 0
    async with db.transaction() as session:
        live = await queries.live_folder_names(session)
    ended = [path for path in folders if path.name not in live]
    for path in ended:
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
    return len(ended)


async def delete_orphaned_files(db: Database, storage: Storage, *, now: datetime | None = None) -> int:
    """Deletes stored files that no row names any more, and halves of files; returns how many.

    `now` is the present unless told.
    """
    before = (now or datetime.now(UTC)) - GRACE
    halves = await storage.delete_unfinished("projects", before)
    if halves:
        log.info("deleted %d files that were never stored to their end", halves)
    return halves + await _delete_unnamed(db, storage, before)


async def _delete_unnamed(db: Database, storage: Storage, before: datetime) -> int:
    old = [blob.key for blob in await storage.list_under("projects") if blob.written_at < before]
    if not old:
        return 0
    async with db.transaction() as session:
        named = await content_queries.stored_keys(session) | await queries.stored_keys(session)
    orphans = [key for key in old if key not in named]
    await storage.delete(orphans)
    if orphans:
        log.info("deleted %d stored files that no row names", len(orphans))
    return len(orphans)
