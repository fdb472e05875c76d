"""Token by token: answers of one loaded model in the making, sampled, cut at stop strings, and read out as text."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import DynamicCache

from backend.trainers.loading import Target

FinishReason = Literal["stop", "length"]
# What a decoder shows for bytes that are no whole character yet.
_UNFINISHED = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: the likeliest at temperature 0, else drawn from the likeliest `top_p` of mass."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class TextStream:
    """Tokens in, text out, as soon as it is certain: whole characters, and nothing that may belong to a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._tokens: list[int] = []
        # Text of the tokens before `_shown` is out; those from `_context` on are decoded again, for their spacing.
        self._context = self._shown = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that became certain with this token; nothing more comes once `stopped`."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._context : self._shown])
        after = self._decode(self._tokens[self._context :])
        if after.endswith(_UNFINISHED):
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """What was held back, at the end of an answer that no stop string ended."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._context : self._shown])
        rest = self._release(self._decode(self._tokens[self._context :])[len(before) :])
        if not self.stopped:
            rest, self._held = rest + self._held, ""
        return rest

    def _release(self, fresh: str) -> str:
        text, self._held = self._held + fresh, ""
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        longest = max((_overlap(text, stop) for stop in self._stop), default=0)
        if longest:
            text, self._held = text[:-longest], text[-longest:]
        return text

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


@dataclass(eq=False)
class Answer:
    """One answer in the making. `prompt` holds token ids; times are of time.monotonic."""

    id: str
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    text: TextStream
    asked_at: float
    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)
    first_token_at: float | None = None
    finish_reason: FinishReason | None = None

    def take(self, logits: torch.Tensor, stop_tokens: Collection[int]) -> str:
        """Choose the next token from its `logits` (vocabulary); returns the text that became certain."""
        token = choose(logits, self.sampling, self.generator)
        self.tokens.append(token)
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        if token in stop_tokens:
            self.finish_reason = "stop"
            return self.text.finish()
        piece = self.text.push(token)
        if self.text.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            piece += self.text.finish()
            # What was held back may end with a stop string.
            self.finish_reason = "stop" if self.text.stopped else "length"
        return piece


class Batch:
    """Answers of one adapter that advance together, a token each at every step, over one cache of keys and values."""

    def __init__(
        self, model: Any, answers: Sequence[Answer], *, target: Target, pad_token: int, stop_tokens: Sequence[int]
    ) -> None:
        self.answers = list(answers)
        self.started = False
        self._model = model
        self._target = target
        self._stop_tokens = frozenset(stop_tokens)
        width = max(len(answer.prompt) for answer in self.answers)
        # On the left, so that every answer starts at the same column.
        rows = [[pad_token] * (width - len(answer.prompt)) + answer.prompt for answer in self.answers]
        mask = [[0] * (width - len(answer.prompt)) + [1] * len(answer.prompt) for answer in self.answers]
        self._input = torch.tensor(rows, device=target.device)
        self._mask = torch.tensor(mask, device=target.device)
        self._cache = DynamicCache(config=model.config)
        for answer in self.answers:
            if answer.sampling.temperature > 0:
                answer.generator = torch.Generator(device=target.device)
                seed = answer.sampling.seed
                answer.generator.seed() if seed is None else answer.generator.manual_seed(seed)

    def step(self) -> list[tuple[Answer, str]]:
        """Advance every answer by a token; returns each with its new text. Those that ended leave the batch."""
        self.started = True
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -self._input.shape[1] :]
        with torch.inference_mode(), self._target.autocast():
            output = self._model(
                input_ids=self._input,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1].float()
        stepped = [
            (answer, answer.take(row, self._stop_tokens)) for answer, row in zip(self.answers, logits, strict=True)
        ]
        self._input = torch.tensor([[answer.tokens[-1]] for answer in self.answers], device=self._target.device)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.answers), 1)], dim=1)
        self._keep([answer.finish_reason is None for answer in self.answers])
        return stepped

    def drop(self, ids: set[str]) -> list[Answer]:
        """Take answers that nobody waits for out of the batch; returns them."""
        dropped = [answer for answer in self.answers if answer.id in ids]
        if dropped:
            self._keep([answer.id not in ids for answer in self.answers])
        return dropped

    def _keep(self, kept: list[bool]) -> None:
        if all(kept):
            return
        places = [place for place, keep in enumerate(kept) if keep]
        self.answers = [self.answers[place] for place in places]
        if self.answers:
            index = torch.tensor(places, device=self._target.device)
            self._input, self._mask = self._input[index], self._mask[index]
            self._cache.batch_select_indices(index)


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """The next token's id, from the `logits` (vocabulary) of one answer."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    probabilities, tokens = torch.softmax(logits / sampling.temperature, dim=-1).sort(descending=True)
    if sampling.top_p < 1:
        # The token that crosses the border still counts, so at least one is left.
        probabilities[probabilities.cumsum(-1) - probabilities >= sampling.top_p] = 0.0
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


def context_of(model: Any) -> int | None:
    """How many tokens prompt and answer may have together; None where the model's config does not say."""
    config = model.config.get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found else None


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
