"""A serving process inside the tests' own loop, with its real child, and models to ask that nobody had to train."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy
import safetensors.numpy
from sqlalchemy import select

from backend.datasets.models import Dataset
from backend.kit.db import Database
from backend.projects.models import Project
from backend.training.local import Bench
from backend.training.models import Artifact, FineTuning
from backend.training.serving_host import ServingHost
from backend.training.serving_queue import ServingQueue
from tests.conftest import Tenant
from tests.contracts import tiny_llama

BASE = "tiny-to-serve"
WORDS = "The lamp of the hall has ninety lumens and a red switch.\nAsk the clerk for the blue cable.\n"


@asynccontextmanager
async def serving_host(app: Any) -> AsyncIterator[ServingHost]:
    """A host that is alive until the block ends."""
    services = app.state.services
    bench = Bench(settings=services.settings, storage=services.storage, library=services.library)
    queue = ServingQueue(services.redis)
    host = ServingHost(bench, services.db, queue)
    stop = asyncio.Event()
    running = asyncio.create_task(host.run(stop))
    await queue.beat(host.name)
    try:
        yield host
    finally:
        stop.set()
        await running


def write_base(models: Path) -> str:
    if not (models / BASE).exists():
        tiny_llama.write(models / BASE, WORDS)
    return BASE


def adapter_of(seed: int, base: str) -> dict[str, bytes]:
    """The files of a random adapter over all linear layers of the tiny model, loud enough to be heard."""
    rank, dice = 4, numpy.random.default_rng(seed)
    kv = tiny_llama.HIDDEN * tiny_llama.KV_HEADS // tiny_llama.HEADS
    hidden, inner = tiny_llama.HIDDEN, tiny_llama.INNER
    shapes = {
        **{f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "o_proj")},
        **{f"self_attn.{name}": (kv, hidden) for name in ("k_proj", "v_proj")},
        **{f"mlp.{name}": (inner, hidden) for name in ("gate_proj", "up_proj")},
        "mlp.down_proj": (hidden, inner),
    }
    tensors = {}
    for layer in range(tiny_llama.LAYERS):
        for name, (rows, columns) in shapes.items():
            at = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{at}.lora_A.weight"] = dice.standard_normal((rank, columns)).astype(numpy.float32)
            tensors[f"{at}.lora_B.weight"] = dice.standard_normal((rows, rank)).astype(numpy.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[1] for name in shapes}),
        "inference_mode": True,
    }
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": safetensors.numpy.save(tensors, metadata={"format": "pt"}),
    }


async def plant_model(app: Any, tenant: Tenant, *, seed: int = 0, files: dict[str, bytes] | None = None) -> FineTuning:
    """A completed local fine-tuning with its adapter in storage."""
    services = app.state.services
    base = write_base(services.settings.models_path)
    project = await tenant.make_project(name="Lamps")
    async with services.db.transaction() as session:
        row = (await session.scalars(select(Project).where(Project.public_id == UUID(project)))).one()
        dataset = Dataset(project_id=row.id, name="Lamps", status="ready")
        session.add(dataset)
        await session.flush()
        run = FineTuning(
            project_id=row.id,
            dataset_id=dataset.id,
            name="Lamp expert",
            provider="local",
            method="lora",
            model=base,
            status="completed",
        )
        session.add(run)
        await session.flush()
        for name, content in (adapter_of(seed, base) if files is None else files).items():
            key = f"projects/{project}/runs/{run.public_id}/1/{name}"
            await services.storage.put_bytes(key, content)
            digest = hashlib.sha256(content).hexdigest()
            session.add(
                Artifact(
                    fine_tuning_id=run.id,
                    role="adapter",
                    filename=name,
                    size_bytes=len(content),
                    sha256=digest,
                    file_key=key,
                )
            )
        return run


async def user_of(db: Database, run: FineTuning) -> int:
    async with db.transaction() as session:
        return (await session.get_one(Project, run.project_id)).user_id


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Waits for it, and fails when it does not come true in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.05)
            return
    raise AssertionError("it did not come true in time")
