"""Amazon Bedrock imitated, with the part of S3 that an upload takes and the binary event stream of answers."""

import binascii
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.providers.tuning.imitation import NOT_FOUND, Imitation, Job, Reply, Request, Streamed


@dataclass
class BedrockImitation(Imitation):
    """The REST of Bedrock and the part of S3 that an upload takes; its one bucket takes everything."""

    statuses = {
        "queued": "InProgress",
        "preparing": "InProgress",
        "training": "InProgress",
        "completed": "Completed",
        "error": "Failed",
        "cancelled": "Stopped",
        "strange": "Dreaming",
    }
    result: str = "arn:aws:bedrock:us-east-1:123456789012:custom-model/amazon.nova-micro-v1:0:128k/abcdefghijkl"
    deployed = "arn:aws:bedrock:us-east-1:123456789012:custom-model-deployment/abcdefghijkl"

    def route(self, request: Request) -> tuple[str, Callable[[], Reply]]:
        match request.method, request.path.strip("/").split("/"):
            case "PUT", ["bucket", *key]:
                return "upload", lambda: self._upload("/".join(key), request)
            case "DELETE", ["bucket", *key]:
                return "delete", lambda: self._delete("/".join(key))
            case "POST", ["model-customization-jobs"]:
                return "create", lambda: self._create(request)
            case "GET", ["model-customization-jobs", name]:
                return "poll", lambda: (200, self._render(self.jobs[name])) if name in self.jobs else self._missing()
            case "POST", ["model-customization-jobs", name, "stop"]:
                return "cancel", lambda: self._stop(self.jobs[name])
            case "GET", ["model-customization", "custom-model-deployments"]:
                return "deployments", lambda: self._deployments(request)
            case "GET", ["provisioned-model-throughputs"]:
                return "provisioned", lambda: (200, {"provisionedModelSummaries": []})
            case "POST", ["model", *_]:
                return "chat", lambda: self._converse(request)
        return "other", lambda: NOT_FOUND

    def error_body(self, status: int) -> dict[str, Any]:
        return {"message": self.words}

    def _missing(self) -> Reply:
        return 404, {"__type": "ResourceNotFoundException", "message": "No such job"}

    def _upload(self, key: str, request: Request) -> Reply:
        self.files[key] = (key, request.raw)
        return 200, b""

    def _create(self, request: Request) -> Reply:
        body = request.json
        assert all(isinstance(value, str) for value in body.get("hyperParameters", {}).values())
        if body["jobName"] in self.jobs:
            return 400, {"__type": "ValidationException", "message": "The job name is taken"}
        self.jobs[body["jobName"]] = Job(body["jobName"], body)
        return 201, {"jobArn": "arn:aws:bedrock:us-east-1:123456789012:model-customization-job/x.y/abcdefghijkl"}

    def _stop(self, job: Job) -> Reply:
        if job.stage in ("completed", "error", "cancelled"):
            return 409, {"__type": "ConflictException", "message": "The job has ended"}
        job.stage = "cancelled"
        return 200, {}

    def _render(self, job: Job) -> dict[str, Any]:
        begun = "InProgress" if job.step else "NotStarted"
        found: dict[str, Any] = {
            "jobName": job.id,
            "status": self.statuses[job.stage],
            "statusDetails": {"validationDetails": {"status": "InProgress"}, "trainingDetails": {"status": begun}},
            "validationDataConfig": job.body.get("validationDataConfig"),
        }
        if job.step:
            found["trainingMetrics"] = {"trainingLoss": 2.0 / job.step}
        if job.stage == "completed":
            found["outputModelArn"] = self.result
        if job.stage == "error":
            found["failureMessage"] = job.words
        return found

    def _delete(self, key: str) -> Reply:
        self.files.pop(key, None)
        return 204, b""

    def _deployments(self, request: Request) -> Reply:
        known = request.query["modelArnEquals"][0] in self.models
        found = {"customModelDeploymentArn": self.deployed, "status": "Active"}
        return 200, {"modelDeploymentSummaries": [found] if known else []}

    def _converse(self, request: Request) -> Reply:
        assert self.deployed in request.path
        text = f"You said: {request.json['messages'][-1]['content'][0]['text']}"
        if request.path.endswith("/converse"):
            return 200, {"output": {"message": {"role": "assistant", "content": [{"text": text}]}}}
        frames = [
            _frame("contentBlockDelta", {"delta": {"text": word}, "contentBlockIndex": 0}) for word in text.split(" ")
        ]
        return 200, Streamed(b"".join(frames), "application/vnd.amazon.eventstream")


def _frame(event: str, body: dict[str, Any]) -> bytes:
    """One message of AWS's event stream."""
    payload, headers = json.dumps(body).encode(), b""
    for name, value in ((":message-type", "event"), (":event-type", event), (":content-type", "application/json")):
        headers += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", binascii.crc32(message))
