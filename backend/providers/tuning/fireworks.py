"""Fine-tuning of open models at Fireworks, by its REST API.

Shapes: docs.fireworks.ai/api-reference/create-supervised-fine-tuning-job, get-supervised-fine-tuning-job,
create-dataset, upload-dataset-files, get-dataset and list-accounts; docs.fireworks.ai/fine-tuning/fine-tuning-via-api.
Ids of jobs and data sets are ours to choose, so a job is made once however often it is asked for.
"""

import asyncio
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from backend.providers.answers import quoted
from backend.providers.tuning.base import (
    Estimate,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnavailable,
    Status,
    Submission,
    TuningJob,
    TuningProgress,
)
from backend.providers.tuning.chat import RestChat
from backend.providers.tuning.hyperparameters import on_the_wire
from backend.providers.tuning.rest import SECONDS, RestClient
from backend.providers.tuning.withdrawal import take_back

# Its states have the prefix JOB_STATE_.
_STATUSES: Final[dict[str, Status]] = {
    "CREATING": "queued",
    "CREATING_INPUT_DATASET": "preparing",
    "PENDING": "queued",
    "RE_QUEUEING": "queued",
    "VALIDATING": "preparing",
    "IDLE": "preparing",
    "RUNNING": "training",
    "ROLLOUT": "training",
    "EVALUATION": "training",
    "POLICY_UPDATE": "training",
    "WRITING_RESULTS": "training",
    "CANCELLING": "training",
    "COMPLETED": "completed",
    "EARLY_STOPPED": "completed",
    "FAILED": "error",
    "FAILED_CLEANING_UP": "error",
    "EXPIRED": "error",
    "EXPIRED_CLEANING_UP": "error",
    "CANCELLED": "cancelled",
    "DELETING": "cancelled",
    "DELETING_CLEANING_UP": "cancelled",
}
_INFERENCE: Final = "/inference/v1"
_CHAT: Final = "chat/completions"
_DATASET_CHECKS: Final = 30


class FireworksTuning(RestChat):
    """TuningProvider. `base_url` is that of the inference API; the other API lies beside it, at /v1."""

    name = "fireworks"

    def __init__(self, key: str, base_url: str, *, seconds: float = SECONDS, check_seconds: float = 2.0) -> None:
        self._key = key
        self._check_seconds = check_seconds
        inference = base_url.rstrip("/")
        self._inference = RestClient(self.name, inference, key, seconds=seconds)
        self._chat_client, self._chat_path = self._inference, _CHAT
        self._rest = RestClient(self.name, inference.removesuffix(_INFERENCE) + "/v1", key, seconds=seconds)
        self._known_account = ""

    def __repr__(self) -> str:
        return "FireworksTuning()"

    async def aclose(self) -> None:
        await self._inference.aclose()
        await self._rest.aclose()

    async def submit(self, job: TuningJob) -> Submission:
        account, job_id = await self._account(), _job_id(job.our_id)
        training = await self._dataset(account, job_id, job.training_file)
        body: dict[str, Any] = {
            "displayName": (job.suffix or job_id)[:63],
            "dataset": training,
            "baseModel": job.model,
            # Otherwise it takes a part of the examples away for an evaluation of its own.
            "evalAutoCarveout": False,
            **on_the_wire(self.name, job.hyperparameters),
        }
        datasets = [training]
        if job.validation_file is not None:
            datasets.append(await self._dataset(account, f"{job_id}-validation", job.validation_file))
            body["evaluationDataset"] = datasets[1]
        path = f"{account}/supervisedFineTuningJobs"
        try:
            created = await self._rest.call("POST", path, body=body, query={"supervisedFineTuningJobId": job_id})
        except (ProviderRefused, ProviderRateLimited) as error:
            # The id is taken: an earlier call made the job, and its answer was lost.
            taken = isinstance(error, ProviderRefused) and error.provider_status == 409
            if taken and (found := await self.find(job.our_id)) is not None:
                return found
            await take_back(self, job.our_id, {"datasets": datasets})
            raise
        return Submission(self._rest.text_in(created, "name"), {"datasets": datasets})

    async def find(self, our_id: UUID) -> Submission | None:
        account, job_id = await self._account(), _job_id(our_id)
        try:
            job = await self._rest.call("GET", f"{account}/supervisedFineTuningJobs/{job_id}")
        except ProviderRefused as error:
            if error.provider_status == 404:
                return None
            raise
        datasets = [job.get("dataset"), job.get("evaluationDataset")]
        return Submission(self._rest.text_in(job, "name"), {"datasets": [dataset for dataset in datasets if dataset]})

    async def poll(self, external_id: str, state: dict[str, Any]) -> TuningProgress:
        job = await self._rest.call("GET", external_id)
        said = self._rest.text_in(job, "state")
        status = _STATUSES.get(said.removeprefix("JOB_STATE_"))
        if status is None:
            raise self._rest.broken(f"unknown status '{said}'")
        model = job.get("outputModel")
        if status == "completed" and not model:
            raise self._rest.broken("a job that completed without a model")
        words = (job.get("status") or {}).get("message") or f"The job ended as {said} without a reason"
        percent = (job.get("jobProgress") or {}).get("percent")
        if status == "completed":
            progress: float | None = 100.0
        else:
            progress = min(99.0, float(percent)) if isinstance(percent, int | float) else None
        return TuningProgress(
            status=status,
            progress=progress,
            result_model=model if status == "completed" else None,
            error_message=quoted(words, self._key) if status == "error" else None,
            state={**state, **_cost(job)},
        )

    async def cancel(self, external_id: str) -> None:
        # Its answers for a job that has ended.
        await self._rest.call_unless_refused("POST", f"{external_id}:cancel", (400, 409), body={})

    async def forget(self, external_id: str, state: dict[str, Any]) -> None:
        for dataset in state.get("datasets", ()):
            await self._rest.call_unless_refused("DELETE", dataset, (404,))

    async def estimate(self, job: TuningJob) -> Estimate:
        return Estimate(
            cents=None,
            currency="USD",
            reasoning=(
                "Fireworks bills the tokens of the training file times the epochs, by the size of the base model.",
                "It estimates the cost when it takes the job; the fine-tuning shows it from then on.",
            ),
        )

    async def _account(self) -> str:
        """The key's account, as 'accounts/<id>'."""
        if not self._known_account:
            listed = (await self._rest.call("GET", "accounts")).get("accounts")
            if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
                raise self._rest.broken("no account belongs to the key")
            self._known_account = self._rest.text_in(listed[0], "name")
        return self._known_account

    async def _dataset(self, account: str, dataset_id: str, file: Path) -> str:
        """The name of a data set that is ready. One that an earlier call made and filled is taken as it is."""
        name = f"{account}/datasets/{dataset_id}"
        examples = await asyncio.to_thread(_count_lines, file)
        body = {"datasetId": dataset_id, "dataset": {"userUploaded": {}, "exampleCount": str(examples)}}
        try:
            await self._rest.call("POST", f"{account}/datasets", body=body)
        except ProviderRefused as error:
            if error.provider_status != 409:
                raise
            if (await self._rest.call("GET", name)).get("state") == "READY":
                return name
        await self._rest.upload(f"{name}:upload", file, name=f"{dataset_id}.jsonl")
        for _ in range(_DATASET_CHECKS):
            if (await self._rest.call("GET", name)).get("state") == "READY":
                return name
            await asyncio.sleep(self._check_seconds)
        raise ProviderUnavailable(self.name, "the data set is still being read")


def _job_id(our_id: UUID) -> str:
    """Ids begin with a letter there."""
    return f"ft-{our_id}"


def _count_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _cost(job: dict[str, Any]) -> dict[str, Any]:
    cost = job.get("estimatedCost")
    if not isinstance(cost, dict) or not cost.get("currencyCode"):
        return {}
    amount = int(cost.get("units") or 0) + int(cost.get("nanos") or 0) / 1e9
    return {"cost": {"amount": amount, "currency": cost["currencyCode"]}}
