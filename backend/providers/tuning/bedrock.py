"""Fine-tuning on Amazon Bedrock, through boto3 in threads.

The key is a JSON object: access_key_id, secret_access_key, region, role_arn (which Bedrock takes to read the bucket)
and bucket. Shapes: the service model in botocore (CreateModelCustomizationJob and its neighbours).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeVar
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
    TuningError,
    TuningJob,
    TuningProgress,
)
from backend.providers.tuning.hyperparameters import on_the_wire
from backend.providers.tuning.rest import ANSWER_SECONDS, SECONDS, error_of
from backend.providers.tuning.withdrawal import take_back

_T = TypeVar("_T")
_STATUSES: Final[dict[str, Status]] = {
    "InProgress": "training",
    "Stopping": "training",
    "Completed": "completed",
    "Failed": "error",
    "Stopped": "cancelled",
}
_THROTTLED: Final = {"ThrottlingException", "TooManyRequestsException", "Throttling", "SlowDown"}
_PREFIX: Final = "finetuneflow"
_NAME_CHARACTERS: Final = 24


class BedrockTuning:
    """TuningProvider. The job's name holds our job id, and names are unique there. `endpoint_url` replaces AWS's."""

    name = "bedrock"

    def __init__(self, key: str, endpoint_url: str = "", *, seconds: float = SECONDS) -> None:
        fields = json.loads(key)
        self._role, self._bucket, self._region = fields["role_arn"], fields["bucket"], fields["region"]
        self._secrets = (fields["secret_access_key"], fields["access_key_id"])
        self._endpoint_url = endpoint_url or None
        self._seconds = seconds
        self._clients: dict[str, Any] = {}

    def __repr__(self) -> str:
        return "BedrockTuning()"

    async def aclose(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    async def submit(self, job: TuningJob) -> Submission:
        try:
            return await self._in_thread(lambda: self._submit(job))
        except (ProviderRefused, ProviderRateLimited):
            await take_back(self, job.our_id, {"files": _files_of(job.our_id)})
            raise

    async def find(self, our_id: UUID) -> Submission | None:
        return await self._in_thread(lambda: self._find(our_id))

    async def poll(self, external_id: str, state: dict[str, Any]) -> TuningProgress:
        job = await self._in_thread(
            lambda: self._client("bedrock").get_model_customization_job(jobIdentifier=external_id)
        )
        said = str(job.get("status"))
        status = _STATUSES.get(said)
        if status is None:
            raise self._broken(f"unknown status '{said}'")
        if said == "InProgress" and not _has_begun(job):
            status = "preparing"
        model = job.get("outputModelArn")
        if status == "completed" and not model:
            raise self._broken("a job that completed without a model")
        words = job.get("failureMessage") or "The job failed without a reason"
        return TuningProgress(
            status=status,
            progress=100.0 if status == "completed" else None,
            metrics=_metrics(job),
            result_model=model if status == "completed" else None,
            error_message=quoted(words, *self._secrets) if status == "error" else None,
            state=state,
        )

    async def cancel(self, external_id: str) -> None:
        try:
            await self._in_thread(
                lambda: self._client("bedrock").stop_model_customization_job(jobIdentifier=external_id)
            )
        except ProviderRefused as error:
            # Its answers for a job that has ended.
            if error.provider_status not in (400, 409):
                raise

    async def forget(self, external_id: str, state: dict[str, Any]) -> None:
        for file in state.get("files", ()):
            await self._in_thread(
                lambda file=file: self._client("s3").delete_object(Bucket=self._bucket, Key=file)  # type: ignore[misc]
            )

    async def estimate(self, job: TuningJob) -> Estimate:
        return Estimate(
            cents=None,
            currency="USD",
            reasoning=(
                "Bedrock bills the tokens of the training file times the epochs, and each month of keeping the model.",
                "To ask the model, a deployment or Provisioned Throughput is billed as well.",
                "The prices depend on the region: see the pricing page of Bedrock.",
            ),
        )

    async def answer(
        self, model: str, messages: Sequence[ChatMessage], *, max_tokens: int = 512, temperature: float = 0.0
    ) -> str:
        request = _conversation(messages, max_tokens, temperature)

        def ask() -> str:
            found = self._client("bedrock-runtime").converse(modelId=self._deployed(model), **request)
            try:
                parts = found["output"]["message"]["content"]
            except (LookupError, TypeError):
                raise self._broken("an answer without a message") from None
            return "".join(str(part.get("text", "")) for part in parts)

        return await self._in_thread(ask)

    async def stream(
        self, model: str, messages: Sequence[ChatMessage], *, max_tokens: int = 512, temperature: float = 0.0
    ) -> AsyncIterator[str]:
        request = _conversation(messages, max_tokens, temperature)
        events = await self._in_thread(
            lambda: iter(
                self._client("bedrock-runtime").converse_stream(modelId=self._deployed(model), **request)["stream"]
            )
        )
        while True:
            event = await self._in_thread(lambda: next(events, None))
            if event is None:
                return
            if text := event.get("contentBlockDelta", {}).get("delta", {}).get("text"):
                yield text

    def _submit(self, job: TuningJob) -> Submission:
        name, folder = _job_name(job.our_id), f"{_PREFIX}/{job.our_id}"
        files = _files_of(job.our_id)[:1]
        self._client("s3").upload_file(str(job.training_file), self._bucket, files[0])
        optional: dict[str, Any] = {}
        if job.validation_file is not None:
            files = _files_of(job.our_id)
            self._client("s3").upload_file(str(job.validation_file), self._bucket, files[1])
            optional["validationDataConfig"] = {"validators": [{"s3Uri": f"s3://{self._bucket}/{files[1]}"}]}
        given = on_the_wire(self.name, job.hyperparameters)
        if given:
            optional["hyperParameters"] = {key: str(value) for key, value in given.items()}
        created = self._client("bedrock").create_model_customization_job(
            jobName=name,
            customModelName=_model_name(job),
            roleArn=self._role,
            clientRequestToken=str(job.our_id),
            baseModelIdentifier=job.model,
            customizationType="FINE_TUNING",
            trainingDataConfig={"s3Uri": f"s3://{self._bucket}/{files[0]}"},
            outputDataConfig={"s3Uri": f"s3://{self._bucket}/{folder}/output/"},
            jobTags=[{"key": JOB_ID_KEY, "value": str(job.our_id)}],
            **optional,
        )
        # botocore reads a body that is no JSON as one without fields.
        if not created.get("jobArn"):
            raise self._broken("it has no jobArn")
        return Submission(name, {"files": files})

    def _find(self, our_id: UUID) -> Submission | None:
        name = _job_name(our_id)
        try:
            job = self._client("bedrock").get_model_customization_job(jobIdentifier=name)
        except Exception as error:
            if _code_of(error) == "ResourceNotFoundException":
                return None
            raise
        if not job.get("status"):
            raise self._broken("it has no status")
        return Submission(name, {"files": _files_of(our_id)})

    def _deployed(self, model: str) -> str:
        """The ARN that answers for a custom model: it cannot be asked by its own."""
        bedrock = self._client("bedrock")
        deployments = bedrock.list_custom_model_deployments(modelArnEquals=model, statusEquals="Active")
        for found in deployments.get("modelDeploymentSummaries", ()):
            return str(found["customModelDeploymentArn"])
        provisioned = bedrock.list_provisioned_model_throughputs(modelArnEquals=model, statusEquals="InService")
        for found in provisioned.get("provisionedModelSummaries", ()):
            return str(found["provisionedModelArn"])
        raise ProviderRefused(
            self.name,
            "the model is not deployed: make a custom model deployment or buy Provisioned Throughput for it in the "
            "Bedrock console, which AWS bills",
            404,
        )

    def _client(self, service: str) -> Any:
        """Made in a thread: botocore reads a service's model from disk."""
        if service not in self._clients:
            import boto3
            from botocore.config import Config

            secret, identity = self._secrets
            client = boto3.session.Session(
                aws_access_key_id=identity, aws_secret_access_key=secret, region_name=self._region
            ).client(
                service,
                endpoint_url=self._endpoint_url,
                config=Config(
                    retries={"total_max_attempts": 1},
                    connect_timeout=self._seconds,
                    read_timeout=ANSWER_SECONDS if service == "bedrock-runtime" else self._seconds,
                    s3={"addressing_style": "path"} if self._endpoint_url else {},
                ),
            )
            if service != "s3":
                client.meta.events.register("before-parse", self._require_whole)
            self._clients[service] = client
        return self._clients[service]

    def _require_whole(self, response_dict: dict[str, Any], **_: Any) -> None:
        """botocore takes a body that was cut off for a whole one."""
        body, length = response_dict.get("body"), str(response_dict.get("headers", {}).get("content-length", ""))
        if isinstance(body, bytes) and length.isdigit() and len(body) < int(length):
            raise ProviderUnavailable(self.name, "the connection was cut")

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """Runs blocking calls; every failure leaves as a TuningError."""
        try:
            return await asyncio.to_thread(work)
        except TuningError:
            raise
        # All of botocore's errors and the parsers' below it. `from None`: a cause may hold the signed request.
        except Exception as error:
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> TuningError:
        from boto3.exceptions import Boto3Error
        from botocore import exceptions as aws
        from botocore.parsers import ResponseParserError

        words = quoted(error, *self._secrets)
        if isinstance(error, aws.ClientError):
            said = error.response.get("Error", {})
            answer = error.response.get("ResponseMetadata", {})
            words = quoted(said.get("Message") or said.get("Code") or error, *self._secrets)
            retry_after = answer.get("HTTPHeaders", {}).get("retry-after")
            status = int(answer.get("HTTPStatusCode", 500))
            return error_of(self.name, 429 if said.get("Code") in _THROTTLED else status, words, retry_after)
        if isinstance(error, aws.HTTPClientError | aws.ConnectionError):
            return ProviderUnavailable(self.name, words)
        if isinstance(error, ResponseParserError):
            return self._broken("it is not what the API promises")
        if isinstance(error, aws.ParamValidationError):
            return ProviderRefused(self.name, words, 400)
        if isinstance(error, Boto3Error):  # an upload to S3, whose cause is told in its text alone
            return _upload_error(self.name, words)
        return self._broken(f"{type(error).__name__}")

    def _broken(self, what: str) -> ProviderAnswerBroken:
        return ProviderAnswerBroken(self.name, what)


def _upload_error(provider: str, words: str) -> TuningError:
    if any(code in words for code in _THROTTLED):
        return ProviderRateLimited(provider, words, None)
    if any(code in words for code in ("AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch")):
        return ProviderRefused(provider, words, 403)
    if "NoSuchBucket" in words or "Not Found" in words:
        return ProviderRefused(provider, words, 404)
    return ProviderUnavailable(provider, words)


def _code_of(error: Exception) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _job_name(our_id: UUID) -> str:
    return f"{_PREFIX}-{our_id}"


def _files_of(our_id: UUID) -> list[str]:
    """Keys in the bucket; deleting one that is not there is no error."""
    return [f"{_PREFIX}/{our_id}/train.jsonl", f"{_PREFIX}/{our_id}/validation.jsonl"]


def _model_name(job: TuningJob) -> str:
    """Letters, digits and single dashes, unique by a part of our job id; at most 63 characters."""
    words = "".join(char if char.isascii() and char.isalnum() else " " for char in job.suffix).split()
    stem = "-".join(words)[:_NAME_CHARACTERS].strip("-") or _PREFIX
    return f"{stem}-{job.our_id.hex[:12]}"


def _conversation(messages: Sequence[ChatMessage], max_tokens: int, temperature: float) -> dict[str, Any]:
    request: dict[str, Any] = {
        "messages": [
            {"role": message.role, "content": [{"text": message.content}]}
            for message in messages
            if message.role != "system"
        ],
        "inferenceConfig": {"maxTokens": max_tokens, "temperature": temperature},
    }
    if system := [{"text": message.content} for message in messages if message.role == "system"]:
        request["system"] = system
    return request


def _has_begun(job: dict[str, Any]) -> bool:
    """Where it tells its stages, training begins after the validation and the reading of the data."""
    stages = job.get("statusDetails")
    if not stages:
        return True
    return (stages.get("trainingDetails") or {}).get("status") in ("InProgress", "Completed")


def _metrics(job: dict[str, Any]) -> dict[str, float | int]:
    read: dict[str, Any] = {"training_loss": (job.get("trainingMetrics") or {}).get("trainingLoss")}
    if validation := job.get("validationMetrics"):
        read["validation_loss"] = validation[0].get("validationLoss")
    return {name: value for name, value in read.items() if isinstance(value, int | float)}
