"""Fine-tuning at OpenAI, through its SDK."""

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from backend.providers.answers import quoted
from backend.providers.llm.base import ChatMessage
from backend.providers.tuning.base import (
    JOB_ID_KEY,
    Estimate,
    ProviderAnswerBroken,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnavailable,
    Status,
    Submission,
    TuningJob,
    TuningProgress,
)
from backend.providers.tuning.chat import text_of
from backend.providers.tuning.hyperparameters import on_the_wire
from backend.providers.tuning.rest import ANSWER_SECONDS, SECONDS, UPLOAD_SECONDS, error_of
from backend.providers.tuning.withdrawal import take_back

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_STATUSES: Final[dict[str, Status]] = {
    "validating_files": "preparing",
    "queued": "queued",
    "running": "training",
    "paused": "training",
    "succeeded": "completed",
    "failed": "error",
    "cancelled": "cancelled",
}
_PAGES: Final = 20
_STEP = re.compile(r"Step (\d+)/(\d+)")
_SUFFIX_CHARACTERS: Final = 64


class OpenAITuning:
    """TuningProvider. The SDK repeats creates without an idempotency key, so it is told to try once."""

    name = "openai"

    def __init__(self, key: str, base_url: str, *, seconds: float = SECONDS) -> None:
        self._key = key
        self._base_url = base_url
        self._seconds = seconds
        self._client: AsyncOpenAI | None = None

    def __repr__(self) -> str:
        return "OpenAITuning()"

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def submit(self, job: TuningJob) -> Submission:
        training = await self._upload(job.training_file, f"{job.our_id}.jsonl")
        files = [training]
        optional: dict[str, Any] = {}
        if job.validation_file is not None:
            files.append(await self._upload(job.validation_file, f"{job.our_id}-validation.jsonl"))
            optional["validation_file"] = files[1]
        if job.suffix:
            optional["suffix"] = job.suffix[:_SUFFIX_CHARACTERS]
        if job.seed is not None:
            optional["seed"] = job.seed
        supervised: Any = {}
        if job.hyperparameters:
            supervised["hyperparameters"] = on_the_wire(self.name, job.hyperparameters)
        try:
            with self._errors():
                created = await self._connected().fine_tuning.jobs.create(
                    model=job.model,
                    training_file=training,
                    metadata={JOB_ID_KEY: str(job.our_id)},
                    method={"type": "supervised", "supervised": supervised},
                    **optional,
                )
        except (ProviderRefused, ProviderRateLimited):
            await take_back(self, job.our_id, {"files": files})
            raise
        return Submission(self._text(self._fields(created), "id"), {"files": files})

    async def find(self, our_id: UUID) -> Submission | None:
        """By the metadata that `submit` gave; checked here as well, for a server that ignores the filter."""
        wanted = {JOB_ID_KEY: str(our_id)}
        with self._errors():
            page = await self._connected().fine_tuning.jobs.list(metadata=dict(wanted), limit=100)
            for _ in range(_PAGES):
                for item in page.data or []:
                    fields = self._fields(item)
                    if (fields.get("metadata") or {}).get(JOB_ID_KEY) == str(our_id):
                        files = [fields.get("training_file"), fields.get("validation_file")]
                        return Submission(self._text(fields, "id"), {"files": [file for file in files if file]})
                if not page.has_next_page():
                    return None
                page = await page.get_next_page()
        return None

    async def poll(self, external_id: str, state: dict[str, Any]) -> TuningProgress:
        with self._errors():
            fields = self._fields(await self._connected().fine_tuning.jobs.retrieve(external_id))
        said = self._text(fields, "status")
        status = _STATUSES.get(said)
        if status is None:
            raise self._broken(f"unknown status '{said}'")
        metrics = await self._metrics(external_id) if status in ("training", "completed") else {}
        model = fields.get("fine_tuned_model")
        if status == "completed" and not model:
            raise self._broken("a job that succeeded without a model")
        failure = fields.get("error")
        words = failure.get("message") if isinstance(failure, dict) else None
        return TuningProgress(
            status=status,
            progress=_percent(status, metrics),
            metrics=metrics,
            result_model=model if status == "completed" else None,
            error_message=quoted(words or "The job failed without a reason", self._key) if status == "error" else None,
            trained_tokens=fields.get("trained_tokens"),
            state=state,
        )

    async def cancel(self, external_id: str) -> None:
        try:
            with self._errors():
                await self._connected().fine_tuning.jobs.cancel(external_id)
        except ProviderRefused as error:
            # 400 and 409 are its answers for a job that has ended.
            if error.provider_status not in (400, 409):
                raise

    async def forget(self, external_id: str, state: dict[str, Any]) -> None:
        for file in state.get("files", ()):
            try:
                with self._errors():
                    await self._connected().files.delete(file)
            except ProviderRefused as error:
                if error.provider_status != 404:
                    raise

    async def estimate(self, job: TuningJob) -> Estimate:
        return Estimate(
            cents=None,
            currency="USD",
            reasoning=(
                "OpenAI bills the tokens of the training file times the epochs.",
                "The price is on its pricing page; the job says the tokens that it billed once it has ended.",
            ),
        )

    async def answer(
        self, model: str, messages: Sequence[ChatMessage], *, max_tokens: int = 512, temperature: float = 0.0
    ) -> str:
        turns: Any = [{"role": message.role, "content": message.content} for message in messages]
        with self._errors():
            completion = await self._connected().chat.completions.create(
                model=model,
                messages=turns,
                max_tokens=max_tokens,
                temperature=temperature,
                timeout=ANSWER_SECONDS,
            )
        choices = self._fields(completion).get("choices") or [{}]
        content = (choices[0].get("message") or {}).get("content")
        if content is None:
            raise self._broken("an answer without a choice")
        return text_of(content)

    async def stream(
        self, model: str, messages: Sequence[ChatMessage], *, max_tokens: int = 512, temperature: float = 0.0
    ) -> AsyncIterator[str]:
        turns: Any = [{"role": message.role, "content": message.content} for message in messages]
        with self._errors():
            chunks = await self._connected().chat.completions.create(
                model=model,
                messages=turns,
                max_tokens=max_tokens,
                temperature=temperature,
                timeout=ANSWER_SECONDS,
                stream=True,
            )
            async with chunks:
                async for chunk in chunks:
                    if chunk.choices and (text := chunk.choices[0].delta.content):
                        yield text

    def _connected(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI  # here: it takes a second to import

        if self._client is None:
            self._client = AsyncOpenAI(api_key=self._key, base_url=self._base_url, max_retries=0, timeout=self._seconds)
        return self._client

    async def _upload(self, file: Path, name: str) -> str:
        with file.open("rb") as content, self._errors():
            sent = await self._connected().files.create(
                file=(name, content, "application/jsonl"), purpose="fine-tune", timeout=UPLOAD_SECONDS
            )
        return self._text(self._fields(sent), "id")

    async def _metrics(self, external_id: str) -> dict[str, float | int]:
        """What the newest metrics events say; events come newest first."""
        found: dict[str, float | int] = {}
        with self._errors():
            page = await self._connected().fine_tuning.jobs.list_events(external_id, limit=50)
        for event in page.data or []:
            fields = self._fields(event)
            data = fields.get("data") if isinstance(fields.get("data"), dict) else {}
            assert data is not None
            read = {
                "step": data.get("step"),
                "total_steps": data.get("total_steps"),
                "training_loss": data.get("train_loss"),
                "validation_loss": data.get("full_valid_loss") or data.get("valid_loss"),
            }
            if said := _STEP.search(str(fields.get("message") or "")):
                read["step"], read["total_steps"] = int(said[1]), int(said[2])
            for name, value in read.items():
                if isinstance(value, int | float) and name not in found:
                    found[name] = value
        return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import openai

        # `from None` throughout: the cause's text may echo the key, and would be printed with a traceback.
        try:
            yield
        except openai.APITimeoutError:
            raise ProviderUnavailable(self.name, "no answer in time") from None
        except openai.APIStatusError as error:
            raise error_of(
                self.name, error.status_code, self._words(error), error.response.headers.get("retry-after")
            ) from None
        except openai.APIConnectionError as error:
            raise ProviderUnavailable(self.name, quoted(error.__cause__ or error, self._key)) from None
        except (openai.OpenAIError, ValueError):
            raise self._broken("it is not what the API promises") from None

    def _words(self, error: "APIStatusError") -> str:
        body = error.body
        if isinstance(body, dict):
            inner = body.get("error", body)
            body = inner.get("message") or inner if isinstance(inner, dict) else inner
        return quoted(body or error.response.text or error.response.reason_phrase, self._key)

    def _fields(self, answer: Any) -> dict[str, Any]:
        """The SDK gives a bare text where an answer was no JSON, and leaves out what it lacked."""
        with suppress(AttributeError):
            fields = answer.to_dict()
            if isinstance(fields, dict):
                return fields
        raise self._broken("it is no JSON object")

    def _text(self, fields: dict[str, Any], name: str) -> str:
        value = fields.get(name)
        if not isinstance(value, str) or not value:
            raise self._broken(f"it has no {name}")
        return value

    def _broken(self, what: str) -> ProviderAnswerBroken:
        return ProviderAnswerBroken(self.name, what)


def _percent(status: Status, metrics: dict[str, float | int]) -> float | None:
    if status == "completed":
        return 100.0
    step, total = metrics.get("step"), metrics.get("total_steps")
    if step is None or not total:
        return None
    return min(99.0, 100.0 * step / total)
