"""Videos become documents: by captions, else by the sound that an engine hears, else with a reason."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from sqlalchemy import select

from backend.contents.models import Content
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from tests.conftest import Tenant, stored_keys
from tests.providers.youtube_imitation import YouTube, asset, player, reachable_youtube, running_youtube
from tests.speech import RATE, TEXT, say, word_error_rate

URL = "https://www.youtube.com/watch?v=GJLlxj_dtq8"
pytestmark = pytest.mark.usefixtures("with_tiny_model")


@pytest.fixture
def youtube(tmp_path: Path) -> Iterator[YouTube]:
    with reachable_youtube(tmp_path) as found:
        yield found


def m4a(samples: bytes, path: Path) -> bytes:
    """Speech as YouTube has it."""
    with av.open(str(path), "w", format="ipod") as file:
        stream = file.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(samples) // 2)
        frame.planes[0].update(samples.ljust(frame.planes[0].buffer_size, b"\0"))
        frame.rate = RATE
        for resampled in av.AudioResampler(format="fltp", rate=RATE, frame_size=1024).resample(frame):
            file.mux(stream.encode(resampled))
        file.mux(stream.encode(None))
    return path.read_bytes()


class Case:
    def __init__(self, tenant: Tenant, db: Database, app: Any, run_jobs: Any, project: str) -> None:
        self.tenant, self.db, self.app, self.run_jobs, self.studio = tenant, db, app, run_jobs, project

    async def add(self, url: str = URL) -> dict[str, Any]:
        number = (await self.tenant.client.get("/api/projects")).json()[0]["id"]
        body = {"project_id": number, "name": "Video", "type": "youtube", "url": url}
        made = await self.tenant.client.post("/api/contents", json=body)
        assert made.status_code == 201, made.text
        return dict(made.json())

    async def done(self, content: dict[str, Any]) -> dict[str, Any]:
        await self.run_jobs(content["task_id"])
        return await self.shown(content)

    async def shown(self, content: dict[str, Any]) -> dict[str, Any]:
        return dict((await self.tenant.client.get(f"/api/contents/{content['id']}")).json())

    async def row(self, content: dict[str, Any]) -> Content:
        async with self.db.transaction() as session:
            return await session.get_one(Content, content["id"])

    async def blobs(self) -> list[str]:
        return await stored_keys(self.app, f"projects/{self.studio}")


@pytest.fixture
async def case(tenant: Tenant, db: Database, app: Any, run_jobs: Any, youtube: YouTube) -> Case:
    return Case(tenant, db, app, run_jobs, await tenant.make_project(name="Lamps"))


async def test_captions_become_a_document_with_times(case: Case) -> None:
    content = await case.add()
    found = await case.done(content)
    assert (found["status"], found["language"], found["error_code"]) == ("processed", "en", None)
    row = await case.row(content)
    assert row.meta == {
        "source": "youtube_transcript_api",
        "duration_seconds": 316.0,
        "language": "en",
        "title": "Surface Go Review - It’s Awesome",
    }
    assert row.text_key is not None and sorted(await case.blobs()) == sorted([row.file_key, row.text_key])
    captions = (await case.app.state.services.storage.get_bytes(row.file_key)).decode()
    assert (len(captions), captions.split("\n\n")[:2]) == (
        found["size"],
        ["WEBVTT", "00:00:00.000 --> 00:00:01.540\nHey, this is just a test"],
    )
    chunking = await case.tenant.client.post(f"/projects/{case.studio}/chunks/generate")
    await case.run_jobs(chunking.json()["job_id"])
    [chunk] = (await case.tenant.client.get(f"/projects/{case.studio}/chunks")).json()["items"]
    assert chunk["content"].startswith("Hey, this is just a test this is not the original")
    assert (chunk["metadata"]["start_seconds"], chunk["metadata"]["end_seconds"]) == (0.0, 8.94)
    assert len(chunk["content"]) == found["character_count"]
    assert (await case.tenant.client.delete(f"/api/contents/{content['id']}")).status_code == 204
    assert await case.blobs() == []


async def test_the_projects_language_goes_first(case: Case, youtube: YouTube) -> None:
    await case.tenant.client.patch(f"/projects/{case.studio}", json={"config": {"language": "ja"}})
    assert (await case.done(await case.add()))["language"] == "ja"


async def test_a_video_without_captions_is_heard(case: Case, youtube: YouTube, tmp_path: Path) -> None:
    youtube.show_sound(m4a(say(TEXT), tmp_path / "sound.m4a"))
    content = await case.add()
    job = await case.run_jobs(content["task_id"])
    assert job["state"] == "success", job
    found, row = await case.shown(content), await case.row(content)
    assert (found["status"], row.meta["source"], row.meta["title"]) == (
        "processed",
        "whisper",
        "Surface Go Review - It’s Awesome",
    )
    status = await case.tenant.client.get(f"/api/helpers/transcript-status/{content['task_id']}")
    assert status.json()["source"] == "whisper"
    # One word in eight; the sound is squeezed twice.
    assert word_error_rate(TEXT, status.json()["transcript"]) < 0.125, status.json()["transcript"]
    assert sorted(await case.blobs()) == sorted([row.file_key, str(row.text_key)])


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("youtube_request_blocked", "VIDEO_BLOCKED"),
        ("youtube_age_restricted", "VIDEO_AGE_RESTRICTED"),
        ("youtube_video_unavailable", "VIDEO_UNAVAILABLE"),
        ("youtube_transcripts_disabled", "VIDEO_AUDIO_UNAVAILABLE"),
    ],
)
async def test_failures_end_in_the_content_with_their_reason(
    case: Case, youtube: YouTube, name: str, code: str
) -> None:
    youtube.show(asset(f"{name}.innertube.json"))
    content = await case.add()
    job = await case.run_jobs(content["task_id"])
    found = await case.shown(content)
    assert (job["state"], job["error_code"], job["attempts"]) == ("failed", code, 1), job
    assert (found["status"], found["error_code"], found["error_message"]) == ("error", code, job["error_message"])
    assert "file" in found["error_message"]
    assert await case.blobs() == []


async def test_trouble_of_the_network_is_tried_again(case: Case, youtube: YouTube) -> None:
    youtube.answers = {"/watch": (503, b""), "/youtubei/v1/player": (503, b"")}
    content = await case.add()
    job = await case.run_jobs(content["task_id"])
    assert (job["state"], job["attempts"]) == ("queued", 1), job
    youtube.show(player())
    async with case.db.transaction() as session:
        row = (await session.scalars(select(Job).where(Job.public_id == content["task_id"]))).one()
        row.available_at = None
    assert (await case.done(content))["status"] == "processed"


async def test_a_long_video_is_refused_by_the_setting(
    case: Case, youtube: YouTube, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    youtube.show(player(videoDetails={"lengthSeconds": "10800"}))
    assert (await case.done(await case.add()))["status"] == "processed"
    monkeypatch.setattr(settings, "youtube_max_minutes", 179)
    found = await case.done(await case.add())
    assert (found["status"], found["error_code"]) == ("error", "VIDEO_TOO_LONG")


async def test_the_proxy_of_the_settings_is_asked(
    case: Case, youtube: YouTube, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    youtube.show(asset("youtube_request_blocked.innertube.json"))
    with running_youtube(youtube.certificate) as proxy:
        proxy.show(player())
        monkeypatch.setattr(settings, "youtube_proxy_url", type(settings.youtube_proxy_url)(proxy.url))
        assert (await case.done(await case.add()))["status"] == "processed"


async def test_deleting_or_cancelling_meanwhile(case: Case, youtube: YouTube) -> None:
    content = await case.add()
    await case.tenant.client.delete(f"/api/contents/{content['id']}")
    assert (await case.tenant.client.get(f"/jobs/{content['task_id']}")).json()["status"] == "cancelled"
    youtube.show_sound(bytes(50_000_000))
    youtube.pace_seconds = 0.05
    content = await case.add()
    running = asyncio.create_task(case.run_jobs(content["task_id"]))
    while "/videoplayback" not in youtube.paths():
        await asyncio.sleep(0.05)
        assert not running.done()
    await case.tenant.client.post(f"/jobs/{content['task_id']}/cancel")
    assert (await asyncio.wait_for(running, 10))["state"] == "cancelled"
    found = await case.shown(content)
    assert (found["status"], found["error_code"]) == ("error", "TRANSCRIPTION_CANCELLED")
    assert await case.blobs() == []


async def test_a_full_project_takes_no_video(case: Case, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with case.db.transaction() as session:
        first = await session.get_one(Content, (await case.add())["id"])
        first.size_bytes = 1024 * 1024
    monkeypatch.setattr(settings, "upload_max_project_mb", 1)
    assert (await case.done(await case.add()))["error_code"] == "PROJECT_STORAGE_FULL"
    assert await case.blobs() == []
