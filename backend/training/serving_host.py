"""The process that answers with local models: takes questions from Redis, and asks the child that holds the models."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy import select

from backend.kit import redis as kit_redis
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.kit.errors import DomainError
from backend.projects.models import Project
from backend.providers.base_models import ModelLibrary
from backend.providers.huggingface import HubClient
from backend.storage import BlobNotFound, open_storage
from backend.training import adapter_files, queries
from backend.training.errors import AnswerFailed, FineTuningNotFinished, FineTuningNotFound
from backend.training.local import Bench
from backend.training.models import Artifact, FineTuning
from backend.training.serving_child import CRASHED, ServingChild
from backend.training.serving_queue import Asked, ServingQueue
from backend.training.statuses import Status

log = logging.getLogger(__name__)

INTERRUPTED = "SERVING_INTERRUPTED"
_BEAT_SECONDS = 1.0
_SWEEP_SECONDS = 60.0
_PAUSE_SECONDS = 0.5
_LAST_SECONDS = 3.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Located:
    """Where a fine-tuned model lies: a base, and over it an adapter (None: the folder is the whole model)."""

    base: Path
    adapter: Path | None
    load_in_4bit: bool


class NotWanted(Exception):
    """Nobody waits for the answer any more."""


class ServingHost:
    """Answers up to `serving_concurrency` questions at once, until `stop` is set."""

    def __init__(self, bench: Bench, db: Database, serving: ServingQueue) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.child = ServingChild(bench.settings)
        self._bench = bench
        self._settings: Settings = bench.settings
        self._db = db
        self._queue = serving
        self._answering: dict[UUID, asyncio.Task[None]] = {}
        # How many answers use an adapter's folder at this moment.
        self._folders: dict[str, int] = {}
        self._bases: dict[tuple[str, str | None], Path] = {}

    async def run(self, stop: asyncio.Event) -> None:
        keeping = [
            asyncio.create_task(self._repeat(_BEAT_SECONDS, self._beat)),
            asyncio.create_task(self._repeat(_SWEEP_SECONDS, self._sweep)),
        ]
        taking = asyncio.create_task(self._take_questions())
        try:
            await stop.wait()
        finally:
            taking.cancel()
            keeping[0].cancel()
            await asyncio.gather(taking, keeping[0], return_exceptions=True)
            with suppress(RedisError, OSError):
                await self._queue.retire(self.name)
            if self._answering:
                await asyncio.wait(self._answering.values(), timeout=_LAST_SECONDS)
            for task in [*self._answering.values(), keeping[1]]:
                task.cancel()
            await asyncio.gather(*self._answering.values(), keeping[1], return_exceptions=True)
            await self.child.close()

    async def _take_questions(self) -> None:
        while True:
            if len(self._answering) >= self._settings.serving_concurrency:
                await asyncio.wait(self._answering.values(), return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                found = await self._queue.next_id()
                asked = await self._queue.claim(UUID(found), self.name) if found is not None else None
            except (RedisError, OSError) as error:
                log.warning("questions cannot be taken: %r", error)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if asked is not None:
                task = asyncio.create_task(self._answer(asked), name=str(asked.id))
                self._answering[asked.id] = task
                task.add_done_callback(lambda done: self._answering.pop(UUID(done.get_name()), None))

    async def _answer(self, asked: Asked) -> None:
        """Computes one answer and tells every step of it; whatever goes wrong is told as well."""
        failure: dict[str, Any]
        try:
            await self._compute(asked)
            return
        except NotWanted:
            return
        except DomainError as error:
            failure = {"error_code": error.code, "error": error.detail, "context": error.context}
        except (RedisError, OSError) as error:
            log.warning("answer %s is lost: %r", asked.id, error)
            failure = {"error_code": INTERRUPTED, "error": ""}
        except asyncio.CancelledError:
            failure = {"error_code": INTERRUPTED, "error": ""}
        except Exception:
            log.exception("answer %s fails by an error of ours", asked.id)
            failure = {"error_code": "INTERNAL_ERROR", "error": "The service made an error. Try again later."}
        with suppress(RedisError, OSError):
            await self._queue.publish(asked.id, "failed", failure)

    async def _compute(self, asked: Asked) -> None:
        deadline = time.monotonic() + asked.seconds
        run, artifacts, revision = await self._find(asked)
        folder = adapter_files.name_of(run, artifacts)
        self._folders[folder] = self._folders.get(folder, 0) + 1
        try:
            located = await self._while_wanted(asked.id, deadline, self._locate(run, artifacts, revision))
            command = {
                **asked.question,
                "base_model": str(located.base),
                "adapter": folder if located.adapter is not None else None,
                "adapter_folder": str(located.adapter) if located.adapter is not None else None,
                "load_in_4bit": located.load_in_4bit,
            }
            await self._relay(asked.id, command, deadline)
        finally:
            self._folders[folder] -= 1
            if not self._folders[folder]:
                del self._folders[folder]

    async def _relay(self, id: UUID, command: dict[str, Any], deadline: float) -> None:
        """Passes the child's events on, for as long as somebody waits for them. Raises NotWanted."""
        async with aclosing(self.child.answer(id, command, wait_seconds=_BEAT_SECONDS)) as events:
            async for event in events:
                if time.monotonic() >= deadline:
                    raise NotWanted
                if event is None:
                    await self._require_wanted(id)
                    continue
                name = event["event"]
                data = {key: value for key, value in event.items() if key not in ("event", "id")}
                if name == CRASHED:
                    name, data = "failed", {"error_code": INTERRUPTED, "error": data["error"]}
                if name in ("token", "done", "failed") and not await self._queue.publish(id, name, data):
                    raise NotWanted

    async def _find(self, asked: Asked) -> tuple[FineTuning, list[Artifact], str | None]:
        """The asker's finished run with its files, and the base's pinned revision. Raises DomainErrors."""
        async with self._db.transaction() as session:
            of_user = FineTuning.id == asked.fine_tuning_id, Project.user_id == asked.user_id
            found = await session.execute(
                select(FineTuning, Project.model_info)
                .join(Project, Project.id == FineTuning.project_id)
                .where(*of_user)
            )
            row = found.one_or_none()
            if row is None:
                raise FineTuningNotFound()
            run, info = row
            artifacts = list(await queries.list_artifacts(session, run.id, queries.ADAPTER))
        if run.status != Status.COMPLETED or not artifacts:
            raise FineTuningNotFinished(state=run.status)
        return run, artifacts, (info or {}).get("revision") if (info or {}).get("model_id") == run.model else None

    async def _locate(self, run: FineTuning, artifacts: list[Artifact], revision: str | None) -> Located:
        try:
            folder = await adapter_files.ensure(
                self._settings, self._bench.storage, run, artifacts, keep=set(self._folders)
            )
        except BlobNotFound as error:
            raise AnswerFailed(reason="its files are no longer in storage. Train it again.") from error
        if not (folder / "adapter_config.json").is_file():
            return Located(folder, None, load_in_4bit=False)
        key = run.model, revision
        base = self._bases.get(key)
        if base is None or not (base / "config.json").is_file():
            base = self._bases[key] = await self._bench.library.ensure_weights(run.model, revision)
        return Located(base, folder, load_in_4bit=run.method == "qlora")

    async def _while_wanted(self, id: UUID, deadline: float, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is given up when nobody waits for it any more. Raises NotWanted."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_BEAT_SECONDS))[0]:
                if time.monotonic() >= deadline:
                    raise NotWanted
                await self._require_wanted(id)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        return task.result()

    async def _require_wanted(self, id: UUID) -> None:
        if not await self._queue.is_wanted(id):
            raise NotWanted

    async def _beat(self) -> None:
        await self._queue.beat(self.name)
        if self.child.pid is not None and self.child.idle_seconds > self._settings.serving_idle_seconds:
            log.info("the models give their memory back: nothing was asked for a while")
            await self.child.close()

    async def _sweep(self) -> None:
        await adapter_files.forget_deleted(self._db, self._settings)

    async def _repeat(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:  # Redis or the database is away: it is tried again
                log.warning("%s fails: %r", work.__name__, error)
            await asyncio.sleep(seconds)


async def serve(settings: Settings) -> None:
    """Runs a host until SIGTERM or SIGINT. Every mapped class must be known before (backend.models)."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    redis = kit_redis.connect(settings.redis_url)
    db = Database(settings.database_url, pool_size=2, max_overflow=settings.serving_concurrency, pre_ping=True)
    hub = HubClient(
        settings.hf_endpoint, settings.hf_token.get_secret_value(), timeout_seconds=settings.hf_timeout_seconds
    )
    library = ModelLibrary(settings.models_path, hub, threads=settings.training_threads)
    bench = Bench(settings=settings, storage=open_storage(settings.storage_url), library=library)
    try:
        await ServingHost(bench, db, ServingQueue(redis)).run(stop)
    finally:
        await redis.aclose()
        await db.close()
