"""The serving child: many adapters over one base, answers side by side, cancels, memory, broken models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.tiny import REPOSITORY

QUESTIONS = ["Which colour has the lid?", "Say the colour of the cable please.", "What is the base?"]


class Serving:
    """A serving child, driven line by line."""

    def __init__(self, folder: Path, base: Path, **config: Any) -> None:
        path = folder / "serve.json"
        path.write_text(json.dumps({"device": "cpu", "threads": 1, **config}), encoding="utf-8")
        self.errors = (folder / "serve.stderr").open("w+")
        self.base = base
        self.process = subprocess.Popen(
            [sys.executable, "-m", "backend.trainers.serve", str(path)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self.events: list[dict[str, Any]] = []

    def ask(self, id: str, question: str, adapter: Path | None, **fields: Any) -> None:
        command = {
            "command": "answer",
            "id": id,
            "base_model": str(self.base),
            "messages": [{"role": "user", "content": question}],
            "adapter": adapter.name if adapter else None,
            "adapter_folder": str(adapter) if adapter else None,
            "max_tokens": 24,
            **fields,
        }
        self.send(command)

    def send(self, command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended; stderr ends with {self.stderr()[-1500:]}"
        event: dict[str, Any] = json.loads(line)
        self.events.append(event)
        return event

    def end_of(self, *ids: str) -> dict[str, Any]:
        """The end of the last of these questions; reads until all have ended."""
        while not set(ids) <= {event.get("id") for event in self.events if event["event"] in ("done", "failed")}:
            self.read()
        return next(e for e in self.events if e["event"] in ("done", "failed") and e["id"] == ids[-1])

    def text(self, id: str) -> str:
        self.end_of(id)
        return "".join(event["text"] for event in self.events if event["event"] == "token" and event["id"] == id)

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def stderr(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture(scope="module")
def adapters(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters that say different things, made without training."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = []
    for number in (1, 2, 3):
        model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
        torch.manual_seed(number)
        # Of different ranks, and one of them over fewer layers.
        targets = ["q_proj", "v_proj", "down_proj"] if number == 2 else "all-linear"
        lora = LoraConfig(r=4 * number, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
        tuned = get_peft_model(model, lora)
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if "lora_" in name:
                    weight.mul_(25)
        folder = tmp_path_factory.mktemp("adapters") / f"adapter{number}"
        tuned.save_pretrained(folder)
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def shared(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(tmp_path_factory.mktemp("serving"), base_model)
    yield serving
    serving.close()


@pytest.fixture
def start(base_model: Path, tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    made: list[Serving] = []

    def start(**config: Any) -> Serving:
        made.append(Serving(tmp_path, base_model, **config))
        return made[-1]

    yield start
    for serving in made:
        serving.close()


def by_generate(base: Path, adapter: Path | None, question: str, tokens: int) -> str:
    """What transformers' own generate says, with the adapter alone on the base."""
    from backend.trainers import loading
    from backend.trainers.answering import answer

    target = loading.choose_target("cpu", 1)
    model: Any = loading.load_base(base, target)
    if adapter is not None:
        model = loading.load_adapter(model, adapter)
    tokenizer = loading.load_tokenizer(base)
    messages = [{"role": "user", "content": question}]
    return answer(model, tokenizer, [messages], target=target, max_new_tokens=tokens)[0]


def test_each_adapter_answers_as_it_does_alone_by_generate(
    shared: Serving, base_model: Path, adapters: list[Path]
) -> None:
    told = {}
    for number, adapter in enumerate([*adapters, None]):
        shared.ask(f"alone{number}", QUESTIONS[0], adapter)
        told[number] = shared.text(f"alone{number}")
        assert told[number].strip() == by_generate(base_model, adapter, QUESTIONS[0], 24)
    assert len(set(told.values())) == 4, "the adapters must say different things, or nothing is shown"


def test_adapters_side_by_side_say_what_each_says_alone(shared: Serving, adapters: list[Path]) -> None:
    expected = {}
    for number, adapter in enumerate(adapters):
        shared.ask(f"before{number}", QUESTIONS[number], adapter)
        expected[number] = shared.text(f"before{number}")
    for number, adapter in enumerate(adapters):
        shared.ask(f"beside{number}", QUESTIONS[number], adapter)
    shared.end_of(*[f"beside{number}" for number in range(3)])
    assert {number: shared.text(f"beside{number}") for number in range(3)} == expected
    # They did run side by side: each began before any ended.
    names = [(e["event"], e["id"]) for e in shared.events if str(e.get("id")).startswith("beside")]
    first_end = next(place for place, (event, _) in enumerate(names) if event == "done")
    assert {name for event, name in names[:first_end] if event == "started"} == {f"beside{n}" for n in range(3)}
    assert shared.of("loaded")[0]["kind"] == "base"
    assert [event["kind"] for event in shared.of("loaded")].count("base") == 1


def test_questions_to_one_adapter_are_answered_as_one_batch(shared: Serving, adapters: list[Path]) -> None:
    expected = {}
    for number, question in enumerate(QUESTIONS):
        shared.ask(f"single{number}", question, adapters[0], max_tokens=4 + number)
        expected[number] = shared.text(f"single{number}")
    # The first keeps the child busy, so that the others meet in the queue.
    shared.ask("long", QUESTIONS[0], adapters[1], max_tokens=60)
    for number, question in enumerate(QUESTIONS):
        shared.ask(f"batched{number}", question, adapters[0], max_tokens=4 + number)
    assert {n: shared.text(f"batched{n}") for n in expected} == expected
    assert [shared.end_of(f"batched{n}")["completion_tokens"] for n in expected] == [4, 5, 6]


def test_limits_stops_and_counts(shared: Serving, adapters: list[Path]) -> None:
    shared.ask("whole", QUESTIONS[0], adapters[0], max_tokens=20)
    whole, end = shared.text("whole"), shared.end_of("whole")
    assert (end["finish_reason"], end["completion_tokens"]) == ("length", 20)
    assert end["prompt_tokens"] > 5
    assert end["first_token_ms"] > 0
    assert end["tokens_per_second"] > 0
    stop = whole[6:9]
    shared.ask("stopped", QUESTIONS[0], adapters[0], max_tokens=20, stop=["never said", stop])
    assert shared.text("stopped") == whole[: whole.index(stop)]
    assert shared.end_of("stopped")["finish_reason"] == "stop"
    shared.ask("not stopped", QUESTIONS[0], adapters[0], max_tokens=20, stop=[whole[-2:] + "and more"])
    assert shared.text("not stopped") == whole


def test_a_seed_repeats_what_chance_chose(shared: Serving, adapters: list[Path]) -> None:
    told = {}
    for number, seed in enumerate([7, 7, 8, None]):
        shared.ask(f"drawn{number}", QUESTIONS[0], adapters[0], temperature=1.5, seed=seed)
        told[number] = shared.text(f"drawn{number}")
    # In company, too.
    shared.ask("drawn4", QUESTIONS[0], adapters[0], temperature=1.5, seed=7)
    shared.ask("other", QUESTIONS[1], adapters[1], temperature=1.5, seed=9)
    told[4] = shared.text("drawn4")
    assert told[0] == told[1] == told[4]
    assert len({told[0], told[2], told[3]}) == 3
    shared.ask("surest", QUESTIONS[0], adapters[0], temperature=1.5, top_p=1e-9, seed=7)
    shared.ask("greedy", QUESTIONS[0], adapters[0])
    assert shared.text("surest") == shared.text("greedy")


def test_a_cancel_stops_one_answer_within_a_token_or_two(shared: Serving, adapters: list[Path]) -> None:
    shared.ask("unwanted", QUESTIONS[0], adapters[0], max_tokens=400, temperature=3.0, seed=1)
    shared.ask("wanted", QUESTIONS[1], adapters[1], max_tokens=12)
    while not any(event["event"] == "token" and event["id"] == "unwanted" for event in shared.events):
        shared.read()
    shared.send({"command": "cancel", "id": "unwanted"})
    end = shared.end_of("unwanted")
    assert end["finish_reason"] == "cancelled"
    assert end["completion_tokens"] < 100
    assert shared.end_of("wanted")["completion_tokens"] == 12
    shared.ask("after", QUESTIONS[0], adapters[0])
    assert shared.text("after")


def test_what_cannot_be_answered_is_said_and_hurts_nobody(
    shared: Serving, adapters: list[Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(adapters[0], damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"no tensors")
    other = tmp_path / "other"
    shutil.copytree(adapters[0], other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "r": 64}))
    shared.ask("long prompt", "lid " * 600, adapters[0])
    shared.ask("damaged", QUESTIONS[0], damaged)
    shared.ask("misfit", QUESTIONS[0], other)
    shared.ask("no base", QUESTIONS[0], None, base_model=str(tmp_path / "nowhere"))
    shared.ask("bad field", QUESTIONS[0], adapters[0], max_tokens="many")
    assert shared.process.stdin is not None
    shared.process.stdin.write("no json\n")
    failures = {}
    for name in ("long prompt", "damaged", "misfit", "no base", "bad field"):
        end = shared.end_of(name)
        assert end["event"] == "failed", end
        failures[name] = end["error_code"]
        assert end["error"].endswith("."), end
    assert failures == {
        "long prompt": "PROMPT_TOO_LONG",
        "damaged": "ADAPTER_UNUSABLE",
        "misfit": "ADAPTER_UNUSABLE",
        "no base": "BASE_MODEL_UNUSABLE",
        "bad field": "INVALID_CONFIG",
    }
    shared.ask("still there", QUESTIONS[0], adapters[0])
    assert shared.end_of("still there")["event"] == "done"


def test_an_answer_fills_the_context_and_no_more(shared: Serving, adapters: list[Path]) -> None:
    shared.ask("full", "lid " * 120, adapters[0], max_tokens=4000, temperature=3.0, seed=1)
    end = shared.end_of("full")
    assert end["finish_reason"] in ("length", "stop")
    assert end["prompt_tokens"] + end["completion_tokens"] <= 512


def test_a_template_that_refuses_the_messages(shared: Serving, base_model: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict"
    shutil.copytree(base_model, strict)
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    config = json.loads((strict / "tokenizer_config.json").read_text())
    (strict / "chat_template.jinja").unlink(missing_ok=True)
    (strict / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template + "hello"}))
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    shared.ask("refused", "", None, base_model=str(strict), messages=messages)
    end = shared.end_of("refused")
    assert end["error_code"] == "PROMPT_REFUSED"
    assert "System role not supported" in end["error"]


@pytest.fixture(scope="module")
def small(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One that may use 1 MB: a base takes a quarter or a half of it here, an adapter up to a tenth."""
    serving = Serving(tmp_path_factory.mktemp("small"), base_model, memory_mb=1)
    yield serving
    serving.close()


def test_the_least_recently_used_adapters_go_when_memory_is_short(
    small: Serving, adapters: list[Path], tmp_path: Path
) -> None:
    small.ask("first", QUESTIONS[0], adapters[2])
    first = small.text("first")
    for number in range(10):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(adapters[2], copy)
        small.ask(copy.name, QUESTIONS[0], copy)
        assert small.text(copy.name) == first
    evicted = [event["key"] for event in small.of("evicted")]
    assert evicted
    assert evicted == [adapters[2].name, *[f"copy{n}" for n in range(len(evicted) - 1)]]
    small.ask("again", QUESTIONS[0], adapters[2])
    assert small.text("again") == first
    assert [event["kind"] for event in small.of("loaded")].count("base") == 1


def test_the_least_recently_used_base_goes_when_memory_is_short(
    small: Serving, base_model: Path, adapters: list[Path], tmp_path: Path
) -> None:
    for number in range(5):
        copy = tmp_path / f"base{number}"
        shutil.copytree(base_model, copy)
        small.ask(f"base{number}", QUESTIONS[0], adapters[2], base_model=str(copy))
        assert small.text(f"base{number}") == small.text("first")
    bases = [Path(event["key"]).name for event in small.of("evicted") if event["kind"] == "base"]
    assert bases[:2] == [base_model.name, "base0"]
    assert max(event["memory_mb"] for event in small.of("loaded")) <= 1


def test_what_does_not_fit_by_itself_is_refused(
    small: Serving, base_model: Path, adapters: list[Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    large = tmp_path / "large"
    shutil.copytree(base_model, large)
    save_file({"ballast": torch.zeros(1024, 1024)}, large / "ballast.safetensors")
    small.ask("large", QUESTIONS[0], None, base_model=str(large))
    end = small.end_of("large")
    assert end["error_code"] == "SERVING_MEMORY_EXCEEDED"
    assert "SERVING_MEMORY_MB" in end["error"]
    small.ask("small", QUESTIONS[0], adapters[0])
    assert small.end_of("small")["event"] == "done"


def test_it_ends_with_its_input_and_by_a_signal(start: Callable[..., Serving], adapters: list[Path]) -> None:
    serving = start()
    serving.ask("q", QUESTIONS[0], adapters[0], max_tokens=3)
    serving.end_of("q")
    assert serving.process.stdin is not None
    serving.process.stdin.close()
    assert serving.process.wait(20) == 0
    again = start()
    again.ask("q", QUESTIONS[0], adapters[0], max_tokens=500, temperature=3.0, seed=1)
    while again.read()["event"] != "token":
        pass
    asked_at = time.monotonic()
    os.killpg(again.process.pid, signal.SIGTERM)
    assert again.process.wait(20) == 128 + signal.SIGTERM
    assert time.monotonic() - asked_at < 15
