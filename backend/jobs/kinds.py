"""The kinds of jobs: their queue, how often they are tried, and what must happen when one ends."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs.models import Job

# Called in the transaction that ends the job, so that the job and what it is about never disagree.
Ending = Callable[[AsyncSession, Job], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class JobKind:
    """`name` is the contract's job type and the Celery task's name."""

    name: str
    queue: str
    max_attempts: int = 5
    ending: Ending | None = None


_kinds: dict[str, JobKind] = {}


def register(kind: JobKind) -> JobKind:
    assert kind.name not in _kinds, f"job kind {kind.name} is registered twice"
    _kinds[kind.name] = kind
    return kind


def get(name: str) -> JobKind:
    return _kinds[name]


def names() -> list[str]:
    return sorted(_kinds)
