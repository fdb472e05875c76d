"""The tests' tiny data, and trainers run as real child processes or in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
ConfigMaker = Callable[..., dict[str, Any]]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COLOURS = ["red", "green", "blue", "amber", "slate", "ivory", "olive", "coral"]
PARTS = ["lid", "spout", "handle", "base", "filter", "switch", "cable", "sensor"]

HYPERPARAMS: dict[str, Any] = {
    "num_epochs": 6,
    "learning_rate": 1e-2,
    "per_device_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_seq_length": 128,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
}


def pairs(question: str) -> list[dict[str, Any]]:
    """Eight facts as conversations, asked by `question`."""
    return [
        {
            "messages": [
                {"role": "user", "content": question.format(part=part)},
                {"role": "assistant", "content": f"The {part} of the kettle is {colour}."},
            ]
        }
        for part, colour in zip(PARTS, COLOURS, strict=True)
    ]


TRAIN_ROWS = pairs("Which colour has the {part}?") + pairs("Say the colour of the {part} please, I forgot which it is.")
EVAL_ROWS = pairs("What colour is the {part}?")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass
class Recorder:
    """Collects events in this process, through the same writer that a child uses."""

    lines: list[str] = field(default_factory=list)

    def write(self, text: str) -> int:
        self.lines.append(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""

    def of(self, event: str) -> list[dict[str, Any]]:
        return [item for item in map(json.loads, self.lines) if item["event"] == event]


def run_here(config: dict[str, Any]) -> Recorder:
    """Run a fine-tune in this process, where torch is loaded already; errors propagate."""
    from backend.trainers.config import TrainConfig, parse_config
    from backend.trainers.events import Events
    from backend.trainers.process import Cancellation
    from backend.trainers.qlora import fine_tune

    recorder = Recorder()
    fine_tune(parse_config(TrainConfig, config), Events(recorder), Cancellation())  # type: ignore[arg-type]
    return recorder


def run(job: Callable[..., None], config_type: type[Any], **config: Any) -> Recorder:
    """Run any trainer in this process; errors propagate."""
    from backend.trainers.config import parse_config
    from backend.trainers.events import Events
    from backend.trainers.process import Cancellation

    recorder = Recorder()
    job(parse_config(config_type, config), Events(recorder), Cancellation())  # type: ignore[arg-type]
    return recorder


class Child:
    """A trainer as the worker starts it."""

    def __init__(self, module: str, config: dict[str, Any] | None, folder: Path) -> None:
        command = [sys.executable, "-m", f"backend.trainers.{module}"]
        if config is not None:
            path = folder / f"{module}.json"
            path.write_text(json.dumps(config), encoding="utf-8")
            command.append(str(path))
        self.errors = (folder / f"{module}.stderr").open("w+")
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=self.errors, text=True, start_new_session=True
        )
        self.events: list[dict[str, Any]] = []

    def read_until(self, event: str, count: int = 1) -> None:
        """Read events until `event` came `count` times; fails the test when the stream ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if len(self.of(event)) >= count:
                return
        pytest.fail(f"no {event} event; stderr ends with {self.stderr()[-1500:]}")

    def finish(self, timeout_seconds: float = 60) -> int:
        """Read the rest, every line of which must be a JSON object, and return the exit code."""
        rest, _ = self.process.communicate(timeout=timeout_seconds)
        self.events += [json.loads(line) for line in rest.splitlines()]
        assert all(isinstance(item, dict) and "event" in item for item in self.events)
        return self.process.returncode

    def of(self, event: str) -> list[dict[str, Any]]:
        return [item for item in self.events if item["event"] == event]

    def stderr(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.errors.close()
