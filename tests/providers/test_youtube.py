"""YouTube's addresses, captions and refusals, by the recorded pages that the library's own tests use."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.kit.errors import DomainError
from backend.providers.youtube.addresses import video_id
from backend.providers.youtube.audio import Audio, DownloadLimits, download_audio
from backend.providers.youtube.captions import Captions, find_captions
from tests.contents.test_media import encoded
from tests.providers.youtube_imitation import YouTube, asset, player, reachable_youtube, running_youtube

ID = "GJLlxj_dtq8"


@pytest.mark.parametrize(
    "url",
    [
        "https://www.youtube.com/watch?v=GJLlxj_dtq8",
        "http://youtube.com/watch?v=GJLlxj_dtq8&t=42s",
        "https://m.youtube.com/watch?app=desktop&v=GJLlxj_dtq8",
        "https://music.youtube.com/watch?v=GJLlxj_dtq8&list=RDAMVM",
        "https://www.youtube.com/watch?list=PL0123456789&v=GJLlxj_dtq8&index=3",
        "https://youtu.be/GJLlxj_dtq8",
        "https://youtu.be/GJLlxj_dtq8?si=abc&t=10",
        "https://www.youtube.com/shorts/GJLlxj_dtq8",
        "https://www.youtube.com/shorts/GJLlxj_dtq8?feature=share",
        "https://www.youtube.com/embed/GJLlxj_dtq8?start=30",
        "https://www.youtube-nocookie.com/embed/GJLlxj_dtq8",
        "https://www.youtube.com/live/GJLlxj_dtq8",
        "https://www.youtube.com/v/GJLlxj_dtq8",
        "https://WWW.YouTube.com:443/watch?v=GJLlxj_dtq8#t=1m",
        "  https://www.youtube.com/watch?v=GJLlxj_dtq8\n",
    ],
)
def test_addresses_of_one_video(url: str) -> None:
    assert video_id(url) == ID


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://www.youtube.com/playlist?list=PL0123456789", "VIDEO_IS_PLAYLIST"),
        ("https://www.youtube.com/watch?list=PL0123456789", "VIDEO_IS_PLAYLIST"),
        ("https://www.youtube.com/embed/videoseries?list=PL0123456789", "VIDEO_IS_PLAYLIST"),
        ("", "VIDEO_URL_INVALID"),
        ("GJLlxj_dtq8", "VIDEO_URL_INVALID"),
        ("https://www.youtube.com/", "VIDEO_URL_INVALID"),
        ("https://www.youtube.com/@somebody", "VIDEO_URL_INVALID"),
        ("https://www.youtube.com/watch?v=short", "VIDEO_URL_INVALID"),
        ("https://www.youtube.com/watch?v=GJLlxj_dtq8x", "VIDEO_URL_INVALID"),
        ("https://www.youtube.com/watch?v=../../etc/pas", "VIDEO_URL_INVALID"),
        ("https://www.youtube.com/results?search_query=lamps", "VIDEO_URL_INVALID"),
        ("https://youtu.be/", "VIDEO_URL_INVALID"),
        ("ftp://www.youtube.com/watch?v=GJLlxj_dtq8", "VIDEO_URL_INVALID"),
        ("https://www.youtube.com.evil.example/watch?v=GJLlxj_dtq8", "VIDEO_URL_INVALID"),
        ("https://evil.example/https://www.youtube.com/watch?v=GJLlxj_dtq8", "VIDEO_URL_INVALID"),
        ("https://user@www.youtube.com/watch?v=GJLlxj_dtq8", "VIDEO_URL_INVALID"),
        ("https://www.youtube.com:8443/watch?v=GJLlxj_dtq8", "VIDEO_URL_INVALID"),
        ("http://www.youtube.com:443/watch?v=GJLlxj_dtq8", "VIDEO_URL_INVALID"),
        ("https://[www.youtube.com/watch?v=GJLlxj_dtq8", "VIDEO_URL_INVALID"),
        ("https://www.youtube.com/watch?" + "a=1&" * 5000 + "v=GJLlxj_dtq8", "VIDEO_URL_INVALID"),
        ("http://169.254.169.254/latest/meta-data/", "VIDEO_URL_INVALID"),
    ],
)
def test_addresses_of_none(url: str, code: str) -> None:
    with pytest.raises(DomainError) as caught:
        video_id(url)
    assert caught.value.code == code


@pytest.fixture
def youtube(tmp_path: Path) -> Iterator[YouTube]:
    with reachable_youtube(tmp_path) as found:
        yield found


@pytest.fixture
def behind_proxy(youtube: YouTube) -> Iterator[YouTube]:
    """What is asked through YOUTUBE_PROXY_URL."""
    with running_youtube(youtube.certificate) as found:
        found.show(player())
        yield found


async def captions(*languages: str, **options: Any) -> Captions:
    return await find_captions(ID, languages=languages or ("fr", "en"), **{"max_minutes": 240, **options})


async def refusal(*languages: str, **options: Any) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await captions(*languages, **options)
    return caught.value


async def test_captions_of_a_recorded_page(youtube: YouTube) -> None:
    found = await captions()
    assert (found.language, found.is_generated) == ("en", False)
    # The empty line is gone, and a line ends where the next one begins.
    assert [(line.start, round(line.end, 2), line.text) for line in found.segments] == [
        (0.0, 1.54, "Hey, this is just a test"),
        (1.54, 5.7, "this is not the original transcript"),
        (5.7, 8.94, "just something shorter, I made up for testing"),
    ]
    assert (found.facts.title, found.facts.duration_seconds) == ("Surface Go Review - It’s Awesome", 316.0)
    assert youtube.paths() == ["/watch", "/youtubei/v1/player", "/api/timedtext"]


def track(language: str, kind: str | None = None) -> dict[str, Any]:
    url = f"https://www.youtube.com/api/timedtext?v={ID}&lang={language}&kind={kind}"
    return {"baseUrl": url, "name": {"runs": [{"text": language}]}, "languageCode": language, "kind": kind or ""}


@pytest.mark.parametrize(
    ("tracks", "wished", "expected"),
    [
        ([track("en"), track("fr", "asr"), track("de")], ["fr", "en"], ("fr", True)),
        ([track("en", "asr"), track("en"), track("de")], ["fr", "en"], ("en", False)),
        ([track("fr-CA"), track("en")], ["fr", "en"], ("fr-CA", False)),
        ([track("en-US", "asr")], ["en-GB"], ("en-US", True)),
        # Nobody's wish, but what is spoken.
        ([track("fr"), track("ja", "asr")], ["it"], ("ja", True)),
    ],
)
async def test_which_captions_are_taken(
    youtube: YouTube, tracks: list[Any], wished: list[str], expected: tuple[str, bool]
) -> None:
    youtube.show(player(captions={"playerCaptionsTracklistRenderer": {"captionTracks": tracks}}))
    found = await captions(*wished)
    assert (found.language, found.is_generated) == expected


async def test_translations_are_no_captions_of_what_is_said(youtube: YouTube) -> None:
    youtube.show(player(captions={"playerCaptionsTracklistRenderer": {"captionTracks": [track("it"), track("ja")]}}))
    refused = await refusal()
    assert (refused.code, "fr, en" in refused.detail) == ("VIDEO_HAS_NO_CAPTIONS", True)


async def test_sounds_are_no_speech(youtube: YouTube) -> None:
    lines = ["[Music]", "♪ la la ♪", "[Applause] Good evening.", "(laughter)", "The lamp\nis lit."]
    xml = "".join(f'<text start="{at}" dur="1">{line}</text>' for at, line in enumerate(lines))
    youtube.show(player(), captions=f"<transcript>{xml}</transcript>".encode())
    assert [line.text for line in (await captions()).segments] == ["Good evening.", "The lamp is lit."]
    youtube.show(player(), captions=b'<transcript><text start="0" dur="1">[Music]</text></transcript>')
    assert (await refusal()).code == "VIDEO_HAS_NO_CAPTIONS"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("youtube_transcripts_disabled", "VIDEO_HAS_NO_CAPTIONS"),
        ("youtube_transcripts_disabled2", "VIDEO_HAS_NO_CAPTIONS"),
        ("youtube_request_blocked", "VIDEO_BLOCKED"),
        ("youtube_po_token_required", "VIDEO_BLOCKED"),
        ("youtube_age_restricted", "VIDEO_AGE_RESTRICTED"),
        ("youtube_video_unavailable", "VIDEO_UNAVAILABLE"),
        ("youtube_unplayable", "VIDEO_UNAVAILABLE"),
    ],
)
async def test_recorded_refusals(youtube: YouTube, name: str, code: str) -> None:
    youtube.show(asset(f"{name}.innertube.json"))
    refused = await refusal(max_minutes=400)
    assert refused.code == code
    assert "youtube_transcript_api" not in refused.detail and "issue" not in refused.detail
    if name == "youtube_unplayable":
        assert "Custom Reason" in refused.detail


async def test_other_refusals(youtube: YouTube) -> None:
    youtube.show(player(), page="youtube_too_many_requests.html")
    assert (await refusal()).code == "VIDEO_BLOCKED"
    youtube.show(player(), captions=b"")
    assert (await refusal()).code == "VIDEO_BLOCKED"
    for path, status, code in [
        ("/watch", 429, "VIDEO_BLOCKED"),
        ("/watch", 503, "VIDEO_UNREACHABLE"),
        ("/youtubei/v1/player", 500, "VIDEO_UNREACHABLE"),
    ]:
        youtube.show(player())
        youtube.answers[path] = (status, b"")
        refused = await refusal()
        assert (refused.code, refused.retryable) == (code, code == "VIDEO_UNREACHABLE"), path
    for body in (b"", b"<html>", b"[]", b'{"playabilityStatus": 1}', b'{"captions": 7, "playabilityStatus": {}}'):
        youtube.show(body)
        assert (await refusal()).code == "VIDEO_BLOCKED", body


async def test_live_and_long_videos(youtube: YouTube) -> None:
    youtube.show(player(videoDetails={"isLive": True}))
    assert (await refusal()).code == "VIDEO_IS_LIVE"
    youtube.show({"playabilityStatus": {"status": "LIVE_STREAM_OFFLINE", "reason": "Starts in 2 hours"}})
    assert (await refusal()).code == "VIDEO_IS_LIVE"
    youtube.show(player(videoDetails={"lengthSeconds": str(3 * 3600 + 60)}))
    assert (await captions()).facts.duration_seconds == 10_860
    refused = await refusal(max_minutes=180)
    assert (refused.code, refused.context) == ("VIDEO_TOO_LONG", {"minutes": 181, "limit_minutes": 180})


async def test_who_is_refused_asks_through_the_proxy(youtube: YouTube, behind_proxy: YouTube) -> None:
    youtube.show(asset("youtube_request_blocked.innertube.json"))
    found = await captions(proxy_url=behind_proxy.url)
    assert (found.language, len(behind_proxy.requests)) == ("en", 3)
    # Not needed, not used.
    behind_proxy.requests.clear()
    youtube.show(player())
    await captions(proxy_url=behind_proxy.url)
    youtube.show(asset("youtube_video_unavailable.innertube.json"))
    assert (await refusal(proxy_url=behind_proxy.url)).code == "VIDEO_UNAVAILABLE"
    assert behind_proxy.requests == []
    # Refused there as well.
    for one in (youtube, behind_proxy):
        one.show(asset("youtube_request_blocked.innertube.json"))
    assert (await refusal(proxy_url=behind_proxy.url)).code == "VIDEO_BLOCKED"
    # Down.
    refused = await refusal(proxy_url="http://user:secret@127.0.0.1:9")
    assert (refused.code, "secret" in refused.detail) == ("VIDEO_UNREACHABLE", False)


async def test_no_other_host_is_asked(youtube: YouTube) -> None:
    """Whatever the answer of the player says: the caption's address is taken from it."""
    for url in ("https://evil.example/x", "http://www.youtube.com/x", "https://169.254.169.254/latest"):
        tracks = [{**track("en"), "baseUrl": url}]
        youtube.show(player(captions={"playerCaptionsTracklistRenderer": {"captionTracks": tracks}}))
        youtube.requests.clear()
        assert (await refusal()).code == "VIDEO_BLOCKED"
        assert {host for host, _ in youtube.requests} == {"www.youtube.com"}
        assert youtube.paths() == ["/watch", "/youtubei/v1/player"]


async def sound(folder: Path, *, max_minutes: int = 240, max_mb: int = 100, proxy_url: str = "") -> Audio:
    async def on_progress(percent: float) -> None:
        assert 0 <= percent <= 100

    limits = DownloadLimits(max_minutes, max_mb)
    return await download_audio(ID, folder, limits, proxy_url=proxy_url, on_progress=on_progress)


async def no_sound(folder: Path, **options: Any) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await sound(folder, **options)
    return caught.value


async def test_the_sound_of_a_video_is_downloaded(youtube: YouTube, tmp_path: Path) -> None:
    """As far as an imitation goes: the real one also asks for scripts to be run, which nobody can hold still."""
    youtube.show_sound(encoded("ipod", "aac", 3.0))
    found = await sound(tmp_path)
    assert found.path.read_bytes() == youtube.audio
    assert (found.path.parent, found.duration_seconds) == (tmp_path, 316)
    assert found.title == "Surface Go Review - It’s Awesome"
    assert ("rr1---sn-test.googlevideo.com", "/videoplayback") in youtube.requests


async def test_what_has_no_sound_to_give_says_why(youtube: YouTube, tmp_path: Path) -> None:
    audio = encoded("ipod", "aac", 3.0)
    youtube.show_sound(audio)
    assert (await no_sound(tmp_path, max_minutes=5)).code == "VIDEO_TOO_LONG"
    youtube.show_sound(audio, videoDetails={"isLive": True, "isLiveContent": True})
    assert (await no_sound(tmp_path)).code == "VIDEO_IS_LIVE"
    for name, code in [
        ("youtube_request_blocked", "VIDEO_BLOCKED"),
        ("youtube_video_unavailable", "VIDEO_UNAVAILABLE"),
        ("youtube_transcripts_disabled", "VIDEO_AUDIO_UNAVAILABLE"),
    ]:
        youtube.show(asset(f"{name}.innertube.json"))
        refused = await no_sound(tmp_path, max_minutes=400)
        assert refused.code == code, refused
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("audio")] == []


async def test_the_sound_comes_through_the_proxy_where_it_is_refused(
    youtube: YouTube, behind_proxy: YouTube, tmp_path: Path
) -> None:
    youtube.show(asset("youtube_request_blocked.innertube.json"))
    behind_proxy.show_sound(encoded("ipod", "aac", 3.0))
    assert (await sound(tmp_path, proxy_url=behind_proxy.url)).path.read_bytes() == behind_proxy.audio
    refused = await no_sound(tmp_path, proxy_url="http://user:secret@127.0.0.1:9")
    assert (refused.code, "secret" in refused.detail) == ("VIDEO_UNREACHABLE", False), refused.detail


async def test_a_download_that_is_cancelled_ends_at_once(youtube: YouTube, tmp_path: Path) -> None:
    youtube.show_sound(bytes(50_000_000))
    youtube.pace_seconds = 0.05
    downloading = asyncio.create_task(sound(tmp_path))
    while "/videoplayback" not in youtube.paths():
        await asyncio.sleep(0.05)
        assert not downloading.done()
    asked = time.monotonic()
    downloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await downloading
    assert time.monotonic() - asked < 3


def test_the_assets_are_as_they_were() -> None:
    """The tests above lean on what lies in the wheel."""
    assert json.loads(asset("youtube.innertube.json"))["videoDetails"]["videoId"] == ID
