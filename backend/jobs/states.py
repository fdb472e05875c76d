"""The states of a job and the moves between them."""

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"  # waits for a worker; also after a rescue or before a retry
    RUNNING = "running"  # claimed under a fence and a lease
    SUCCESS = "success"  # done, its effects are applied
    FAILED = "failed"  # gave up: error_code and error_message say why
    CANCELLED = "cancelled"  # somebody asked for it


MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCESS: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
LIVE = frozenset(state for state, targets in MOVES.items() if targets)
ENDED = frozenset(JobState) - LIVE


def sources_of(target: JobState) -> list[JobState]:
    """The states from which a job may move to `target`: the WHERE of every compare-and-swap."""
    return [state for state, targets in MOVES.items() if target in targets]
