"""What every provider of fine-tuning offers: the TuningProvider Protocol, its job and progress, and its errors."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from uuid import UUID

from backend.kit.errors import DomainError
from backend.providers.llm.base import ChatMessage

Status = Literal["queued", "preparing", "training", "completed", "cancelled", "error"]
ENDED: Final[frozenset[Status]] = frozenset({"completed", "cancelled", "error"})
JOB_ID_KEY: Final = "finetuneflow_job"  # the name of our job id in what a provider keeps for us


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningJob:
    """What is to be trained. The files are JSON lines in the provider's own format, already within its limits.

    `our_id` is the fine-tuning's public id: the provider keeps it, so that `find` sees a job that was accepted while
    its answer was lost. `hyperparameters` have the public names, which `hyperparameters.checked` has passed.
    """

    our_id: UUID
    model: str
    training_file: Path
    validation_file: Path | None = None
    suffix: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted job. `state` is a JSON object that `poll` wants back, as its last TuningProgress had it."""

    external_id: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningProgress:
    """What the provider says of a job now.

    `progress` is in percent, 0 to 100, and None where nothing is known. `metrics` may have training_loss,
    validation_loss, step, total_steps. `result_model` is set once it is completed, `error_message` holds the
    provider's own words once it failed.
    """

    status: Status
    progress: float | None = None
    metrics: dict[str, float | int] = field(default_factory=dict)
    result_model: str | None = None
    error_message: str | None = None
    trained_tokens: int | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will cost about, in cents of `currency`; None where the provider publishes no price.

    `reasoning` are sentences for people: what was counted, at which price, from which page.
    """

    cents: int | None
    currency: str
    reasoning: tuple[str, ...]


class TuningProvider(Protocol):
    """One user's access to a provider. Its methods raise TuningErrors only, in which no key ever stands."""

    @property
    def name(self) -> str:
        """The provider's name in the catalogue."""
        ...

    async def submit(self, job: TuningJob) -> Submission:
        """Sends the files and creates the job. Never tried twice in here: before another `submit`, ask `find`.

        After ProviderUnavailable or ProviderAnswerBroken the job may have been accepted all the same.
        """
        ...

    async def find(self, our_id: UUID) -> Submission | None:
        """The job that an earlier `submit` created; None when the provider knows of none."""
        ...

    async def poll(self, external_id: str, state: dict[str, Any]) -> TuningProgress:
        """What the provider says now. Where a job waits for a go-ahead after its validation, this gives it."""
        ...

    async def cancel(self, external_id: str) -> None:
        """Asks the provider to stop; what became of the job, `poll` tells. No error for a job that has ended."""
        ...

    async def forget(self, external_id: str, state: dict[str, Any]) -> None:
        """Deletes the files that were sent for a job; what is gone already is no error. The model stays."""
        ...

    async def estimate(self, job: TuningJob) -> Estimate:
        """What the job will cost about; nothing is created at the provider."""
        ...

    async def answer(
        self, model: str, messages: Sequence[ChatMessage], *, max_tokens: int = 512, temperature: float = 0.0
    ) -> str:
        """A fine-tuned model's answer to a conversation."""
        ...

    def stream(
        self, model: str, messages: Sequence[ChatMessage], *, max_tokens: int = 512, temperature: float = 0.0
    ) -> AsyncIterator[str]:
        """The same answer, piece by piece."""
        ...

    async def aclose(self) -> None:
        """Closes the connections."""
        ...


class TuningError(DomainError):
    """Base of what can go wrong with a provider. `words` are the provider's own, where it said something."""

    status = 502
    code = "PROVIDER_ERROR"
    template = "{provider} failed: {words}. Try again later"

    def __init__(self, provider: str, words: str, detail: str | None = None) -> None:
        super().__init__(detail, provider=provider, words=words)
        self.provider = provider
        self.words = words


class ProviderUnavailable(TuningError):
    """Not reached, timed out, cut off or 5xx. Trying later may help; a create may have been accepted."""

    status = 503
    code = "PROVIDER_UNAVAILABLE"
    retryable = True
    template = "{provider} cannot be reached or failed: {words}. Try again later"

    def __init__(self, provider: str, words: str) -> None:
        super().__init__(provider, words)


class ProviderRateLimited(TuningError):
    """429. `retry_after` is in seconds, None when the provider did not say."""

    status = 503
    code = "PROVIDER_RATE_LIMITED"
    retryable = True
    template = "{provider} limits the rate of requests: {words}. Try again later"

    def __init__(self, provider: str, words: str, retry_after: float | None) -> None:
        sooner = f"{provider} limits the rate of requests: {words}. Try again in {retry_after or 0:.0f} s"
        super().__init__(provider, words, None if retry_after is None else sooner)
        self.retry_after = retry_after
        self.context["retry_after"] = retry_after


class ProviderRefused(TuningError):
    """A refusal (400, 401, 403, 404, 409, 422): trying again will not help. `provider_status` is its HTTP status."""

    status = 400
    code = "PROVIDER_REFUSED"
    template = "{provider} refused: {words}."

    def __init__(self, provider: str, words: str, provider_status: int) -> None:
        advice = {
            401: f" Add a key of {provider} that is valid",
            403: f" Check what your account at {provider} may do",
        }.get(provider_status, "")
        super().__init__(provider, words, f"{provider} refused (status {provider_status}): {words}.{advice}")
        self.provider_status = provider_status
        self.context["provider_status"] = provider_status


class ProviderAnswerBroken(TuningError):
    """An answer that says nothing: no JSON, fields missing, or a status that is not known. Try a few times more."""

    code = "PROVIDER_ANSWER_BROKEN"
    retryable = True
    template = "The answer of {provider} cannot be understood: {words}. Try again later"

    def __init__(self, provider: str, words: str) -> None:
        super().__init__(provider, words)
