"""Transcripts of videos as the contract documents them."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.conftest import Tenant
from tests.contracts.shapes import matches
from tests.providers.youtube_imitation import YouTube, asset, player, reachable_youtube

URL = "https://www.youtube.com/watch?v=dQw4w9WgXcQ"
TEXT = "Hey, this is just a test this is not the original transcript just something shorter, I made up for testing"
NO_ID = 2**62


@pytest.fixture
def youtube(tmp_path: Path) -> Iterator[YouTube]:
    with reachable_youtube(tmp_path) as found:
        yield found


async def ask(tenant: Tenant, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return await tenant.client.post(
        "/api/helpers/video-transcript", json={"video_url": URL, **body}, headers=headers or {}
    )


@pytest.fixture
async def content(tenant: Tenant, youtube: YouTube) -> dict[str, Any]:
    project = (await tenant.client.post("/api/projects", json={"name": "Films"})).json()["id"]
    body = {
        "project_id": project,
        "name": "Vidéo YouTube",
        "description": "Description de la vidéo",
        "type": "youtube",
        "url": URL,
    }
    made = await tenant.client.post("/api/contents", json=body)
    assert made.status_code == 201, made.text
    matches(
        made.json(),
        {
            **body,
            "id": int,
            "file_path": None,
            "size": 0,
            "status": "pending",
            "created_at": datetime,
            "updated_at": datetime,
            "character_count": 0,
            "language": None,
            "error_code": None,
            "error_message": None,
            "task_id": UUID,
        },
    )
    return dict(made.json())


async def test_at_once_from_captions(tenant: Tenant, youtube: YouTube) -> None:
    found = await ask(tenant, async_process=False, content_id=None)
    assert found.status_code == 200, found.text
    expected = {"transcript": TEXT, "source": "youtube_transcript_api", "language": "en", "duration_seconds": 316.0}
    assert found.json() == expected
    assert (await ask(tenant)).json() == expected


async def test_in_the_background(tenant: Tenant, content: dict[str, Any], run_jobs: Any, youtube: YouTube) -> None:
    started = await ask(tenant, {"Accept-Language": "fr"}, async_process=True, content_id=content["id"])
    assert started.status_code == 200, started.text
    task = started.json()["task_id"]
    assert started.json() == {
        "task_id": task,
        "status": "processing",
        "message": "La transcription a été lancée en arrière-plan",
        "check_endpoint": f"/api/helpers/transcript-status/{task}",
    }
    # The job that came with the content: a video is not transcribed twice.
    assert task == content["task_id"]
    path = started.json()["check_endpoint"]
    waiting = (await tenant.client.get(path)).json()
    assert (waiting["task_id"], waiting["status"], waiting["progress"]) == (task, "processing", 0)
    await run_jobs(task)
    done = await tenant.client.get(path)
    matches(
        done.json(),
        {
            "task_id": task,
            "status": "completed",
            "progress": 100,
            "message": str,
            "transcript": TEXT,
            "source": "youtube_transcript_api",
            "error": None,
            "error_code": None,
        },
    )
    shown = (await tenant.client.get(f"/api/contents/{content['id']}")).json()
    assert (shown["status"], shown["character_count"], shown["task_id"]) == ("processed", len(TEXT), task)
    # Asked again, it is there.
    again = (await ask(tenant, async_process=True, content_id=content["id"])).json()
    assert (again["task_id"], again["status"]) == (task, "completed")


async def test_what_failed_is_started_anew(
    tenant: Tenant, content: dict[str, Any], run_jobs: Any, youtube: YouTube
) -> None:
    youtube.show(asset("youtube_age_restricted.innertube.json"))
    await run_jobs(content["task_id"])
    status = (await tenant.client.get(f"/api/helpers/transcript-status/{content['task_id']}")).json()
    assert (status["status"], status["error_code"], status["transcript"]) == ("error", "VIDEO_AGE_RESTRICTED", None)
    french = await tenant.client.get(
        f"/api/helpers/transcript-status/{content['task_id']}", headers={"Accept-Language": "fr"}
    )
    assert "adultes" in french.json()["error"]
    youtube.show(player())
    again = (await ask(tenant, async_process=True, content_id=content["id"])).json()
    assert (again["task_id"] != content["task_id"], again["status"]) == (True, "processing")
    await run_jobs(again["task_id"])
    shown = (await tenant.client.get(f"/api/contents/{content['id']}")).json()
    assert (shown["status"], shown["error_code"]) == ("processed", None)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"video_url": "https://example.com/video"}, 400, "VIDEO_URL_INVALID"),
        ({"video_url": "https://www.youtube.com/playlist?list=PL0123456789"}, 400, "VIDEO_IS_PLAYLIST"),
        ({"video_url": "http://169.254.169.254/latest"}, 400, "VIDEO_URL_INVALID"),
        ({"video_url": ""}, 422, "VALIDATION_ERROR"),
        ({"video_url": None}, 422, "VALIDATION_ERROR"),
        ({"async_process": True}, 400, "CONTENT_ID_REQUIRED"),
        ({"async_process": True, "content_id": NO_ID}, 404, "CONTENT_NOT_FOUND"),
        ({"async_process": True, "content_id": 0}, 422, "VALIDATION_ERROR"),
    ],
)
async def test_bad_requests(tenant: Tenant, youtube: YouTube, body: dict[str, Any], status: int, code: str) -> None:
    refused = await ask(tenant, **body)
    assert (refused.status_code, refused.json()["error_code"]) == (status, code), refused.text
    assert youtube.requests == []


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (asset("youtube_transcripts_disabled.innertube.json"), 400, "VIDEO_HAS_NO_CAPTIONS"),
        (asset("youtube_request_blocked.innertube.json"), 503, "VIDEO_BLOCKED"),
        (asset("youtube_video_unavailable.innertube.json"), 400, "VIDEO_UNAVAILABLE"),
        (player(videoDetails={"isLive": True}), 400, "VIDEO_IS_LIVE"),
        (player(videoDetails={"lengthSeconds": "90000"}), 400, "VIDEO_TOO_LONG"),
    ],
)
async def test_what_youtube_refuses(tenant: Tenant, youtube: YouTube, answer: Any, status: int, code: str) -> None:
    youtube.show(answer)
    refused = await ask(tenant)
    assert (refused.status_code, refused.json()["error_code"]) == (status, code), refused.text
    if code == "VIDEO_HAS_NO_CAPTIONS":
        assert "async_process=true" in refused.json()["detail"]


async def test_a_content_must_be_this_video(tenant: Tenant, content: dict[str, Any], youtube: YouTube) -> None:
    other = await ask(tenant, async_process=True, content_id=content["id"], video_url="https://youtu.be/GJLlxj_dtq8")
    assert (other.status_code, other.json()["error_code"]) == (400, "CONTENT_NOT_A_VIDEO")
    upload = await tenant.client.post(
        "/api/contents/upload",
        files={"file": ("a.txt", b"A lighthouse guides the sailors.")},
        data={"project_id": str(content["project_id"])},
    )
    refused = await ask(tenant, async_process=True, content_id=upload.json()["id"])
    assert (refused.status_code, refused.json()["error_code"]) == (400, "CONTENT_NOT_A_VIDEO")
    # The same video under another address.
    same = await ask(tenant, async_process=True, content_id=content["id"], video_url="https://youtu.be/dQw4w9WgXcQ?t=3")
    assert same.json()["task_id"] == content["task_id"]


async def test_others_videos_are_not_found(
    tenant: Tenant, make_tenant: Any, anonymous: httpx.AsyncClient, content: dict[str, Any]
) -> None:
    other = await make_tenant()
    refused = await ask(other, async_process=True, content_id=content["id"])
    assert (refused.status_code, refused.json()["error_code"]) == (404, "CONTENT_NOT_FOUND")
    path = f"/api/helpers/transcript-status/{content['task_id']}"
    assert (await other.client.get(path)).json()["error_code"] == "JOB_NOT_FOUND"
    assert (await tenant.client.get(path)).status_code == 200
    assert (await tenant.client.get("/api/helpers/transcript-status/a1b2c3d4e5f6")).status_code == 422
    assert (await anonymous.get(path)).status_code == 401
    assert (await anonymous.post("/api/helpers/video-transcript", json={"video_url": URL})).status_code == 401
