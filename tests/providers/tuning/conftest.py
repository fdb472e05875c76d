"""Each provider with an adapter of short timeouts and the imitation that it talks to."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend.providers.tuning.base import Submission, TuningJob, TuningProgress, TuningProvider
from backend.providers.tuning.bedrock import BedrockTuning
from backend.providers.tuning.fireworks import FireworksTuning
from backend.providers.tuning.mistral import MistralTuning
from backend.providers.tuning.openai import OpenAITuning
from backend.providers.tuning.together import TogetherTuning
from tests.providers.tuning.bedrock_imitation import BedrockImitation
from tests.providers.tuning.imitation import Imitation
from tests.providers.tuning.rest_imitations import (
    FireworksImitation,
    MistralImitation,
    OpenAIImitation,
    TogetherImitation,
)

SECRET = "CanaryCanaryCanaryCanary32chars0"
BEDROCK_KEY = json.dumps(
    {
        "access_key_id": "AKIACANARY",
        "secret_access_key": SECRET,
        "region": "us-east-1",
        "role_arn": "arn:aws:iam::123456789012:role/tuner",
        "bucket": "bucket",
    }
)
SECONDS = 1.5
ADAPTERS: dict[str, tuple[type[Imitation], Callable[[str], Any]]] = {
    "openai": (OpenAIImitation, lambda url: OpenAITuning(SECRET, f"{url}/v1", seconds=SECONDS)),
    "mistral": (MistralImitation, lambda url: MistralTuning(SECRET, url, seconds=SECONDS)),
    "together": (TogetherImitation, lambda url: TogetherTuning(SECRET, f"{url}/v1", seconds=SECONDS)),
    "fireworks": (
        FireworksImitation,
        lambda url: FireworksTuning(SECRET, f"{url}/inference/v1", seconds=SECONDS, check_seconds=0.01),
    ),
    "bedrock": (BedrockImitation, lambda url: BedrockTuning(BEDROCK_KEY, url, seconds=SECONDS)),
}
MODELS = {
    "openai": "gpt-4.1-mini-2025-04-14",
    "mistral": "open-mistral-7b",
    "together": "Qwen/Qwen3-8B",
    "fireworks": "accounts/fireworks/models/qwen3-8b",
    "bedrock": "amazon.nova-micro-v1:0:128k",
}


@dataclass
class Case:
    """One provider under test."""

    name: str
    provider: TuningProvider
    imitation: Imitation
    job: TuningJob

    async def poll(self, submission: Submission) -> TuningProgress:
        return await self.provider.poll(submission.external_id, submission.state)


@pytest.fixture(params=list(ADAPTERS))
def imitation(request: pytest.FixtureRequest) -> Iterator[Imitation]:
    server = ADAPTERS[request.param][0]()
    yield server
    server.stop()


@pytest.fixture
async def case(imitation: Imitation, tmp_path: Path) -> AsyncIterator[Case]:
    name = next(name for name, (kind, _) in ADAPTERS.items() if isinstance(imitation, kind))
    provider = ADAPTERS[name][1](imitation.url)
    yield Case(name, provider, imitation, make_job(name, tmp_path))
    await provider.aclose()
    await asyncio.sleep(0)


def make_job(name: str, folder: Path, **fields: Any) -> TuningJob:
    """A job over twelve examples, with an evaluation file."""
    training, validation = folder / "train.jsonl", folder / "validation.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    line = json.dumps({"messages": turns}) + "\n"
    training.write_text(line * 12)
    validation.write_text(line * 3)
    values: dict[str, Any] = {
        "our_id": uuid.uuid4(),
        "model": MODELS[name],
        "training_file": training,
        "validation_file": validation,
        "suffix": "a suffix that is longer than eighteen",
        "hyperparameters": {"n_epochs": 2},
    }
    return TuningJob(**{**values, **fields})
