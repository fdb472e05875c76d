"""Where contents that are heard rather than read go to be written down.

This installation has nobody who does that yet, and says so; a transcription takes the place of these two functions.
"""

from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents.errors import TranscriptionNotAvailable
from backend.contents.models import Content
from backend.jobs.models import Job
from backend.kit.broker import Broker


async def start_transcription(session: AsyncSession, broker: Broker, content: Content) -> Job:
    """Enqueues the transcription of a stored audio or video file. Raises TranscriptionNotAvailable."""
    raise TranscriptionNotAvailable()


async def start_youtube(session: AsyncSession, broker: Broker, content: Content) -> Job:
    """Enqueues the fetch of a video's captions or sound. Raises TranscriptionNotAvailable."""
    raise TranscriptionNotAvailable()
