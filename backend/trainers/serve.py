"""Answers questions as they come, from models that stay loaded: `python -m backend.trainers.serve CONFIG.json`.

Commands come as JSON lines on standard input (`answer`, `cancel`), events go out as JSON lines: `token` as the text
grows, then one `done` or `failed` for each question. It ends when its input ends.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.trainers import process
from backend.trainers.config import Device, parse_config
from backend.trainers.errors import OUT_OF_MEMORY, TrainerError, from_exception, prompt_refused
from backend.trainers.events import Events

if TYPE_CHECKING:
    from backend.trainers.decoding import Answer, Batch
    from backend.trainers.warm_models import ModelKey, WarmBase, WarmModels

PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
# Tokens that a batch makes before another one has its turn: a switch of adapters costs about a fifth of a token.
_TURN_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """`memory_mb` bounds the loaded models (0: a share of what there is), `max_answers` those made at once."""

    memory_mb: int = 0
    max_answers: int = 8
    device: Device = "auto"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question. `adapter` names the files in `adapter_folder` for as long as they stay the same; None: the base."""

    id: str
    base_model: Path
    messages: list[dict[str, str]]
    adapter: str | None = None
    adapter_folder: Path | None = None
    load_in_4bit: bool = False
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: list[str] = field(default_factory=list)
    seed: int | None = None


def serve(config: ServeConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Answer until the input ends."""
    # Loaded late: see qlora.py.
    from backend.trainers import loading
    from backend.trainers.warm_models import WarmModels

    target = loading.choose_target(config.device, config.threads)

    def on_change(what: str, kind: str, key: str, total_mb: int) -> None:
        events.emit(what, kind=kind, key=key, memory_mb=total_mb)

    models = WarmModels(target, config.memory_mb, on_change)
    commands: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read_commands, args=(commands,), name="commands", daemon=True).start()
    events.emit("ready", device=target.device, budget_mb=models.budget_bytes // (1024 * 1024))
    Server(models, target, events, config.max_answers).run(commands)


class Server:
    """Takes questions in their order, lets batches take turns, and hears of cancels between any two tokens."""

    def __init__(self, models: WarmModels, target: Any, events: Events, max_answers: int) -> None:
        self._models = models
        self._target = target
        self._events = events
        self._max_answers = max_answers
        self._waiting: deque[tuple[Question, float]] = deque()
        self._batches: deque[tuple[ModelKey, WarmBase, Batch]] = deque()
        self._open = True

    def run(self, commands: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        while self._open:
            self._listen(commands, wait=not self._batches and not self._waiting)
            while self._open and self._admit():
                pass
            if self._batches:
                self._take_turn(commands)

    def _listen(self, commands: queue.SimpleQueue[dict[str, Any] | None], *, wait: bool) -> None:
        with suppress(queue.Empty):
            while True:
                command = commands.get(block=wait)
                wait = False
                if command is None:
                    self._open = False
                elif command.get("command") == "cancel":
                    self._cancel(str(command.get("id")))
                else:
                    self._enqueue(command)

    def _enqueue(self, command: dict[str, Any]) -> None:
        try:
            fields = {name: value for name, value in command.items() if name != "command"}
            self._waiting.append((parse_config(Question, fields), time.monotonic()))
        except TrainerError as error:
            self._fail(str(command.get("id")), error)

    def _cancel(self, id: str) -> None:
        for item in [item for item in self._waiting if item[0].id == id]:
            self._waiting.remove(item)
            self._events.emit("done", id=id, finish_reason="cancelled", prompt_tokens=0, completion_tokens=0)
        for entry in list(self._batches):
            for answer in entry[2].drop({id}):
                self._tell_end(answer, "cancelled")
            if not entry[2].answers:
                self._batches.remove(entry)

    def _admit(self) -> bool:
        """Starts the first of those that wait, with others that ask the same model; False when there is no room."""
        from backend.trainers.warm_models import BaseKey, ModelKey, NoRoom

        free = self._max_answers - sum(len(batch.answers) for _, _, batch in self._batches)
        if not self._waiting or free < 1:
            return False
        first = self._waiting[0][0]

        def key_of(question: Question) -> ModelKey:
            return ModelKey(BaseKey(str(question.base_model), question.load_in_4bit), question.adapter or "")

        key = key_of(first)
        together = [item for item in self._waiting if key_of(item[0]) == key][:free]
        try:
            base = self._models.get(key, first.adapter_folder, [used for used, _, _ in self._batches])
        except NoRoom:
            return False
        except Exception as error:  # whatever a library makes of a broken model: the others are still answered
            self._leave_queue(together)
            for question, _ in together:
                self._fail(question.id, error)
            return True
        self._leave_queue(together)
        self._start(key, base, together)
        return True

    def _leave_queue(self, items: Iterable[tuple[Question, float]]) -> None:
        for item in items:
            self._waiting.remove(item)

    def _start(self, key: ModelKey, base: WarmBase, items: list[tuple[Question, float]]) -> None:
        from backend.trainers.decoding import Batch

        answers = []
        for question, asked_at in items:
            try:
                answers.append(_prepare(question, base, asked_at))
            except Exception as error:  # a chat template may raise anything
                self._fail(question.id, error)
        if not answers:
            return
        pad = base.tokenizer.pad_token_id
        batch = Batch(base.model, answers, target=self._target, pad_token=pad, stop_tokens=base.stop_tokens)
        # A new question's first token comes before the next token of the others, in the order of the questions.
        self._batches.insert(sum(not other.started for _, _, other in self._batches), (key, base, batch))
        for answer in answers:
            self._events.emit("started", id=answer.id, prompt_tokens=len(answer.prompt))

    def _take_turn(self, commands: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        entry = self._batches[0]
        key, base, batch = entry
        try:
            self._models.switch(base, key.adapter)
            for _ in range(_TURN_TOKENS):
                for answer, piece in batch.step():
                    if piece:
                        self._events.emit("token", id=answer.id, text=piece)
                    if answer.finish_reason is not None:
                        self._tell_end(answer, answer.finish_reason)
                asked = len(self._waiting)
                self._listen(commands, wait=False)
                is_next_new = len(self._batches) > 1 and not self._batches[1][2].started
                if not batch.answers or not self._open or len(self._waiting) > asked or is_next_new:
                    break
        except Exception as error:  # out of memory, or a model that computes nonsense: the others are still answered
            for answer in batch.answers:
                self._fail(answer.id, error)
            batch.answers = []
        if entry in self._batches:
            self._batches.remove(entry)
            if batch.answers:
                self._batches.append(entry)

    def _tell_end(self, answer: Answer, reason: str) -> None:
        now = time.monotonic()
        first = answer.first_token_at
        later = len(answer.tokens) - 1
        self._events.emit(
            "done",
            id=answer.id,
            finish_reason=reason,
            prompt_tokens=len(answer.prompt),
            completion_tokens=len(answer.tokens),
            first_token_ms=None if first is None else round(1000 * (first - answer.asked_at), 1),
            tokens_per_second=round(later / (now - first), 2) if first is not None and later and now > first else None,
        )

    def _fail(self, id: str, error: Exception) -> None:
        failure = _failure(error)
        if not isinstance(error, TrainerError):
            traceback.print_exception(error)
        self._events.emit("failed", id=id, error_code=failure.code, error=str(failure))


def _prepare(question: Question, base: WarmBase, asked_at: float) -> Answer:
    """The question in tokens. Raises TrainerError PROMPT_REFUSED, PROMPT_TOO_LONG."""
    from jinja2 import TemplateError

    from backend.trainers.decoding import Answer, Sampling, TextStream
    from backend.trainers.examples import prompt_ids

    try:
        prompt = prompt_ids(base.tokenizer, question.messages)
    except TemplateError as error:
        raise prompt_refused(error) from error
    room = base.context - len(prompt) if base.context is not None else question.max_tokens
    if room < 1:
        raise TrainerError(
            PROMPT_TOO_LONG,
            f"The messages have {len(prompt)} tokens, and the model takes {base.context} with its answer. "
            "Shorten them.",
        )
    return Answer(
        id=question.id,
        prompt=prompt,
        max_tokens=min(question.max_tokens, room),
        sampling=Sampling(temperature=question.temperature, top_p=question.top_p, seed=question.seed),
        text=TextStream(base.tokenizer, question.stop),
        asked_at=asked_at,
    )


def _failure(error: Exception) -> TrainerError:
    failure = from_exception(error)
    if failure.code == OUT_OF_MEMORY:
        return TrainerError(
            OUT_OF_MEMORY,
            "There was not enough memory for the model's answer. Ask again when less is running, with a shorter "
            "prompt, or lower SERVING_MEMORY_MB, so that fewer models stay loaded.",
        )
    return failure


def _read_commands(commands: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Hands every line of the input on; None at its end."""
    held = b""
    # Not through sys.stdin, whose lock a thread that waits for input would still hold when the process ends.
    while received := os.read(0, 65_536):
        *lines, held = (held + received).split(b"\n")
        for line in lines:
            try:
                commands.put(dict(json.loads(line)))
            except (ValueError, TypeError):
                print(f"a line that is no command: {line[:100]!r}", file=sys.stderr)
    commands.put(None)


if __name__ == "__main__":
    sys.exit(process.run(ServeConfig, serve))
