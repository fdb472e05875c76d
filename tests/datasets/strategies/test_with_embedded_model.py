"""A whole manual through the grounded strategy and the real embedded model, started as its own process."""

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.datasets.strategies.base import ChunkText, ExampleDraft
from backend.datasets.strategies.choice import strategy_for
from backend.datasets.strategies.run import generate_for_chunk
from backend.providers.llm.openai_compatible import OpenAICompatibleModel

pytestmark = pytest.mark.timeout(120)
MODEL = "SmolLM2-135M-Instruct"
MANUAL = (Path(__file__).parent / "manual_en.txt").read_text("utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "backend.embedded.llm", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == f"embedded LLM {MODEL} ready at http://127.0.0.1:{port}/v1"
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert process.wait(10) == 0
            assert time.monotonic() - began < 5


async def test_pairs_are_grounded_distinct_and_plenty(base_url: str) -> None:
    strategy = strategy_for(MODEL)
    chunks = [ChunkText(text=part, position=i) for i, part in enumerate(re.split(r"\n(?=\d+\. [A-Z])", MANUAL)[5:8])]
    async with OpenAICompatibleModel(base_url=base_url, model=MODEL, timeout_seconds=60, max_concurrency=4) as model:
        outcomes = await asyncio.gather(*(generate_for_chunk(model, strategy, chunk, 6) for chunk in chunks))
    drafts: list[ExampleDraft] = [draft for outcome in outcomes for draft in outcome.drafts]
    valid = [draft for draft in drafts if draft.is_valid]
    assert len(valid) >= 13
    assert all(draft.output in MANUAL for draft in valid)
    assert len({draft.instruction for draft in valid}) == len(valid)
    worded = [draft for draft in drafts if draft.meta["worded_by"] == MODEL]
    # The model does its part: most of what it words passes the filters.
    assert len(worded) >= 4
    assert sum(draft.is_valid for draft in worded) >= 0.6 * len(worded)
    assert all(outcome.completion_tokens > 0 for outcome in outcomes if any(d in worded for d in outcome.drafts))
