"""The jobs: an uploaded recording to text, and a video to text by its captions or else by its sound."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backend.contents.languages import LANGUAGES
from backend.contents.models import Content
from backend.contents.transcription import keeping
from backend.contents.transcription.decoding import Samples, decode
from backend.contents.transcription.recognition import OnProgress, Recognition, recognise, require_installed
from backend.contents.transcription.transcripts import Transcript, transcript_of
from backend.contents.work_folders import own_folder
from backend.jobs.running import JobRun
from backend.projects import queries as project_queries
from backend.providers.youtube.addresses import video_id
from backend.providers.youtube.audio import DownloadLimits, download_audio
from backend.providers.youtube.captions import find_captions
from backend.providers.youtube.errors import VideoBlocked, VideoHasNoCaptions
from backend.storage import BlobNotFound, Storage

# An hour of the worst sound that YouTube has is some 30 MB, of the best 120.
_MB_PER_MINUTE: Final = 4


@dataclass(frozen=True, slots=True)
class VideoNeeds:
    """How videos are asked for. `languages`: the most wished first."""

    languages: Sequence[str]
    max_minutes: int
    proxy_url: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What the jobs need besides their content. Sound on its way lies in `folder`."""

    recognition: Recognition
    videos: VideoNeeds
    folder: Path
    max_minutes: int
    max_project_mb: int


async def transcribe(run: JobRun, storage: Storage, needs: Needs) -> dict[str, Any]:
    """Writes down an uploaded recording; running it again leaves one text.

    Raises AudioBroken, AudioTooLong, and what `recognise` raises.
    """
    content = await keeping.begin(run)
    if content is None:
        return {"deleted": True}
    require_installed(needs.recognition.engine)
    with own_folder(needs.folder, str(run.claim.public_id)) as folder:
        recording = folder / "recording"
        await run.progress(1, "Reading the recording", force=True)
        try:
            await storage.save_to(content.file_key, recording)
        except BlobNotFound:
            return {"deleted": True}
        samples = await decode(
            recording, folder / "samples", mime_type=content.mime_type, max_minutes=needs.max_minutes
        )
        recording.unlink()
        return await _written_down(run, storage, content, samples, folder, needs, first=5.0, title=None)


async def transcribe_video(run: JobRun, storage: Storage, needs: Needs) -> dict[str, Any]:
    """A video to text: captions, else its sound. Raises the errors of `youtube.errors`, and as `transcribe`."""
    content = await keeping.begin(run)
    if content is None or content.url is None:
        return {"deleted": True}
    video = video_id(content.url)
    await run.progress(1, "Asking YouTube for captions", force=True)
    with own_folder(needs.folder, str(run.claim.public_id)) as folder:
        try:
            own = await _own_language(run)
            captions = await find_captions(
                video,
                languages=list(dict.fromkeys([*([own] if own else []), *needs.videos.languages])),
                max_minutes=needs.videos.max_minutes,
                proxy_url=needs.videos.proxy_url,
            )
        except (VideoHasNoCaptions, VideoBlocked):
            return await _hear_video(run, storage, content, video, folder, needs)
        await run.progress(80, "Storing the transcript", force=True)
        return await _kept(run, storage, content, transcript_of(captions), folder, needs)


async def _own_language(run: JobRun) -> str | None:
    """The `language` of the project's config, where it is one that is known."""
    async with run.reading() as session:
        own = (await project_queries.get_by_id(session, run.project_id)).config.get("language")
    return own if isinstance(own, str) and own in LANGUAGES else None


async def _hear_video(
    run: JobRun, storage: Storage, content: Content, video: str, folder: Path, needs: Needs
) -> dict[str, Any]:
    async def downloaded(percent: float) -> None:
        await run.progress(2 + 0.18 * percent, "Downloading the video's sound")

    require_installed(needs.recognition.engine)
    limits = DownloadLimits(needs.videos.max_minutes, _MB_PER_MINUTE * needs.videos.max_minutes)
    await run.progress(2, "No captions: asking YouTube for the video's sound", force=True)
    audio = await download_audio(video, folder, limits, proxy_url=needs.videos.proxy_url, on_progress=downloaded)
    await run.progress(20, "Reading the sound", force=True)
    samples = await decode(
        audio.path, folder / "samples", mime_type="audio/unknown", max_minutes=needs.videos.max_minutes
    )
    audio.path.unlink()
    return await _written_down(run, storage, content, samples, folder, needs, first=25.0, title=audio.title)


async def _written_down(
    run: JobRun,
    storage: Storage,
    content: Content,
    samples: Samples,
    folder: Path,
    needs: Needs,
    *,
    first: float,
    title: str | None,
) -> dict[str, Any]:
    report = _from(run, first)
    language = await _own_language(run)
    found = await recognise(run, content, samples, folder, needs.recognition, report, language=language)
    transcript = Transcript(found.segments, found.language, found.source, found.duration_seconds, title)
    return await _kept(run, storage, content, transcript, folder, needs)


def _from(run: JobRun, first: float) -> OnProgress:
    """Progress of a part of the job that begins at `first` percent and ends at 98."""

    async def report(percent: float, message: str) -> None:
        await run.progress(first + percent * (98 - first) / 100, message)

    return report


async def _kept(
    run: JobRun, storage: Storage, content: Content, transcript: Transcript, folder: Path, needs: Needs
) -> dict[str, Any]:
    characters = await keeping.keep(run, storage, content, transcript, folder, max_project_mb=needs.max_project_mb)
    if characters is None:
        return {"deleted": True}
    return {"content_id": content.id, "character_count": characters, **transcript.meta()}
