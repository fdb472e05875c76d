"""The captions of a YouTube video in the language that is wished most, people's own before generated ones."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import requests
from requests.adapters import HTTPAdapter

from backend.kit.errors import DomainError
from backend.providers.speech.base import Segment
from backend.providers.youtube.errors import (
    VideoAgeRestricted,
    VideoBlocked,
    VideoHasNoCaptions,
    VideoIsLive,
    VideoTooLong,
    VideoUnavailable,
    VideoUnreachable,
)

if TYPE_CHECKING:
    from youtube_transcript_api import FetchedTranscript, Transcript

_TIMEOUT_SECONDS: Final = (10.0, 20.0)  # to connect, and between two packets
_PLAYER_PATH: Final = "/youtubei/v1/player"
_WORDS: Final = 200
# Such as [Music] or (applause): no speech.
_SOUND: Final = re.compile(r"[\[(♪][^\])]*[\])♪]")


@dataclass(slots=True)
class VideoFacts:
    """What YouTube says of a video beside its captions; None where it says nothing."""

    title: str | None = None
    duration_seconds: float | None = None
    is_live: bool = False


@dataclass(frozen=True, slots=True)
class Captions:
    """`language` is a BCP 47 tag; `is_generated`: written by YouTube's own speech recognition."""

    language: str
    is_generated: bool
    segments: list[Segment]
    facts: VideoFacts


async def find_captions(video: str, *, languages: Sequence[str], max_minutes: int, proxy_url: str = "") -> Captions:
    """Asks YouTube directly; through the proxy, if there is one, when it refuses or cannot be reached.

    `languages`: ISO 639-1 codes, the most wished first. Raises the errors of `youtube.errors`.
    """
    try:
        return await asyncio.to_thread(_fetch, video, languages, max_minutes, "")
    except (VideoBlocked, VideoUnreachable):
        if not proxy_url:
            raise
    return await asyncio.to_thread(_fetch, video, languages, max_minutes, proxy_url)


def _fetch(video: str, languages: Sequence[str], max_minutes: int, proxy_url: str) -> Captions:
    from youtube_transcript_api import YouTubeTranscriptApi

    facts = VideoFacts()
    # A session for each call: the library's objects are not for several threads.
    with requests.Session() as session:
        session.mount("https://", _OnlyYouTube(proxy_url))
        session.mount("http://", _OnlyYouTube(proxy_url))
        session.hooks["response"].append(lambda response, **_: _read_facts(response, facts))
        try:
            tracks = YouTubeTranscriptApi(http_client=session).list(video)
            _check(facts, max_minutes)
            track = _choose(list(tracks), languages)
            fetched = None if track is None else track.fetch()
        except DomainError:
            raise
        except Exception as error:  # the library also lets through what its parsing stumbles over
            _check(facts, max_minutes)
            raise _translated(error, languages) from error
    segments = [] if fetched is None else _segments(fetched)
    if fetched is None or not segments:
        raise VideoHasNoCaptions(languages=", ".join(languages))
    facts.duration_seconds = facts.duration_seconds or segments[-1].end
    _check(facts, max_minutes)
    return Captions(fetched.language_code, fetched.is_generated, segments, facts)


class _OnlyYouTube(HTTPAdapter):  # type: ignore[misc]  # requests has no types
    """Goes nowhere else, whatever an answer says, and does not wait for ever.

    A proxy that is named goes before that of the environment, which wins over a session's own.
    """

    def __init__(self, proxy_url: str) -> None:
        super().__init__()
        self._proxies = {"https": proxy_url} if proxy_url else None

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        parts = urlsplit(request.url or "")
        host = parts.hostname or ""
        if parts.scheme != "https" or not (host == "youtube.com" or host.endswith(".youtube.com")):
            raise requests.exceptions.InvalidURL(f"{host} is not YouTube")
        options["timeout"] = _TIMEOUT_SECONDS
        options["proxies"] = self._proxies or options.get("proxies")
        return super().send(request, *args, **options)


def _read_facts(response: requests.Response, facts: VideoFacts) -> None:
    """The library keeps only the captions of this answer."""
    if not response.ok or urlsplit(response.url).path != _PLAYER_PATH:
        return
    try:
        answer = response.json()
        details = answer.get("videoDetails") or {}
        status = (answer.get("playabilityStatus") or {}).get("status")
        facts.title = str(details["title"])[:_WORDS] if details.get("title") else None
        facts.duration_seconds = float(details.get("lengthSeconds") or 0) or None
        facts.is_live = bool(details.get("isLive")) or status == "LIVE_STREAM_OFFLINE"
    except (ValueError, AttributeError, TypeError):
        return  # the library says what is wrong with it


def _check(facts: VideoFacts, max_minutes: int) -> None:
    if facts.is_live:
        raise VideoIsLive()
    if facts.duration_seconds is not None and facts.duration_seconds > 60 * max_minutes:
        raise VideoTooLong(minutes=round(facts.duration_seconds / 60), limit_minutes=max_minutes)


def _choose(tracks: "Sequence[Transcript]", languages: Sequence[str]) -> "Transcript | None":
    """A wished language, people's own captions first; else those generated from what is spoken in the video.

    Captions that people wrote in another language are a translation: the audio is nearer to what was said.
    """
    for language in languages:
        for generated in (False, True):
            for track in tracks:
                if track.is_generated == generated and _base(track.language_code) == _base(language):
                    return track
    return next((track for track in tracks if track.is_generated), None)


def _base(language: str) -> str:
    return language.lower().partition("-")[0]


def _segments(fetched: "FetchedTranscript") -> list[Segment]:
    """Without empty lines and sounds; a line ends where the next begins, since they overlap on the screen."""
    spoken = [(line, " ".join(_SOUND.sub(" ", line.text).split())) for line in fetched]
    kept = [(line, text) for line, text in spoken if text]
    starts = [*(line.start for line, _ in kept[1:]), float("inf")]
    return [
        Segment(line.start, max(line.start, min(line.start + line.duration, following)), text)
        for (line, text), following in zip(kept, starts, strict=False)
    ]


def _translated(error: Exception, languages: Sequence[str]) -> DomainError:
    """The library's many errors as ours; its own sentences are for programmers."""
    import youtube_transcript_api as library

    if isinstance(error, library.AgeRestricted):
        return VideoAgeRestricted()
    if isinstance(error, library.TranscriptsDisabled | library.NoTranscriptFound):
        return VideoHasNoCaptions(languages=", ".join(languages))
    if isinstance(error, library.RequestBlocked):
        return VideoBlocked(reason="It takes the server for a program, as it does with most data centres.")
    if isinstance(error, library.PoTokenRequired | ParseError):
        # Nothing instead of captions is how it answers whom it does not trust.
        return VideoBlocked(reason="It wants a proof of a browser for these captions.")
    if isinstance(error, library.VideoUnplayable):
        words = " ".join([error.reason or "", *error.sub_reasons]).strip()
        return VideoUnavailable(reason=f'it says "{words[:_WORDS]}".' if words else "it does not say why.")
    if isinstance(error, library.VideoUnavailable | library.InvalidVideoId):
        return VideoUnavailable(reason="it was removed or never existed.")
    if isinstance(error, library.YouTubeRequestFailed):
        return VideoUnreachable(reason=error.reason.partition(" for url")[0][:_WORDS])
    if isinstance(error, requests.exceptions.InvalidURL):
        return VideoBlocked(reason="Its answer leads elsewhere.")
    if isinstance(error, requests.exceptions.Timeout):
        return VideoUnreachable(reason="it does not answer in time")
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return VideoBlocked(reason="It sends something else than a video.")
    if isinstance(error, requests.exceptions.RequestException):
        return VideoUnreachable(reason="no connection")
    return VideoBlocked(reason="It sends something else than a video.")
