"""Uploaded recordings become documents: real speech, real model; cancelled, killed, silent, damaged, too long."""

import asyncio
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from backend.contents.models import Content
from backend.contents.transcription import recognition
from backend.contents.transcription.errors import TranscriptionNotAvailable
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.providers.speech.models import FASTER_WHISPER
from celery_app import runtime
from tests.conftest import Tenant, stored_keys
from tests.contents.test_media import encoded
from tests.speech import TEXT, say, silence, word_error_rate, write_wav

pytestmark = pytest.mark.usefixtures("with_tiny_model")


class Case:
    """One project of one tenant, to which recordings are uploaded."""

    def __init__(self, tenant: Tenant, db: Database, app: Any, run_jobs: Any, project: str, folder: Path) -> None:
        self.tenant, self.db, self.app, self.run_jobs, self.folder = tenant, db, app, run_jobs, folder
        self.studio = project

    async def number(self) -> int:
        return int((await self.tenant.client.get("/api/projects")).json()[0]["id"])

    async def upload(self, data: bytes, name: str = "speech.wav") -> dict[str, Any]:
        answer = await self.tenant.client.post(
            "/api/contents/upload", files={"file": (name, data)}, data={"project_id": str(await self.number())}
        )
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def upload_speech(self, *parts: bytes) -> dict[str, Any]:
        return await self.upload(write_wav(self.folder / "speech.wav", b"".join(parts)).read_bytes())

    async def shown(self, content: dict[str, Any]) -> dict[str, Any]:
        return dict((await self.tenant.client.get(f"/api/contents/{content['id']}")).json())

    async def status(self, content: dict[str, Any]) -> dict[str, Any]:
        found = await self.tenant.client.get(f"/api/helpers/transcript-status/{content['task_id']}")
        assert found.status_code == 200, found.text
        return dict(found.json())

    async def row(self, content: dict[str, Any]) -> Content:
        async with self.db.transaction() as session:
            return await session.get_one(Content, content["id"])

    async def job(self, content: dict[str, Any]) -> Job:
        async with self.db.transaction() as session:
            return (await session.scalars(select(Job).where(Job.public_id == content["task_id"]))).one()


@pytest.fixture
async def case(tenant: Tenant, db: Database, app: Any, run_jobs: Any, tmp_path: Path) -> Case:
    return Case(tenant, db, app, run_jobs, await tenant.make_project(name="Lamps"), tmp_path)


async def test_speech_becomes_a_document_with_times(case: Case) -> None:
    content = await case.upload_speech(silence(2), say(TEXT), silence(1))
    assert (content["status"], content["type"]) == ("pending", "audio")
    assert (await case.status(content))["status"] == "processing"
    job = await case.run_jobs(content["task_id"])
    assert job["state"] == "success", job
    found = await case.shown(content)
    assert (found["status"], found["language"], found["error_code"]) == ("processed", "en", None)
    row = await case.row(content)
    assert row.text_key is not None
    assert row.meta["source"] == "whisper" and set(row.meta) == {"source", "duration_seconds", "language"}
    assert 15 < row.meta["duration_seconds"] < 30
    status = await case.status(content)
    assert (status["status"], status["progress"], status["source"]) == ("completed", 100, "whisper")
    assert len(status["transcript"].replace("\n\n", "")) == found["character_count"]
    # One word in thirty-nine is heard wrong of this voice; one in eight is the bound.
    assert word_error_rate(TEXT, status["transcript"]) < 0.125, status["transcript"]
    # It is cut into chunks like any document, and each says from when to when it is said.
    chunking = await case.tenant.client.post(
        f"/projects/{case.studio}/chunks/generate", json={"chunk_size_tokens": 32, "chunk_overlap_tokens": 0}
    )
    await case.run_jobs(chunking.json()["job_id"])
    chunks = (await case.tenant.client.get(f"/projects/{case.studio}/chunks")).json()["items"]
    times = [(chunk["metadata"]["start_seconds"], chunk["metadata"]["end_seconds"]) for chunk in chunks]
    assert len(chunks) > 1 and times == sorted(times)
    assert all(1 < start < end <= row.meta["duration_seconds"] for start, end in times), times
    files = (await case.tenant.client.get(f"/projects/{case.studio}/files")).json()["files"]
    assert [file["status"] for file in files] == ["ready"]
    assert sorted(await stored_keys(case.app, f"projects/{case.studio}")) == sorted([row.file_key, row.text_key])
    assert (await case.tenant.client.delete(f"/api/contents/{content['id']}")).status_code == 204
    assert await stored_keys(case.app, f"projects/{case.studio}") == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encoded("wav", "pcm_s16le", seconds=4.0), "AUDIO_HAS_NO_SPEECH"),
        (encoded("mp3", "libmp3lame", seconds=0.2), "AUDIO_HAS_NO_SPEECH"),
        (encoded("mp4", "aac", seconds=2.0)[:200], "AUDIO_BROKEN"),
        (encoded("wav", "pcm_s16le", seconds=1.0)[:44], "AUDIO_BROKEN"),
    ],
)
async def test_what_has_no_speech_says_why(case: Case, data: bytes, code: str) -> None:
    content = await case.upload(data, "sound")
    job = await case.run_jobs(content["task_id"])
    found = await case.shown(content)
    assert (job["state"], job["error_code"], job["attempts"]) == ("failed", code, 1)
    assert (found["status"], found["error_code"], found["error_message"]) == ("error", code, job["error_message"])
    status = await case.status(content)
    assert (status["status"], status["error_code"], status["transcript"]) == ("error", code, None)
    french = await case.tenant.client.get(f"/api/contents/{content['id']}", headers={"Accept-Language": "fr"})
    assert french.json()["error_message"] != found["error_message"]


async def test_more_than_is_allowed_is_refused(case: Case, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "transcription_max_minutes", 1)
    content = await case.upload_speech(silence(65))
    assert (await case.run_jobs(content["task_id"]))["error_code"] == "AUDIO_TOO_LONG"


async def test_a_model_that_is_nowhere_is_named(
    case: Case, settings: Settings, monkeypatch: pytest.MonkeyPatch, outside_hub: Any
) -> None:
    content = await case.upload_speech(say("The lamp is lit."))
    outside_hub.mode = "503"
    try:
        monkeypatch.setattr(settings, "whisper_model", "base")
        job = await case.run_jobs(content["task_id"])
    finally:
        outside_hub.mode = "up"
    assert (job["error_code"], job["attempts"]) == ("TRANSCRIPTION_MODEL_MISSING", 1)
    assert "WHISPER_MODEL" in job["error_message"] and "cannot be reached" in job["error_message"]
    for name in ("/nowhere", "no-such-size"):
        monkeypatch.setattr(settings, "whisper_model", name)
        content = await case.upload_speech(say("The lamp is lit."))
        job = await case.run_jobs(content["task_id"])
        assert (job["error_code"], f"'{name}'" in job["error_message"]) == ("TRANSCRIPTION_MODEL_MISSING", True)


async def test_a_model_of_the_hub_is_fetched_once(
    case: Case, settings: Settings, monkeypatch: pytest.MonkeyPatch, outside_hub: Any, tiny_model: Path
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir() if path.is_file()}
    outside_hub.add("Systran/faster-whisper-tiny.en", {**files, "README.md": b"not needed", "model.pt": b"pickle"})
    monkeypatch.setattr(settings, "whisper_model", "tiny.en")
    for _ in range(2):
        outside_hub.requests.clear()
        content = await case.upload_speech(say("The keeper lights the lamp."))
        assert (await case.run_jobs(content["task_id"]))["state"] == "success"
        fetched = outside_hub.fetched()
        outside_hub.mode = "503"
    outside_hub.mode = "up"
    assert fetched == []
    [folder] = (settings.models_path / ".cache/hub/Systran--faster-whisper-tiny.en").glob("a*")
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == sorted(files)


async def until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it takes too long"
        await asyncio.sleep(0.05)


async def test_a_cancel_ends_the_engine_within_seconds(case: Case) -> None:
    content = await case.upload_speech(*[say(TEXT)] * 8)
    running = asyncio.create_task(case.run_jobs(content["task_id"]))

    async def hears() -> bool:
        return "Written down" in (await case.job(content)).message

    await until(hears)
    children = engines()
    assert len(children) == 1
    asked = time.monotonic()
    assert (await case.tenant.client.post(f"/jobs/{content['task_id']}/cancel")).status_code == 200
    job = await running
    assert time.monotonic() - asked < 5
    assert (job["state"], engines()) == ("cancelled", [])
    found = await case.shown(content)
    assert (found["status"], found["error_code"]) == ("error", "TRANSCRIPTION_CANCELLED")
    assert (await case.status(content))["status"] == "cancelled"


def engines() -> list[int]:
    """The processes that write down speech."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"backend.trainers.transcribe" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


async def test_a_run_that_was_lost_goes_on_with_the_next_piece(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two pieces: the pauses make it long.
    content = await case.upload_speech(*[say(TEXT), silence(50)] * 3)
    given: list[list[int]] = []
    run_child = recognition.run_child

    async def lost_after_a_piece(command: Any, on_line: Any, **options: Any) -> Any:
        """The lease goes to somebody else as soon as the first piece is kept."""
        given.append(numbers(Path(command[-1])))

        async def read(line: bytes) -> None:
            await on_line(line)
            if b'"piece"' in line:
                # This runs in the worker's loop, which has connections of its own.
                async with runtime.get().db.transaction() as session:
                    row = (await session.scalars(select(Job).where(Job.public_id == content["task_id"]))).one()
                    row.state, row.fence, row.lease_until = "queued", row.fence + 1, None

        return await run_child(command, read, **options)

    monkeypatch.setattr(recognition, "run_child", lost_after_a_piece)
    await case.run_jobs(content["task_id"])
    assert engines() == []
    kept = (await case.row(content)).meta["pieces"]["done"]
    assert list(kept) == ["0"]

    async def watched(command: Any, on_line: Any, **options: Any) -> Any:
        given.append(numbers(Path(command[-1])))
        return await run_child(command, on_line, **options)

    monkeypatch.setattr(recognition, "run_child", watched)
    assert (await case.run_jobs(content["task_id"]))["state"] == "success"
    assert given == [[0, 1], [1]]
    row = await case.row(content)
    assert "pieces" not in row.meta
    status = await case.status(content)
    assert word_error_rate(" ".join([TEXT] * 3), status["transcript"]) < 0.2, status["transcript"]


def numbers(config: Path) -> list[int]:
    return [piece[0] for piece in json.loads(config.read_text())["pieces"]]


async def test_a_recording_deleted_while_it_is_written_down_leaves_nothing(case: Case) -> None:
    content = await case.upload_speech(say("The keeper lights the lamp."))
    row = await case.row(content)
    async with case.db.transaction() as session:
        await session.delete(await session.get(Content, content["id"]))
    job = await case.run_jobs(content["task_id"])
    assert (job["state"], job["result"]) == ("success", {"deleted": True})
    assert await stored_keys(case.app, f"projects/{case.studio}") == [row.file_key]


async def test_another_tenants_task_is_not_found(case: Case, make_tenant: Any, anonymous: httpx.AsyncClient) -> None:
    content = await case.upload_speech(say("The keeper lights the lamp."))
    other = await make_tenant()
    path = f"/api/helpers/transcript-status/{content['task_id']}"
    assert (await other.client.get(path)).json()["error_code"] == "JOB_NOT_FOUND"
    assert (await anonymous.get(path)).status_code == 401


async def test_an_engine_that_is_killed_fails_the_job_and_keeps_its_pieces(case: Case) -> None:
    content = await case.upload_speech(*[say(TEXT), silence(50)] * 3)
    running = asyncio.create_task(case.run_jobs(content["task_id"]))

    async def has_a_piece() -> bool:
        return "pieces" in (await case.row(content)).meta

    await until(has_a_piece)
    for engine in engines():
        os.kill(engine, signal.SIGKILL)
    job = await running
    assert (job["state"], job["error_code"]) == ("failed", "TRANSCRIPTION_FAILED"), job
    assert "memory" in job["error_message"]
    assert (await case.shown(content))["error_code"] == "TRANSCRIPTION_FAILED"


def test_a_worker_without_the_engine_says_what_to_install() -> None:
    absent = replace(FASTER_WHISPER, package="no_such_package")
    with pytest.raises(TranscriptionNotAvailable) as caught:
        recognition.require_installed(absent)
    assert "finetuneflow[speech]" in caught.value.detail
    recognition.require_installed(FASTER_WHISPER)
