"""Runs a speech engine over the pieces of a recording, and keeps each piece that is done."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backend.contents.models import Content
from backend.contents.transcription import pieces
from backend.contents.transcription.decoding import Samples
from backend.contents.transcription.errors import AudioHasNoSpeech, TranscriptionFailed, TranscriptionNotAvailable
from backend.contents.transcription.pieces import Piece
from backend.contents.transcription.transcripts import SPEECH_SOURCE, Transcript
from backend.jobs.running import JobRun
from backend.kit.child_process import run_child
from backend.providers.base_models import ModelLibrary
from backend.providers.speech import models
from backend.providers.speech.base import Segment
from backend.providers.speech.models import Engine

log = logging.getLogger(__name__)

OnProgress = Callable[[float, str], Awaitable[None]]
# Where a content keeps its pieces until all are done.
PIECES: Final = "pieces"
_GRACE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Recognition:
    """Which engine hears, with which model, on what."""

    engine: Engine
    model: str
    models_dir: Path
    library: ModelLibrary
    device: str
    threads: int


def require_installed(engine: Engine) -> None:
    """Raises TranscriptionNotAvailable on a worker that lacks the engine's packages."""
    if not models.is_installed(engine):
        raise TranscriptionNotAvailable(engine=engine.name, extra=engine.extra)


async def recognise(
    run: JobRun,
    content: Content,
    samples: Samples,
    folder: Path,
    needs: Recognition,
    report: OnProgress,
    *,
    language: str | None = None,
) -> Transcript:
    """What is said in a recording. Pieces that an earlier run of the same recording and model did are not done again.

    `folder` is for files of this run; `report` gets percents of the whole and a message. `language` is ISO 639-1; None:
    it is detected. Cancelling ends the engine.
    Raises AudioHasNoSpeech, TranscriptionModelMissing, TranscriptionFailed.
    """
    cut = pieces.cut(samples)
    key = f"{needs.engine.name} {needs.model} {language} {samples.count}"
    done = await _kept(run, content.id, key)
    missing = [piece for piece in cut if str(piece.number) not in done]
    if missing:
        model = await _model(needs, report)
        language = language or next((item["language"] for item in done.values() if item["language"]), None)
        work = _Work(run, content.id, key, done, samples, report)
        await work.transcribe(missing, model, folder, needs, language)
    found = [done[str(piece.number)] for piece in cut]
    segments = [Segment(start, end, text) for item in found for start, end, text in item["segments"]]
    if not segments:
        raise AudioHasNoSpeech()
    language = next(item["language"] for item in found if item["language"])
    return Transcript(segments, language, SPEECH_SOURCE, samples.seconds)


async def _kept(run: JobRun, content_id: int, key: str) -> dict[str, Any]:
    """The pieces that are done, by their numbers; none if they are of another recording or model."""
    async with run.reading() as session:
        content = await session.get(Content, content_id)
    kept = {} if content is None else content.meta.get(PIECES, {})
    return dict(kept["done"]) if kept.get("key") == key else {}


async def _model(needs: Recognition, report: OnProgress) -> Path:
    """The model's folder, after a download if need be."""
    seen = (0, 0)

    def on_progress(done: int, total: int) -> None:
        nonlocal seen
        seen = (done, total)

    wanted = models.ensure_model(needs.engine, needs.model, needs.models_dir, needs.library, on_progress)
    fetching = asyncio.ensure_future(wanted)
    try:
        while not (await asyncio.wait({fetching}, timeout=1.0))[0]:
            done, total = seen
            if total:
                await report(0, f"Fetching the Whisper model, {done / 1e6:.0f} of {total / 1e6:.0f} MB")
    finally:
        if not fetching.done():
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
    return fetching.result()


@dataclass(slots=True)
class _Work:
    """One run of the engine's child; `done` fills up."""

    run: JobRun
    content_id: int
    key: str
    done: dict[str, Any]
    samples: Samples
    report: OnProgress
    error: dict[str, Any] | None = None

    async def transcribe(
        self, missing: Sequence[Piece], model: Path, folder: Path, needs: Recognition, language: str | None
    ) -> None:
        config = {
            "engine": needs.engine.name,
            "model": str(model),
            "audio": str(self.samples.path),
            "pieces": [[piece.number, piece.start, piece.end] for piece in missing],
            "language": language,
            "device": needs.device,
            "threads": needs.threads,
        }
        path = folder / "transcribe.config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        await self.report(0, "Loading the model")
        exit_code, complaints = await run_child(
            [sys.executable, "-m", "backend.trainers.transcribe", str(path)],
            self._read,
            environment=_environment(),
            grace_seconds=_GRACE_SECONDS,
        )
        if exit_code == 0:
            return
        log.error("the speech engine ended with %d: %s", exit_code, complaints)
        if self.error is not None:
            raise TranscriptionFailed(reason=str(self.error.get("error")))
        raise TranscriptionFailed(reason="The engine was ended, most likely for lack of memory.")

    async def _read(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            name = event["event"]
        except (ValueError, KeyError, TypeError):
            log.warning("the speech engine wrote a line that is no event: %r", line[:200])
            return
        if name == "piece":
            await self._keep(event)
        elif name == "spoken":
            seconds = float(event["seconds"])
            share = min(100.0, 100 * seconds / self.samples.seconds)
            message = f"Written down {_clock(seconds)} of {_clock(self.samples.seconds)}"
            await self.report(share, message)
        elif name == "error":
            self.error = event

    async def _keep(self, event: dict[str, Any]) -> None:
        """In the content's row, so that whichever worker takes the job up again finds it."""
        self.done[str(event["number"])] = {"language": event["language"], "segments": event["segments"]}
        async with self.run.writing() as session:
            content = await session.get(Content, self.content_id, populate_existing=True, with_for_update=True)
            if content is not None:
                content.meta = {**content.meta, PIECES: {"key": self.key, "done": self.done}}


def _environment() -> dict[str, str]:
    """The child ends itself when this process is no longer its parent."""
    own = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "TRAINER_PARENT_PID": str(os.getpid())}
    return {**os.environ, **own}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
