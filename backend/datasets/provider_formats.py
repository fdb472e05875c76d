"""Examples as the training files that providers take, held against what each provider documents.

Numbers come from `backend/providers/catalogue.toml` with its pages; the shapes from these pages:
openai: platform.openai.com/docs/guides/supervised-fine-tuning; mistral: docs.mistral.ai/capabilities/finetuning;
together: docs.together.ai/docs/fine-tuning-data-preparation;
fireworks: docs.fireworks.ai/fine-tuning/fine-tuning-models;
bedrock: docs.aws.amazon.com/bedrock/latest/userguide/preparing-text-data.html (`bedrock-conversation-2024`, which Nova
reads too: nova-2-sft-data-prep.html); anthropic, and Claude on Bedrock:
github.com/anthropics/claude-cookbooks/blob/main/finetuning/finetuning_on_bedrock.ipynb.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import orjson

from backend.datasets.errors import ExportLimits
from backend.datasets.formats import Message, Row, messages_of
from backend.providers import catalogue
from backend.providers.catalogue import Limits

ProviderName = Literal["openai", "mistral", "together", "fireworks", "anthropic", "bedrock"]
PROVIDERS: tuple[ProviderName, ...] = get_args(ProviderName)
# Anthropic trains at Bedrock alone; these are the bounds of Claude 3 Haiku there (the catalogue has them, too).
_CLAUDE: Final = Limits(min_examples=32, max_examples=10_000, roles=("system", "user", "assistant"))
# Whose messages must go to and fro between user and assistant.
_ALTERNATING: Final = frozenset({"anthropic", "bedrock", "together"})
_SCHEMA: Final = "bedrock-conversation-2024"


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that the file breaks; `line` counts from 1 and is the first that does, None for the file as a whole."""

    rule: str
    detail: str
    line: int | None = None


class TrainingFile:
    """Shapes examples as a provider's lines, and gathers which of its rules they break.

    `is_training`: the least number of examples holds for a training file, not for one to validate with. There an answer
    that was rated several times stands once: it would be paid for and learned again with each of its ratings.
    """

    def __init__(self, provider: ProviderName, model: str | None = None, *, is_training: bool = True) -> None:
        self.provider = provider
        self.lines = 0
        self.size_bytes = 0
        self._limits = limits_of(provider, model)
        self._shape = shape_of(provider, model)
        self._is_training = is_training
        self._first: dict[str, tuple[int, str]] = {}
        self._counts: dict[str, int] = {}
        self._rated: set[int] = set()

    def encode(self, rows: Sequence[Row]) -> bytes:
        """The rows as JSON lines; what is wrong with them is told by `broken` at the end."""
        lines = bytearray()
        for row in rows:
            messages = messages_of(row.instruction, row.input, row.output, row.history)
            if self._is_training and row.rejected is not None:
                known = hash(tuple((turn["role"], turn["content"]) for turn in messages))
                if known in self._rated:
                    continue
                self._rated.add(known)
            self.lines += 1
            for rule, what in _faults(messages, self._limits.roles, alternating=self.provider in _ALTERNATING):
                self._first.setdefault(rule, (self.lines, what))
                self._counts[rule] = self._counts.get(rule, 0) + 1
            lines += orjson.dumps(self._shape(messages), option=orjson.OPT_APPEND_NEWLINE)
        self.size_bytes += len(lines)
        return bytes(lines)

    @property
    def broken(self) -> list[Broken]:
        limits, found = self._limits, []
        least = max(1, limits.min_examples if self._is_training else 1)
        if self.lines < least:
            found.append(Broken("too_few_examples", f"It takes {least:,} examples or more; there are {self.lines:,}."))
        if limits.max_examples is not None and self.lines > limits.max_examples:
            detail = f"It takes {limits.max_examples:,} examples at most; there are {self.lines:,}."
            found.append(Broken("too_many_examples", detail))
        if limits.max_file_bytes is not None and self.size_bytes > limits.max_file_bytes:
            most = limits.max_file_bytes // 1024**2
            detail = f"It takes files of {most:,} MB at most; this one has {-(-self.size_bytes // 1024**2):,} MB."
            found.append(Broken("file_too_large", detail))
        for rule, (line, what) in self._first.items():
            detail = f"{what} In {self._counts[rule]:,} examples, the first of them in line {line:,}."
            found.append(Broken(rule, detail, line))
        return found

    def require_fit(self) -> None:
        """Raises ExportLimits with every broken rule."""
        if broken := self.broken:
            rules = [{"rule": one.rule, "detail": one.detail, "line": one.line} for one in broken]
            name = catalogue.providers()[self.provider].name
            raise ExportLimits(provider=name, broken=" ".join(one.detail for one in broken), rules=rules)


def limits_of(provider: ProviderName, model: str | None = None) -> Limits:
    """Those of the model where the catalogue has it, else those that hold for the provider's models in general."""
    if provider == "anthropic":
        return _CLAUDE
    known = catalogue.providers()[provider]
    base = known.find(model) if model else None
    if base is None:
        base = known.models[0] if known.models else None
    return base.limits if base is not None else Limits()


def shape_of(provider: ProviderName, model: str | None = None) -> Callable[[list[Message]], dict[str, Any]]:
    """How one example is written. Claude on Bedrock has a shape of its own."""
    if provider == "anthropic" or (provider == "bedrock" and (model or "").startswith("anthropic.")):
        return _claude
    return _bedrock if provider == "bedrock" else _messages


def _faults(messages: Sequence[Message], roles: Sequence[str], *, alternating: bool) -> list[tuple[str, str]]:
    """(rule, sentence) of what is wrong with one example, each rule once."""
    found = []
    unknown = next((turn["role"] for turn in messages if turn["role"] not in roles), None)
    if unknown is not None:
        found.append(("role", f"A message has the role '{unknown[:40]}'; it takes {', '.join(roles)}."))
    if any(not turn["content"].strip() for turn in messages):
        found.append(("empty_content", "A message is empty."))
    said = [turn["role"] for turn in messages]
    if "system" in said[1:]:
        found.append(("system_first", "A system prompt stands after other messages; it must be the first."))
    if said[-1] != "assistant":
        found.append(("last_message", "The last message is not the assistant's."))
    turns = [role for role in said if role != "system"]
    if alternating and any(role != ("user", "assistant")[place % 2] for place, role in enumerate(turns)):
        found.append(("alternation", "User and assistant do not take turns, beginning with the user."))
    return found


def _messages(messages: list[Message]) -> dict[str, Any]:
    return {"messages": messages}


def _claude(messages: list[Message]) -> dict[str, Any]:
    system, turns = _split(messages)
    return {"system": system, "messages": turns} if system is not None else {"messages": turns}


def _bedrock(messages: list[Message]) -> dict[str, Any]:
    system, turns = _split(messages)
    found: dict[str, Any] = {"schemaVersion": _SCHEMA}
    if system is not None:
        found["system"] = [{"text": system}]
    found["messages"] = [{"role": turn["role"], "content": [{"text": turn["content"]}]} for turn in turns]
    return found


def _split(messages: list[Message]) -> tuple[str | None, list[Message]]:
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages
