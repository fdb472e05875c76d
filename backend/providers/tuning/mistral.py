"""Fine-tuning at Mistral, by its REST API: the SDK has no fine-tuning any more.

Shapes: the OpenAPI description that Mistral publishes (paths /v1/files and /v1/fine_tuning/jobs). A job is made with
`auto_start` false; once it is VALIDATED its cost is known, and `poll` starts it.
"""

from typing import Any, Final
from uuid import UUID

from backend.providers.answers import quoted
from backend.providers.tuning.base import (
    Estimate,
    ProviderRateLimited,
    ProviderRefused,
    Status,
    Submission,
    TuningJob,
    TuningProgress,
)
from backend.providers.tuning.chat import RestChat
from backend.providers.tuning.hyperparameters import on_the_wire
from backend.providers.tuning.rest import SECONDS, RestClient
from backend.providers.tuning.withdrawal import take_back

_STATUSES: Final[dict[str, Status]] = {
    "QUEUED": "queued",
    "STARTED": "preparing",
    "VALIDATING": "preparing",
    "VALIDATED": "preparing",
    "RUNNING": "training",
    "CANCELLATION_REQUESTED": "training",
    "SUCCESS": "completed",
    "FAILED_VALIDATION": "error",
    "FAILED": "error",
    "CANCELLED": "cancelled",
}
_CHAT: Final = "v1/chat/completions"
_JOBS: Final = "v1/fine_tuning/jobs"
_SUFFIX_CHARACTERS: Final = 18
_PAGES, _PAGE_SIZE = 20, 100


class MistralTuning(RestChat):
    """TuningProvider. A job keeps nothing of ours, so the training file carries our job id in its name."""

    name = "mistral"

    def __init__(self, key: str, base_url: str, *, seconds: float = SECONDS) -> None:
        self._key = key
        self._rest = RestClient(self.name, base_url, key, seconds=seconds)
        self._chat_client, self._chat_path = self._rest, _CHAT

    def __repr__(self) -> str:
        return "MistralTuning()"

    async def aclose(self) -> None:
        await self._rest.aclose()

    async def submit(self, job: TuningJob) -> Submission:
        files = [await self._upload(job, validation=False)]
        body: dict[str, Any] = {
            "model": job.model,
            "training_files": [{"file_id": files[0], "weight": 1}],
            "hyperparameters": on_the_wire(self.name, job.hyperparameters),
            "auto_start": False,
            "job_type": "completion",
        }
        if job.validation_file is not None:
            files.append(await self._upload(job, validation=True))
            body["validation_files"] = [files[1]]
        if job.suffix:
            body["suffix"] = job.suffix[:_SUFFIX_CHARACTERS]
        try:
            created = await self._rest.call("POST", _JOBS, body=body)
        except (ProviderRefused, ProviderRateLimited):
            await take_back(self, job.our_id, {"files": files})
            raise
        return Submission(self._rest.text_in(created, "id"), {"files": files})

    async def find(self, our_id: UUID) -> Submission | None:
        listed = await self._rest.call("GET", "v1/files", query={"search": str(our_id), "page_size": _PAGE_SIZE})
        files = [
            str(item.get("id")) for item in self._items(listed) if str(item.get("filename", "")).startswith(str(our_id))
        ]
        if not files:
            return None
        for page in range(_PAGES):
            jobs = self._items(await self._rest.call("GET", _JOBS, query={"page": page, "page_size": _PAGE_SIZE}))
            for item in jobs:
                if set(item.get("training_files") or ()) & set(files):
                    return Submission(self._rest.text_in(item, "id"), {"files": files})
            if len(jobs) < _PAGE_SIZE:
                return None
        return None

    async def poll(self, external_id: str, state: dict[str, Any]) -> TuningProgress:
        job = await self._rest.call("GET", f"{_JOBS}/{external_id}")
        said = self._rest.text_in(job, "status")
        if said not in _STATUSES:
            raise self._rest.broken(f"unknown status '{said}'")
        if said == "VALIDATED":
            state = {**state, **_cost(job)}
            await self._start(external_id)
        status, metrics = _STATUSES[said], _metrics(job)
        model = job.get("fine_tuned_model")
        if status == "completed" and not model:
            raise self._rest.broken("a job that succeeded without a model")
        return TuningProgress(
            status=status,
            progress=_percent(status, metrics),
            metrics=metrics,
            result_model=model if status == "completed" else None,
            error_message=quoted(_failure(job), self._key) if status == "error" else None,
            trained_tokens=job.get("trained_tokens"),
            state=state,
        )

    async def cancel(self, external_id: str) -> None:
        # Its answers for a job that has ended.
        await self._rest.call_unless_refused("POST", f"{_JOBS}/{external_id}/cancel", (400, 409, 422))

    async def forget(self, external_id: str, state: dict[str, Any]) -> None:
        for file in state.get("files", ()):
            await self._rest.call_unless_refused("DELETE", f"v1/files/{file}", (404,))

    async def estimate(self, job: TuningJob) -> Estimate:
        return Estimate(
            cents=None,
            currency="EUR",
            reasoning=(
                "Mistral computes the cost of a job when it has validated its file, before it trains;",
                "the fine-tuning shows it from then on.",
            ),
        )

    async def _upload(self, job: TuningJob, *, validation: bool) -> str:
        file = job.validation_file if validation else job.training_file
        assert file is not None
        # What finds the job again is the training file; the other is told apart by its end.
        name = f"validation-{job.our_id}.jsonl" if validation else f"{job.our_id}.jsonl"
        sent = await self._rest.upload("v1/files", file, name=name, fields={"purpose": "fine-tune"})
        return self._rest.text_in(sent, "id")

    async def _start(self, external_id: str) -> None:
        # 409: an earlier start was taken while its answer was lost.
        await self._rest.call_unless_refused("POST", f"{_JOBS}/{external_id}/start", (409,))

    def _items(self, listed: dict[str, Any]) -> list[dict[str, Any]]:
        items = listed.get("data")
        if not isinstance(items, list):
            raise self._rest.broken("a list without data")
        return [item for item in items if isinstance(item, dict)]


def _cost(job: dict[str, Any]) -> dict[str, Any]:
    """What Mistral wants for the job, known from its validation on."""
    metadata = job.get("metadata") or {}
    if metadata.get("cost") is None:
        return {}
    return {"cost": {"amount": metadata["cost"], "currency": metadata.get("cost_currency") or "EUR"}}


def _metrics(job: dict[str, Any]) -> dict[str, float | int]:
    points = [point for point in job.get("checkpoints") or [] if isinstance(point, dict)]
    last = max(points, key=lambda point: point.get("step_number") or 0, default={})
    losses = last.get("metrics") or {}
    read = {
        "step": last.get("step_number"),
        "total_steps": (job.get("hyperparameters") or {}).get("training_steps"),
        "training_loss": losses.get("train_loss"),
        "validation_loss": losses.get("valid_loss"),
    }
    return {name: value for name, value in read.items() if isinstance(value, int | float)}


def _percent(status: Status, metrics: dict[str, float | int]) -> float | None:
    if status == "completed":
        return 100.0
    step, total = metrics.get("step"), metrics.get("total_steps")
    if step is None or not total:
        return None
    return min(99.0, 100.0 * step / total)


def _failure(job: dict[str, Any]) -> str:
    """The newest event that gives a reason; the data of events is free."""
    events = [event for event in job.get("events") or [] if isinstance(event, dict)]
    for event in sorted(events, key=lambda event: event.get("created_at") or 0, reverse=True):
        data = event.get("data") or {}
        for name in ("error", "message", "reason", "detail"):
            if data.get(name):
                return str(data[name])
    return f"The job ended as {job.get('status')} without a reason"
