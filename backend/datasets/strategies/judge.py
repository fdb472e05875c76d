"""A second reading of what was written: one request scores a chunk's examples for faithfulness and usefulness."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.datasets.strategies.base import ChunkText, ExampleDraft
from backend.datasets.strategies.prompt_files import fenced, fill, marks
from backend.providers.llm.base import ChatMessage, ChatModel, ChatRequest, LLMError, LLMInvalidOutput

log = logging.getLogger(__name__)

LOWEST, HIGHEST = 1, 5
DEFAULT_THRESHOLD = 3.5
_MOST_PER_REQUEST = 16
_TOKENS_PER_SCORE = 80
_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the judge thinks of one example; both from 1 to 5, in one sentence's words."""

    faithfulness: int
    usefulness: int
    reason: str
    judged_by: str

    @property
    def lower(self) -> int:
        """The one that decides: an example that invents things is not made good by being useful."""
        return min(self.faithfulness, self.usefulness)

    def as_json(self) -> dict[str, Any]:
        return {
            "faithfulness": self.faithfulness,
            "usefulness": self.usefulness,
            "reason": self.reason,
            "judged_by": self.judged_by,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One score for each draft that was shown, None where the judge gave none, and the tokens it cost."""

    scores: tuple[Score | None, ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0


async def judge(model: ChatModel, chunk: ChunkText, drafts: Sequence[ExampleDraft]) -> Judgement:
    """Scores the drafts of one chunk. A judge that fails or is away leaves them unjudged; nothing is raised."""
    scores: list[Score | None] = []
    prompt_tokens = completion_tokens = 0
    for start in range(0, len(drafts), _MOST_PER_REQUEST):
        shown = drafts[start : start + _MOST_PER_REQUEST]
        try:
            completion = await model.complete(judge_request(chunk, shown))
        except LLMInvalidOutput as error:
            prompt_tokens, completion_tokens = (
                prompt_tokens + error.prompt_tokens,
                completion_tokens + error.completion_tokens,
            )
            scores += [None] * len(shown)
        except LLMError as error:
            log.warning("a chunk stays unjudged: %s", error)
            scores += [None] * len(shown)
        else:
            prompt_tokens += completion.prompt_tokens
            completion_tokens += completion.completion_tokens
            scores += read_scores(completion.parsed or {}, len(shown), completion.model)
    return Judgement(scores=tuple(scores), prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def judge_request(chunk: ChunkText, drafts: Sequence[ExampleDraft]) -> ChatRequest:
    """Passage and examples as data that cannot close the marks around them; temperature 0."""
    text = fenced(chunk.text).strip()
    open_mark, close_mark = marks(text)
    user = fill(
        "judge_user",
        open=open_mark,
        text=text,
        close=close_mark,
        examples="\n".join(_shown(number, draft) for number, draft in enumerate(drafts, 1)),
        count=len(drafts),
    )
    return ChatRequest(
        messages=(
            ChatMessage("system", fill("judge_system", open=open_mark, close=close_mark)),
            ChatMessage("user", user),
        ),
        schema=scores_schema(len(drafts)),
        schema_name="scores",
        max_tokens=_TOKENS_PER_SCORE * len(drafts) + 200,
        temperature=0.0,
    )


def scores_schema(count: int) -> dict[str, Any]:
    """JSON Schema of the judge's answer on `count` examples."""
    score = {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}
    item = {
        "type": "object",
        # The reason first: scores that follow a reason rest on it.
        "properties": {
            "number": {"type": "integer", "minimum": 1, "maximum": count},
            "reason": {"type": "string"},
            "faithfulness": score,
            "usefulness": score,
        },
        "required": ["number", "reason", "faithfulness", "usefulness"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"scores": {"type": "array", "items": item, "minItems": 1, "maxItems": count}},
        "required": ["scores"],
        "additionalProperties": False,
    }


def read_scores(parsed: dict[str, Any], count: int, judged_by: str) -> list[Score | None]:
    """The scores in the order of the examples; the first one counts where a number comes twice."""
    scores: list[Score | None] = [None] * count
    for item in parsed.get("scores", ()):
        index = int(item["number"]) - 1
        if scores[index] is None:
            scores[index] = Score(
                faithfulness=int(item["faithfulness"]),
                usefulness=int(item["usefulness"]),
                reason=" ".join(str(item["reason"]).split())[:_LONGEST_REASON],
                judged_by=judged_by,
            )
    return scores


def _shown(number: int, draft: ExampleDraft) -> str:
    fields = {
        "number": number,
        "question": draft.instruction,
        "input": draft.input,
        "answer": draft.output,
        "quote": draft.quote,
    }
    # Without '<' nothing in an example can look like the end of the examples.
    return json.dumps(fields, ensure_ascii=False).replace("<", "\\u003c")
