"""Takes back the files that were sent for a job which the provider then did not take."""

from contextlib import suppress
from typing import Any
from uuid import UUID

from backend.providers.tuning.base import TuningError, TuningProvider


async def take_back(provider: TuningProvider, our_id: UUID, state: dict[str, Any]) -> None:
    """Deletes the files named in `state`, unless a job of ours uses them. Raises nothing: what led here is raised."""
    with suppress(TuningError):
        if await provider.find(our_id) is None:
            await provider.forget("", state)
