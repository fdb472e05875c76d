"""Entry of the child that downloads a video's audio: `python -m backend.providers.youtube REQUEST`.

REQUEST is the JSON object that `audio` makes; the proxy, whose address may hold a password, comes in YOUTUBE_PROXY_URL.
Prints one JSON object a line: `{"percent"}` as the download goes on,
then `{"file", "title", "duration_seconds"}` or `{"failure", "words"}`.
"""

import json
import os
import sys
from typing import Any

from backend.providers.youtube.addresses import watch_url

_WORDS = 200
# What yt-dlp says, in small letters, and what it means; the first that fits counts.
_FAILURES = (
    ("age", ("confirm your age", "age-restricted", "inappropriate for some users")),
    ("blocked", ("not a bot", "http error 429", "http error 403", "po token", "forbidden")),
    ("live", ("live event will begin", "premieres in", "is not currently live", "live stream")),
    (
        "unavailable",
        (
            "video unavailable",
            "is unavailable",
            "private video",
            "removed",
            "not available",
            "terminated",
            "members-only",
        ),
    ),
    (
        "unreachable",
        ("timed out", "unable to connect", "connection", "http error 5", "proxy", "resolve", "ssl", "player response"),
    ),
)
# The audio is only there for browsers that run YouTube's scripts: no failure of the video itself.
_NO_FORMAT = ("requested format is not available", "only images are available", "no video formats found")


class _Silent:
    """stdout belongs to the report; what is printed for people goes to stderr."""

    def debug(self, message: str) -> None:
        """Of no use to anybody here."""

    def warning(self, message: str) -> None:
        sys.stderr.write(message + "\n")

    error = warning


def main(request: dict[str, Any]) -> dict[str, Any]:
    # It takes a second to import, and has no place in a process that serves others.
    from yt_dlp import YoutubeDL
    from yt_dlp.utils import YoutubeDLError

    try:
        with YoutubeDL(_options(request)) as downloader:
            # The extractor's own address form: nothing of what a user wrote reaches it.
            info = downloader.extract_info(watch_url(request["video"]), download=False)
            if refusal := _refusal(info, request):
                return refusal
            done = downloader.process_ie_result(info, download=True)
            [download] = done.get("requested_downloads") or [{}]
            if not download.get("filepath"):
                return {"failure": "too_large", "words": ""}
            return {
                "file": download["filepath"],
                "title": str(info.get("title") or "")[:_WORDS] or None,
                "duration_seconds": info.get("duration"),
            }
    except YoutubeDLError as error:
        return _told(str(getattr(error, "msg", None) or error))


def _options(request: dict[str, Any]) -> dict[str, Any]:
    return {
        # A list, a search or the generic extractor would fetch whatever an address leads to.
        "allowed_extractors": ["youtube"],
        "noplaylist": True,
        # Speech needs no more than a telephone gives.
        "format": "bestaudio[abr<=80]/worstaudio/bestaudio/worst[acodec!=none]",
        "outtmpl": {"default": f"{request['folder']}/audio.%(ext)s"},
        "max_filesize": request["max_bytes"],
        "proxy": os.environ.get("YOUTUBE_PROXY_URL") or None,
        "logger": _Silent(),
        "noprogress": True,
        "progress_hooks": [_report],
        "cachedir": False,
        # Whoever names certificates means them; else those that come with the library.
        "compat_opts": {"no-certifi"} if os.environ.get("SSL_CERT_FILE") else set(),
        "fixup": "never",
        "socket_timeout": 20,
        "retries": 3,
        "fragment_retries": 3,
        "extractor_retries": 1,
        "overwrites": True,
    }


def _refusal(info: dict[str, Any], request: dict[str, Any]) -> dict[str, Any] | None:
    """Before a byte is downloaded."""
    if info.get("_type", "video") != "video":
        return {"failure": "playlist", "words": ""}
    if info.get("is_live") or info.get("live_status") in {"is_live", "is_upcoming", "post_live"}:
        return {"failure": "live", "words": ""}
    duration = info.get("duration") or 0
    if duration > 60 * request["max_minutes"]:
        return {"failure": "too_long", "words": "", "minutes": round(duration / 60)}
    return None


def _told(words: str) -> dict[str, Any]:
    words = words.removeprefix("ERROR: ").strip()
    small = words.lower().replace("’", "'")
    kind = "no_format" if any(part in small for part in _NO_FORMAT) else None
    kind = kind or next((name for name, parts in _FAILURES if any(part in small for part in parts)), "other")
    return {"failure": kind, "words": words.splitlines()[0][:_WORDS] if words else ""}


def _report(progress: dict[str, Any]) -> None:
    total = progress.get("total_bytes") or progress.get("total_bytes_estimate")
    if progress.get("status") == "downloading" and total:
        _print({"percent": round(100 * progress.get("downloaded_bytes", 0) / total, 1)})


def _print(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _print(main(json.loads(sys.argv[1])))
