"""From the many forms of a YouTube address to the id of one video."""

import re
from typing import Final
from urllib.parse import parse_qs, urlsplit

from backend.providers.youtube.errors import VideoIsPlaylist, VideoUrlInvalid

_ID: Final = re.compile(r"[A-Za-z0-9_-]{11}")
_HOSTS: Final = frozenset(
    {
        "youtube.com",
        "www.youtube.com",
        "m.youtube.com",
        "music.youtube.com",
        "youtube-nocookie.com",
        "www.youtube-nocookie.com",
    }
)
_SHORT_HOSTS: Final = frozenset({"youtu.be", "www.youtu.be"})
# Where the id is the second part of the path.
_FOLDERS: Final = frozenset({"shorts", "embed", "live", "v", "e"})


def video_id(url: str) -> str:
    """The id of the one video that an address names, whatever list or time it names beside.

    Asks nobody. Raises VideoUrlInvalid, VideoIsPlaylist.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise VideoUrlInvalid() from error
    standard = {"http": (None, 80), "https": (None, 443)}.get(parts.scheme.lower(), ())
    if port not in standard or parts.username is not None or host not in _HOSTS | _SHORT_HOSTS:
        raise VideoUrlInvalid()
    query = parse_qs(parts.query, max_num_fields=100) if parts.query.count("&") < 100 else {}
    folder, _, rest = parts.path.lstrip("/").partition("/")
    if host in _SHORT_HOSTS:
        found = folder
    elif folder in _FOLDERS:
        found = rest.partition("/")[0]
    else:
        found = query.get("v", [""])[0] if folder == "watch" else ""
    if _ID.fullmatch(found) and found != "videoseries":
        return found
    if "list" in query and (not found or found == "videoseries"):
        raise VideoIsPlaylist()
    raise VideoUrlInvalid()


def watch_url(video: str) -> str:
    """The address under which a video is watched."""
    return f"https://www.youtube.com/watch?v={video}"
