"""The audio of a YouTube video, downloaded by a child that can be stopped at any moment."""

import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from backend.kit.child_process import run_child
from backend.kit.errors import DomainError
from backend.providers.youtube.errors import (
    VideoAgeRestricted,
    VideoAudioUnavailable,
    VideoBlocked,
    VideoIsLive,
    VideoIsPlaylist,
    VideoTooLarge,
    VideoTooLong,
    VideoUnavailable,
    VideoUnreachable,
)

log = logging.getLogger(__name__)

Progress = Callable[[float], Awaitable[None]]
_SOURCE_ROOT: Final = Path(__file__).resolve().parents[3]
# What a downloader needs of the environment; nothing of it is a secret of the service.
_VARIABLES: Final = frozenset(
    "PATH HOME TMPDIR LANG SSL_CERT_FILE SSL_CERT_DIR HTTPS_PROXY HTTP_PROXY ALL_PROXY NO_PROXY "
    "https_proxy http_proxy all_proxy no_proxy".split()
)
_GRACE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """How long a video and how large its audio may be."""

    max_minutes: int
    max_mb: int


@dataclass(frozen=True, slots=True)
class Audio:
    """A file in whatever form YouTube has it; `duration_seconds` is YouTube's word."""

    path: Path
    title: str | None
    duration_seconds: float | None


async def download_audio(
    video: str, folder: Path, limits: DownloadLimits, *, proxy_url: str = "", on_progress: Progress
) -> Audio:
    """Downloads into `folder`, which nobody else writes to; `on_progress` gets percents.

    Directly; through the proxy, if there is one, when YouTube refuses or cannot be reached. Raises the errors of
    `youtube.errors`.
    """
    try:
        return await _download(video, folder, limits, "", on_progress)
    except (VideoBlocked, VideoUnreachable, VideoAudioUnavailable):
        if not proxy_url:
            raise
    return await _download(video, folder, limits, proxy_url, on_progress)


async def _download(video: str, folder: Path, limits: DownloadLimits, proxy_url: str, on_progress: Progress) -> Audio:
    last: dict[str, Any] = {}

    async def read(line: bytes) -> None:
        nonlocal last
        try:
            last = dict(json.loads(line))
        except (ValueError, TypeError):
            return
        if "percent" in last:
            await on_progress(float(last["percent"]))

    request = {
        "video": video,
        "folder": str(folder),
        "max_minutes": limits.max_minutes,
        "max_bytes": limits.max_mb * 1024 * 1024,
    }
    environment = {name: value for name, value in os.environ.items() if name in _VARIABLES}
    environment |= {"PYTHONPATH": str(_SOURCE_ROOT), "PYTHONUTF8": "1", "YOUTUBE_PROXY_URL": proxy_url}
    exit_code, complaints = await run_child(
        [sys.executable, "-PB", "-m", "backend.providers.youtube", json.dumps(request)],
        read,
        environment=environment,
        grace_seconds=_GRACE_SECONDS,
    )
    if exit_code != 0 or not ("failure" in last or "file" in last):
        log.error("the download of video %s ended with %d: %s", video, exit_code, _without(complaints, proxy_url))
        raise VideoAudioUnavailable(reason="the download failed; the worker's log says how")
    if "failure" in last:
        raise _translated({**last, "words": _without(str(last["words"]), proxy_url)}, limits)
    return Audio(Path(last["file"]), last["title"], last["duration_seconds"])


def _without(words: str, proxy_url: str) -> str:
    """What is said, without the name and password that a proxy's address may hold."""
    userinfo, at, _ = urlsplit(proxy_url).netloc.rpartition("@")
    return words.replace(userinfo + at, "") if at else words


def _translated(report: dict[str, Any], limits: DownloadLimits) -> DomainError:
    words = report["words"]
    said = f'it says "{words}".' if words else "it does not say why."
    match report["failure"]:
        case "age":
            return VideoAgeRestricted()
        case "blocked":
            return VideoBlocked(reason=f"For the audio {said}")
        case "live":
            return VideoIsLive()
        case "playlist":
            return VideoIsPlaylist()
        case "too_long":
            return VideoTooLong(minutes=report["minutes"], limit_minutes=limits.max_minutes)
        case "too_large":
            return VideoTooLarge(limit_mb=limits.max_mb)
        case "unavailable":
            return VideoUnavailable(reason=said)
        case "unreachable":
            return VideoUnreachable(reason=words)
    return VideoAudioUnavailable(reason=words or "no reason is given")
