"""The statuses of a fine-tuning and the moves between them."""

from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"  # waits for a worker, or for its provider
    PREPARING = "preparing"  # data and base model are made ready, or checked by the provider
    TRAINING = "training"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    ERROR = "error"  # error_message says why


_OVER = frozenset({Status.COMPLETED, Status.CANCELLED, Status.ERROR})
MOVES: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.PREPARING, Status.TRAINING}) | _OVER,
    Status.PREPARING: frozenset({Status.TRAINING}) | _OVER,
    # Back: a worker was lost, and another one takes the run up from its last checkpoint.
    Status.TRAINING: frozenset({Status.PREPARING}) | _OVER,
    Status.COMPLETED: frozenset(),
    Status.CANCELLED: frozenset(),
    Status.ERROR: frozenset(),
}
LIVE = frozenset(status for status, targets in MOVES.items() if targets)
ENDED = frozenset(Status) - LIVE
_WAY = (Status.QUEUED, Status.PREPARING, Status.TRAINING)


def sources_of(target: str) -> list[str]:
    """The statuses from which a run may come to `target`, itself included while it lives: the WHERE of a change."""
    return [status for status, targets in MOVES.items() if target in targets or (status == target and status in LIVE)]


def furthest(current: str, told: str) -> str:
    """What a run at a provider is, which never seems to go back, whatever the provider tells of its parts."""
    if current in ENDED:
        return current
    if told in ENDED:
        return told
    return max(current, told, key=lambda status: _WAY.index(Status(status)))
