"""OpenAI, Mistral, Together and Fireworks imitated, as far as the adapters use them."""

from collections.abc import Callable
from typing import Any

from tests.providers.tuning.imitation import NOT_FOUND, Imitation, Job, Reply, Request


class OpenAIImitation(Imitation):
    statuses = {
        "queued": "queued",
        "preparing": "validating_files",
        "training": "running",
        "completed": "succeeded",
        "error": "failed",
        "cancelled": "cancelled",
        "strange": "dreaming",
    }

    def route(self, request: Request) -> tuple[str, Callable[[], Reply]]:
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["v1", "files"]:
                return "upload", lambda: self._upload(request)
            case "DELETE", ["v1", "files", identity]:
                return "delete", lambda: self._delete(identity)
            case "POST", ["v1", "fine_tuning", "jobs"]:
                return "create", lambda: self._create(request)
            case "GET", ["v1", "fine_tuning", "jobs"]:
                return "list", lambda: (200, self._list([self._render(job) for job in self.jobs.values()]))
            case "GET", ["v1", "fine_tuning", "jobs", identity]:
                return "poll", lambda: (200, self._render(self.jobs[identity])) if identity in self.jobs else NOT_FOUND
            case "GET", ["v1", "fine_tuning", "jobs", identity, "events"]:
                return "events", lambda: (200, self._list(self._events(self.jobs[identity])))
            case "POST", ["v1", "fine_tuning", "jobs", identity, "cancel"]:
                return "cancel", lambda: self._cancel(self.jobs[identity])
            case "POST", ["v1", "chat", "completions"]:
                return "chat", lambda: self.chat(request)
        return "other", lambda: NOT_FOUND

    def _list(self, items: list[Any]) -> dict[str, Any]:
        return {"object": "list", "data": items, "has_more": False}

    def _upload(self, request: Request) -> Reply:
        name, content, fields = request.form()
        assert fields["purpose"] == "fine-tune"
        return 200, {"id": self.put_file(name, content), "object": "file", "filename": name}

    def _delete(self, identity: str) -> Reply:
        gone = self.files.pop(identity, None)
        return (200, {"id": identity, "object": "file", "deleted": True}) if gone else NOT_FOUND

    def _create(self, request: Request) -> Reply:
        job = Job(f"ftjob-{len(self.jobs) + 1}", request.json)
        self.jobs[job.id] = job
        return 200, self._render(job)

    def _cancel(self, job: Job) -> Reply:
        if job.stage in ("completed", "error", "cancelled"):
            return 400, {"error": {"message": "The job has ended"}}
        job.stage = "cancelled"
        return 200, self._render(job)

    def _render(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.id,
            "object": "fine_tuning.job",
            "status": self.statuses[job.stage],
            "model": job.body["model"],
            "metadata": job.body.get("metadata"),
            "training_file": job.body["training_file"],
            "validation_file": job.body.get("validation_file"),
            "fine_tuned_model": self.result if job.stage == "completed" else None,
            "trained_tokens": 4321 if job.stage == "completed" else None,
            "error": {"code": "x", "message": job.words, "param": None} if job.stage == "error" else None,
        }

    def _events(self, job: Job) -> list[dict[str, Any]]:
        return [
            {
                "id": f"e-{step}",
                "object": "fine_tuning.job.event",
                "created_at": step,
                "level": "info",
                "type": "metrics",
                "message": f"Step {step}/{self.total_steps}: training loss={2.0 / step:.2f}",
                "data": {"step": step, "train_loss": 2.0 / step, "total_steps": self.total_steps},
            }
            for step in range(job.step, 0, -1)
        ]


class MistralImitation(Imitation):
    """Jobs are validated first and begin when they are started; validated files are told as preparing."""

    statuses = {
        "queued": "QUEUED",
        "preparing": "VALIDATED",
        "training": "RUNNING",
        "completed": "SUCCESS",
        "error": "FAILED",
        "cancelled": "CANCELLED",
        "strange": "DREAMING",
    }

    def route(self, request: Request) -> tuple[str, Callable[[], Reply]]:
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["v1", "files"]:
                return "upload", lambda: self._upload(request)
            case "GET", ["v1", "files"]:
                return "files", lambda: self._search(request.query["search"][0])
            case "DELETE", ["v1", "files", identity]:
                return "delete", lambda: (200, {"deleted": True}) if self.files.pop(identity, None) else NOT_FOUND
            case "POST", ["v1", "fine_tuning", "jobs"]:
                return "create", lambda: self._create(request)
            case "GET", ["v1", "fine_tuning", "jobs"]:
                return "list", lambda: (200, {"data": [self._render(job) for job in self.jobs.values()], "total": 1})
            case "GET", ["v1", "fine_tuning", "jobs", identity]:
                return "poll", lambda: (200, self._render(self.jobs[identity])) if identity in self.jobs else NOT_FOUND
            case "POST", ["v1", "fine_tuning", "jobs", identity, "start"]:
                return "start", lambda: (200, self._render(self.jobs[identity]))
            case "POST", ["v1", "fine_tuning", "jobs", identity, "cancel"]:
                return "cancel", lambda: self._cancel(self.jobs[identity])
            case "POST", ["v1", "chat", "completions"]:
                return "chat", lambda: self.chat(request)
        return "other", lambda: NOT_FOUND

    def error_body(self, status: int) -> dict[str, Any]:
        return {"object": "error", "message": self.words, "type": "error", "code": status}

    def _upload(self, request: Request) -> Reply:
        name, content, fields = request.form()
        assert fields["purpose"] == "fine-tune"
        return 200, {"id": self.put_file(name, content), "filename": name}

    def _search(self, text: str) -> Reply:
        found = [{"id": key, "filename": name} for key, (name, _) in self.files.items() if text in name]
        return 200, {"data": found, "total": len(found)}

    def _create(self, request: Request) -> Reply:
        assert request.json["auto_start"] is False
        assert len(request.json.get("suffix", "")) <= 18
        job = Job(f"00000000-0000-4000-8000-00000000000{len(self.jobs)}", request.json)
        self.jobs[job.id] = job
        return 200, self._render(job)

    def _cancel(self, job: Job) -> Reply:
        if job.stage in ("completed", "error", "cancelled"):
            return 409, {"message": "The job has ended"}
        job.stage = "cancelled"
        return 200, self._render(job)

    def _render(self, job: Job) -> dict[str, Any]:
        point = {"step_number": job.step, "created_at": 1, "metrics": {"train_loss": 2.0 / (job.step or 1)}}
        return {
            "id": job.id,
            "status": self.statuses[job.stage],
            "model": job.body["model"],
            "training_files": [item["file_id"] for item in job.body["training_files"]],
            "hyperparameters": {"training_steps": self.total_steps},
            "metadata": {"cost": 4.2, "cost_currency": "EUR"},
            "fine_tuned_model": self.result if job.stage == "completed" else None,
            "trained_tokens": 4321 if job.stage == "completed" else None,
            "checkpoints": [point] if job.step else [],
            "events": [{"name": "status-updated", "data": {"error": job.words}, "created_at": 9}],
        }


class TogetherImitation(Imitation):
    statuses = {
        "queued": "queued",
        "preparing": "running",
        "training": "running",
        "completed": "completed",
        "error": "error",
        "cancelled": "cancelled",
        "strange": "dreaming",
    }

    def route(self, request: Request) -> tuple[str, Callable[[], Reply]]:
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["v1", "files", "upload"]:
                return "upload", lambda: self._upload(request)
            case "GET", ["v1", "files"]:
                found = [{"id": key, "filename": name} for key, (name, _) in self.files.items()]
                return "files", lambda: (200, {"data": found})
            case "DELETE", ["v1", "files", identity]:
                return "delete", lambda: (200, {"deleted": True}) if self.files.pop(identity, None) else NOT_FOUND
            case "POST", ["v1", "fine-tunes"]:
                return "create", lambda: self._create(request)
            case "GET", ["v1", "fine-tunes"]:
                return "list", lambda: (200, {"data": [self._render(job) for job in self.jobs.values()]})
            case "GET", ["v1", "fine-tunes", identity]:
                return "poll", lambda: (200, self._render(self.jobs[identity])) if identity in self.jobs else NOT_FOUND
            case "POST", ["v1", "fine-tunes", identity, "cancel"]:
                return "cancel", lambda: self._cancel(self.jobs[identity])
            case "POST", ["v1", "chat", "completions"]:
                return "chat", lambda: self.chat(request)
        return "other", lambda: NOT_FOUND

    def _upload(self, request: Request) -> Reply:
        name, content, fields = request.form()
        assert fields["purpose"] == "fine-tune"
        return 200, {"id": self.put_file(fields["file_name"], content), "filename": name}

    def _create(self, request: Request) -> Reply:
        job = Job(f"ft-{len(self.jobs) + 1}", request.json)
        self.jobs[job.id] = job
        return 200, self._render(job)

    def _cancel(self, job: Job) -> Reply:
        if job.stage in ("completed", "error", "cancelled"):
            return 400, {"error": {"message": "The job has ended"}}
        job.stage = "cancelled"
        return 200, self._render(job)

    def _render(self, job: Job) -> dict[str, Any]:
        events: list[dict[str, Any]] = [{"type": "job_start", "message": "", "step": 0, "total_steps": 0}]
        if job.step:
            events.append({"type": "training_start", "step": job.step, "total_steps": self.total_steps})
        if job.stage == "error":
            events.append({"type": "job_error", "level": "error", "message": job.words})
        return {
            "id": job.id,
            "status": self.statuses[job.stage],
            "training_file": job.body["training_file"],
            "model_output_name": self.result,
            "token_count": 4321,
            "events": events,
        }


class FireworksImitation(Imitation):
    account = "accounts/acme"
    statuses = {
        "queued": "CREATING",
        "preparing": "VALIDATING",
        "training": "RUNNING",
        "completed": "COMPLETED",
        "error": "FAILED",
        "cancelled": "CANCELLED",
        "strange": "DREAMING",
    }

    def route(self, request: Request) -> tuple[str, Callable[[], Reply]]:
        path = request.path.removeprefix("/v1/")
        jobs, datasets = f"{self.account}/supervisedFineTuningJobs", f"{self.account}/datasets"
        if path == "accounts":
            return "accounts", lambda: (200, {"accounts": [{"name": self.account}]})
        if request.path == "/inference/v1/chat/completions":
            return "chat", lambda: self.chat(request)
        if path == jobs:
            return "create", lambda: self._create(request)
        if path.startswith(jobs):
            if path.endswith(":cancel"):
                return "cancel", lambda: self._cancel(self.jobs[path.removesuffix(":cancel")])
            return "poll", lambda: (200, self._render(self.jobs[path])) if path in self.jobs else NOT_FOUND
        if path == datasets:
            return "dataset", lambda: self._make_dataset(request)
        if path.endswith(":upload"):
            return "upload", lambda: self._upload(path.removesuffix(":upload"), request)
        if path.startswith(datasets) and request.method == "DELETE":
            return "delete", lambda: (200, {}) if self.files.pop(path, None) else NOT_FOUND
        if path.startswith(datasets):
            return "dataset state", lambda: (200, {"state": "READY" if self.files[path][1] else "UPLOADING"})
        return "other", lambda: NOT_FOUND

    def error_body(self, status: int) -> dict[str, Any]:
        return {"code": 3, "message": self.words, "details": []}

    def _make_dataset(self, request: Request) -> Reply:
        name = f"{self.account}/datasets/{request.json['datasetId']}"
        if name in self.files:
            return 409, {"code": 6, "message": "The dataset exists"}
        self.files[name] = (name, b"")
        return 200, {"name": name, "state": "UPLOADING"}

    def _upload(self, name: str, request: Request) -> Reply:
        self.files[name] = (name, request.form()[1])
        return 200, {"id": name}

    def _create(self, request: Request) -> Reply:
        name = f"{self.account}/supervisedFineTuningJobs/{request.query['supervisedFineTuningJobId'][0]}"
        if name in self.jobs:
            return 409, {"code": 6, "message": "The job exists"}
        self.jobs[name] = Job(name, request.json)
        return 200, self._render(self.jobs[name])

    def _cancel(self, job: Job) -> Reply:
        if job.stage in ("completed", "error", "cancelled"):
            return 400, {"code": 9, "message": "The job has ended"}
        job.stage = "cancelled"
        return 200, {}

    def _render(self, job: Job) -> dict[str, Any]:
        return {
            "name": job.id,
            "dataset": job.body["dataset"],
            "state": f"JOB_STATE_{self.statuses[job.stage]}",
            "status": {"code": "OK", "message": job.words},
            "outputModel": self.result,
            "estimatedCost": {"currencyCode": "USD", "units": "2", "nanos": 500_000_000},
            "jobProgress": {"percent": 100 * job.step // self.total_steps},
        }
