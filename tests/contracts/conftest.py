"""One project taken through the whole pipeline with the worker's own code, for all tests that look at its result."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.kit.config import Settings
from tests.conftest import Tenant, registered
from tests.contracts import tiny_llama

SAMPLE = (Path(__file__).parents[2] / "examples" / "quillon-40.md").read_text(encoding="utf-8")
HYPERPARAMS = {
    "num_epochs": 3,
    "learning_rate": 2e-2,
    "per_device_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_seq_length": 256,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "warmup_ratio": 0.03,
    "weight_decay": 0.01,
}
RunJob = Callable[[str], Awaitable[dict[str, Any]]]


@dataclass
class Walked:
    """A tenant and its trained and exported project; `answers` keeps what each step said."""

    tenant: Tenant
    project: str
    answers: dict[str, httpx.Response] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/projects/{self.project}"

    async def get(self, rest: str = "", **params: Any) -> Any:
        answer = await self.tenant.client.get(f"{self.path}{rest}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="session")
def base_model(settings: Settings) -> str:
    """The id of a tiny base model in MODELS_DIR."""
    name = "tiny-llama"
    tiny_llama.write(settings.models_path / name, SAMPLE)
    return name


@pytest.fixture(scope="session")
async def walked(app: Any, anonymous: httpx.AsyncClient, run_jobs: RunJob, base_model: str) -> AsyncIterator[Walked]:
    """Upload, chunk, preview, generate, resolve, train, export, compare: through the API, each job run to its end."""
    async with registered(app, anonymous) as tenant:
        walk = Walked(tenant, await tenant.make_project(name="Quillon", config={"train_eval_split": 0.8}))

        async def post(step: str, rest: str, body: Any = None, status: int = 202) -> httpx.Response:
            answer = await tenant.client.post(f"{walk.path}{rest}", json=body)
            assert answer.status_code == status, f"{step}: {answer.text}"
            walk.answers[step] = answer
            return answer

        async def job(step: str, rest: str, body: Any = None) -> None:
            answer = await post(step, rest, body)
            walk.jobs[step] = await run_jobs(answer.json()["job_id"])
            assert walk.jobs[step]["state"] == "success", f"{step}: {walk.jobs[step]}"

        walk.answers["upload"] = await tenant.upload(walk.project, "quillon-40.md", SAMPLE.encode())
        assert walk.answers["upload"].status_code == 201, walk.answers["upload"].text
        await job("chunk", "/chunks/generate", {"chunk_size_tokens": 256, "chunk_overlap_tokens": 20})
        await job("preview", "/dataset/preview", {"num_examples": 10, "ollama_model": "llama3.1:70b"})
        await job("generate", "/dataset/generate", {"num_examples_target": 24, "examples_per_chunk": 5})
        await post("resolve", "/model/resolve", {"model_id": base_model}, status=200)
        walk.answers["start"] = await post("train", "/train/start", {"method": "lora", "hyperparams": HYPERPARAMS})
        walk.answers["queued"] = await tenant.client.get(f"{walk.path}/train/status")
        walk.jobs["train"] = await run_jobs(walk.answers["start"].json()["job_id"])
        assert walk.jobs["train"]["state"] == "success", json.dumps(walk.jobs["train"], default=str)
        await job("export", "/export")
        await job("compare", "/train/compare", {"questions": ["What is the Quillon 40?"], "max_new_tokens": 8})
        yield walk
