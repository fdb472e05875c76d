"""Fine-tuning of open models at Together, by its REST API.

Shapes: docs.together.ai/reference/post-fine-tunes, get-fine-tunes, get-fine-tunes-id, get-fine-tunes-id-events,
post-fine-tunes-id-cancel and upload-file. LoRA is what it does by default, and what is asked for here.
"""

from pathlib import Path
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
    "pending": "queued",
    "queued": "queued",
    "running": "training",
    "compressing": "training",
    "uploading": "training",
    "cancel_requested": "training",
    "cancelled": "cancelled",
    "error": "error",
    "user_error": "error",
    "completed": "completed",
}
_CHAT: Final = "chat/completions"
_LORA: Final = ("lora_r", "lora_alpha", "lora_dropout")
_SUFFIX_CHARACTERS: Final = 64
# Training is over, the model is being packed.
_PACKING: Final = {"compressing": 95.0, "uploading": 97.0}


class TogetherTuning(RestChat):
    """TuningProvider. A job keeps nothing of ours, so the training file carries our job id in its name."""

    name = "together"

    def __init__(self, key: str, base_url: str, *, seconds: float = SECONDS) -> None:
        self._key = key
        self._rest = RestClient(self.name, base_url, key, seconds=seconds)
        self._chat_client, self._chat_path = self._rest, _CHAT

    def __repr__(self) -> str:
        return "TogetherTuning()"

    async def aclose(self) -> None:
        await self._rest.aclose()

    async def submit(self, job: TuningJob) -> Submission:
        files = [await self._upload(job.training_file, f"{job.our_id}.jsonl")]
        given = on_the_wire(self.name, job.hyperparameters)
        body: dict[str, Any] = {
            "model": job.model,
            "training_file": files[0],
            "training_method": {"method": "sft"},
            "training_type": {"type": "Lora", **{name: given.pop(name) for name in _LORA if name in given}},
        }
        if job.validation_file is not None:
            files.append(await self._upload(job.validation_file, f"validation-{job.our_id}.jsonl"))
            # Without evaluations it takes the file and never looks at it.
            body |= {"validation_file": files[1], "n_evals": 1}
        if job.suffix:
            body["suffix"] = job.suffix[:_SUFFIX_CHARACTERS]
        try:
            created = await self._rest.call("POST", "fine-tunes", body={**body, **given})
        except (ProviderRefused, ProviderRateLimited):
            await take_back(self, job.our_id, {"files": files})
            raise
        return Submission(self._rest.text_in(created, "id"), {"files": files})

    async def find(self, our_id: UUID) -> Submission | None:
        listed = self._items(await self._rest.call("GET", "files"))
        files = [str(item.get("id")) for item in listed if str(item.get("filename", "")).startswith(str(our_id))]
        if not files:
            return None
        for item in self._items(await self._rest.call("GET", "fine-tunes")):
            if item.get("training_file") in files:
                return Submission(self._rest.text_in(item, "id"), {"files": files})
        return None

    async def poll(self, external_id: str, state: dict[str, Any]) -> TuningProgress:
        job = await self._rest.call("GET", f"fine-tunes/{external_id}")
        said = self._rest.text_in(job, "status")
        status = _STATUSES.get(said)
        if status is None:
            raise self._rest.broken(f"unknown status '{said}'")
        events = [event for event in job.get("events") or [] if isinstance(event, dict)]
        if status == "training" and said == "running" and events and not _has_begun(events):
            status = "preparing"
        model = job.get("model_output_name")
        if status == "completed" and not model:
            raise self._rest.broken("a job that completed without a model")
        metrics = _metrics(events)
        return TuningProgress(
            status=status,
            progress=100.0 if status == "completed" else _PACKING.get(said, _percent(metrics)),
            metrics=metrics,
            result_model=model if status == "completed" else None,
            error_message=quoted(_failure(events), self._key) if status == "error" else None,
            trained_tokens=job.get("token_count"),
            state=state,
        )

    async def cancel(self, external_id: str) -> None:
        # Its answers for a job that has ended.
        await self._rest.call_unless_refused("POST", f"fine-tunes/{external_id}/cancel", (400, 409, 422))

    async def forget(self, external_id: str, state: dict[str, Any]) -> None:
        for file in state.get("files", ()):
            await self._rest.call_unless_refused("DELETE", f"files/{file}", (404,))

    async def estimate(self, job: TuningJob) -> Estimate:
        return Estimate(
            cents=None,
            currency="USD",
            reasoning=(
                "Together bills the tokens of the training file times the epochs, and those of each evaluation.",
                "It counts them, and says the price, once it has read the file; there is no least price.",
            ),
        )

    async def _upload(self, file: Path, name: str) -> str:
        fields = {"purpose": "fine-tune", "file_name": name, "file_type": "jsonl"}
        return self._rest.text_in(await self._rest.upload("files/upload", file, name=name, fields=fields), "id")

    def _items(self, listed: dict[str, Any]) -> list[dict[str, Any]]:
        items = listed.get("data")
        if not isinstance(items, list):
            raise self._rest.broken("a list without data")
        return [item for item in items if isinstance(item, dict)]


def _has_begun(events: list[dict[str, Any]]) -> bool:
    return any(event.get("type") in ("training_start", "epoch_complete", "checkpoint_save") for event in events)


def _metrics(events: list[dict[str, Any]]) -> dict[str, float | int]:
    """Events have steps and no losses; what is zero was not filled in."""
    found: dict[str, float | int] = {}
    for name in ("step", "total_steps"):
        values = [event[name] for event in events if isinstance(event.get(name), int) and event[name] > 0]
        if values:
            found[name] = max(values)
    return found


def _percent(metrics: dict[str, float | int]) -> float | None:
    step, total = metrics.get("step"), metrics.get("total_steps")
    return min(94.0, 100.0 * step / total) if step is not None and total else None


def _failure(events: list[dict[str, Any]]) -> str:
    for event in reversed(events):
        if (event.get("type") == "job_error" or str(event.get("level")).endswith("error")) and event.get("message"):
            return str(event["message"])
    return "The job failed without a reason"
