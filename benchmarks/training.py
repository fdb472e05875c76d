"""LoRA on SmolLM2-135M against TRL's SFTTrainer with its defaults: tokens a second on short pairs and on long ones.

Same model, pairs, optimizer steps and 16-bit weights for both, in turns and in changing order. Tokens of padding are
not counted. CPU seconds are judged too: they hardly change with what else the machine does.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, median
from benchmarks.peers import trainers, training_pairs
from benchmarks.peers.trainers import KINDS, Epoch
from benchmarks.peers.training_pairs import Kind

TARGETS: dict[Kind, float] = {"short": 1.5, "long": 1.0}
_ORDER = ("ours", "trl", "trl", "ours")


def run() -> list[Row]:
    trainers.prepare()
    from backend.providers import bundled

    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as folder:
        base = asyncio.run(bundled.convert(Path(folder)))
        # Kernels are made when they are first needed.
        warm = training_pairs.build("short", 2, seed=1)
        trainers.ours(base, warm, 2)
        trainers.trl(base, warm, 2)
        return [row for kind in KINDS for row in _compare(base, kind)]


def _compare(base: Path, kind: Kind) -> Iterator[Row]:
    count, batch_size = KINDS[kind]
    pairs: list[Any] = training_pairs.build(kind, count)
    epochs: dict[str, list[Epoch]] = {"ours": [], "trl": []}
    for name in _ORDER:
        epochs[name].append((trainers.ours if name == "ours" else trainers.trl)(base, pairs, batch_size))
    kept = trainers.trl(base, pairs, batch_size, gradient_checkpointing=False)
    mine, theirs = epochs["ours"], epochs["trl"]
    # It trains on one token more of each pair, the line end that the template puts behind the answer's end token.
    assert {epoch.tokens for epoch in (*theirs, kept)} == {mine[0].tokens + count}
    assert {epoch.steps for epoch in (*mine, *theirs, kept)} == {mine[0].steps}
    target, unit = TARGETS[kind], "tokens/s"
    title = f"{kind} pairs ({mine[0].tokens / count:.0f} tokens)"
    yield Row(f"{title}: speed against SFTTrainer", _speed(mine), _speed(theirs), unit, target, "least")
    yield Row(f"{title}: for each CPU second", _thrift(mine), _thrift(theirs), unit, target, "least")
    # Told, not judged: what of the lead is left without its recomputing of activations, and that both learn alike.
    yield Row(f"{title}: for each CPU second, it keeping activations", _thrift(mine), _thrift([kept]), unit, 0, "least")
    yield Row(f"{title}: mean loss of the epoch", mine[0].loss, theirs[0].loss, "", 1.1, "most")


def _speed(epochs: list[Epoch]) -> float:
    return median([epoch.tokens / epoch.seconds for epoch in epochs])


def _thrift(epochs: list[Epoch]) -> float:
    return median([epoch.tokens / epoch.cpu_seconds for epoch in epochs])
