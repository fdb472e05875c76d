"""Answers of local models: warm against the job that loads the model anew, and four adapters over one base."""

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from benchmarks.measure import Row, median

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTERS, TOKENS, ROUNDS = 4, 24, 3
WAY_MS = 100.0
PROMPT = "Tell me a long story about a lighthouse keeper and his lamp."


def run() -> list[Row]:
    """On the bundled base with random adapters; the stack is the product's own."""
    from backend.embedded.services import product_services
    from backend.embedded.stack import StackOptions, running
    from backend.kit import migrations

    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as folder:
        options = StackOptions(
            data_dir=Path(folder) / "data",
            port=0,
            migrate=migrations.upgrade,
            report=lambda line: None,
            env={"PLAYGROUND_TIMEOUT_SECONDS": "300", "SERVING_TIMEOUT_SECONDS": "300", "RATE_LIMITS": "false"},
            # The serving process is started later: without it, the job answers.
            services=lambda stack: [
                service
                for service in product_services(stack.folder.path, stack.options.host, stack.port, None)
                if service.name != "serving"
            ],
        )
        with running(options) as stack:
            return asyncio.run(_measure(stack.api_url, stack.environment()))


async def _measure(url: str, env: dict[str, str]) -> list[Row]:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        runs = await _plant(client, env)
        await _ask(client, runs[0])  # unpacks the base once, which is no part of an answer
        job_seconds = (await _ask(client, runs[0]))["seconds"]
        with _serving(env):
            await _until_served(client)
            for run in runs:
                await _ask(client, run)
            warm = [await _ask(client, runs[0]) for _ in range(ROUNDS)]
            one = [await _ask(client, runs[0]) for _ in range(ADAPTERS)]
            alone = sum(item["tokens"] for item in one) / sum(item["seconds"] for item in one)
            four = await _together(client, runs)
            batch = await _together(client, [runs[0]] * ADAPTERS)
    first_ms = median([item["first_token_ms"] for item in warm])
    way_ms = median([item["first_token_ms"] - item["model_first_token_ms"] for item in warm])
    return [
        Row("first text, warm, beyond the model's own time", way_ms, WAY_MS, "ms", 1.0, "most"),
        Row("first text, warm, against the job that loads the model", first_ms / 1000, job_seconds, "s", 0.1, "most"),
        Row("4 adapters at once on one base, against 1 adapter, one by one", four, alone, "tokens/s", 0.8, "least"),
        Row("4 answers of 1 adapter at once, against one by one", batch, alone, "tokens/s", 1.0, "least"),
    ]


async def _ask(client: httpx.AsyncClient, run: int) -> dict[str, float]:
    started = time.monotonic()
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "stream": True}
    answer = await client.post(f"/api/fine-tunings/{run}/test", json=body)
    seconds = time.monotonic() - started
    answer.raise_for_status()
    last = json.loads(answer.text.strip().split("data: ")[-1])
    latency, tokens = last["latency"], last["usage"]["completion_tokens"]
    return {"seconds": seconds, "tokens": tokens or 0, **{key: value or 0.0 for key, value in latency.items()}}


async def _together(client: httpx.AsyncClient, runs: list[int]) -> float:
    """Tokens a second of all answers together."""
    started = time.monotonic()
    found = await asyncio.gather(*(_ask(client, run) for run in runs))
    return sum(item["tokens"] for item in found) / (time.monotonic() - started)


@contextlib.contextmanager
def _serving(env: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "backend.cli", "serve"],
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


async def _until_served(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + 120
    model = (await client.get("/v1/models")).json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    while (answer := await client.post("/v1/chat/completions", json=body)).status_code != 200:
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, "the serving process does not answer"
        await asyncio.sleep(0.2)


async def _plant(client: httpx.AsyncClient, env: dict[str, str]) -> list[int]:
    """Finished fine-tunings with random adapters, as if they had been trained."""
    import backend.models  # noqa: F401
    from backend.datasets.models import Dataset
    from backend.kit.db import Database
    from backend.projects import queries
    from backend.storage import open_storage
    from backend.training.models import Artifact, FineTuning

    project = (await client.post("/projects", json={"name": "Bench"})).json()["id"]
    storage, db = open_storage(env["STORAGE_URL"]), Database(env["DATABASE_URL"], pool_size=1)
    numbers = []
    try:
        async with db.transaction() as session:
            row = await queries.get_by_id(session, await _id_of(session, project))
            dataset = Dataset(project_id=row.id, name="Bench", status="ready")
            session.add(dataset)
            await session.flush()
            for seed in range(ADAPTERS):
                run = FineTuning(
                    project_id=row.id,
                    dataset_id=dataset.id,
                    name=f"Bench {seed}",
                    method="lora",
                    model=BASE,
                    status="completed",
                )
                session.add(run)
                await session.flush()
                for name, content in _adapter(seed).items():
                    key = f"projects/{project}/runs/{run.public_id}/1/{name}"
                    await storage.put_bytes(key, content)
                    digest = hashlib.sha256(content).hexdigest()
                    fields: dict[str, Any] = {"filename": name, "size_bytes": len(content), "sha256": digest}
                    session.add(Artifact(fine_tuning_id=run.id, role="adapter", file_key=key, **fields))
                numbers.append(run.id)
    finally:
        await db.close()
    return numbers


async def _id_of(session: Any, public_id: str) -> int:
    from sqlalchemy import select

    from backend.projects.models import Project

    found = await session.scalar(select(Project.id).where(Project.public_id == UUID(public_id)))
    return int(found)


def _adapter(seed: int) -> dict[str, bytes]:
    """A LoRA of rank 16 over all linear layers of SmolLM2-135M, too quiet to spoil its language."""
    import numpy
    import safetensors.numpy

    rank, hidden, inner, kv, layers = 16, 576, 1536, 192, 30
    dice = numpy.random.default_rng(seed)
    shapes = {
        **{f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "o_proj")},
        **{f"self_attn.{name}": (kv, hidden) for name in ("k_proj", "v_proj")},
        **{f"mlp.{name}": (inner, hidden) for name in ("gate_proj", "up_proj")},
        "mlp.down_proj": (hidden, inner),
    }
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            at = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{at}.lora_A.weight"] = 0.01 * dice.standard_normal((rank, columns)).astype(numpy.float32)
            tensors[f"{at}.lora_B.weight"] = 0.01 * dice.standard_normal((rows, rank)).astype(numpy.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[1] for name in shapes}),
        "inference_mode": True,
    }
    weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": weights}
