"""Strategy for strong models: several examples in one request, each with a verbatim quote that proves it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backend.datasets.strategies.base import (
    Ask,
    ChunkText,
    ExampleDraft,
    InvalidReason,
    Plan,
    TaskNotSupportedByModel,
    TaskType,
)
from backend.datasets.strategies.pages import page_of
from backend.datasets.strategies.prompt_files import fenced, fill
from backend.datasets.strategies.quality import answer_fault, quote_in
from backend.datasets.strategies.selection import best_first, without_repeats
from backend.providers.llm.base import ChatCompletion, ChatMessage, ChatRequest

# More examples in one request than this, and models begin to repeat themselves.
MOST_EXAMPLES_PER_REQUEST = 8
TOKENS_PER_EXAMPLE = 350
SHORTEST_PASSAGE_CHARACTERS = 80


class FreeStrategy:
    """For models that follow instructions: any task, any language; what its quote does not carry is marked invalid."""

    name = "free"

    def plan(self, chunk: ChunkText, wanted: int) -> Plan:
        """One request for each MOST_EXAMPLES_PER_REQUEST examples; none for a chunk with next to no text."""
        if chunk.task_type is TaskType.CLASSIFICATION and len(chunk.labels) < 2:
            raise TaskNotSupportedByModel(
                "Classification needs at least two classes: set them in the project's configuration, "
                "or choose another task.",
                task_type=chunk.task_type.value,
            )
        if len(chunk.text.strip()) < SHORTEST_PASSAGE_CHARACTERS:
            return Plan()
        asks: list[Ask] = []
        left = wanted
        while left > 0:
            asks.append(_ask(chunk, min(left, MOST_EXAMPLES_PER_REQUEST), number=len(asks)))
            left -= MOST_EXAMPLES_PER_REQUEST
        return Plan(asks=tuple(asks))

    def read(self, chunk: ChunkText, ask: Ask, completion: ChatCompletion) -> list[ExampleDraft]:
        """The examples of one answer, each judged against the chunk."""
        return [_draft(chunk, item, completion.model) for item in (completion.parsed or {}).get("examples", ())]

    def select(self, drafts: Sequence[ExampleDraft], wanted: int) -> list[ExampleDraft]:
        """The first `wanted` valid ones without repeats, spread over their quotes."""
        return best_first(without_repeats(drafts), wanted)


def _ask(chunk: ChunkText, wanted: int, number: int) -> Ask:
    context = f"The passage stands under: {fenced(' > '.join(chunk.headings))}\n\n" if chunk.headings else ""
    task = fill(f"free_task_{chunk.task_type.value}", **_task_values(chunk))
    user = fill("free_user", context=context, text=fenced(chunk.text.strip()), wanted=wanted, task=task)
    request = ChatRequest(
        messages=(ChatMessage("system", fill("free_system")), ChatMessage("user", user)),
        schema=examples_schema(chunk, wanted),
        schema_name="examples",
        max_tokens=TOKENS_PER_EXAMPLE * wanted + 200,
        temperature=0.3 + 0.2 * min(number, 3),  # later requests for the same chunk must not repeat the first
        seed=number + 1,
    )
    return Ask(request=request, subject=chunk.text, shape=chunk.task_type.value)


def _task_values(chunk: ChunkText) -> dict[str, str]:
    return {"labels": ", ".join(chunk.labels)} if chunk.task_type is TaskType.CLASSIFICATION else {}


def examples_schema(chunk: ChunkText, wanted: int) -> dict[str, Any]:
    """JSON Schema of an answer; the classes of a classification are an enum."""
    text = {"type": "string"}
    output = {"enum": list(chunk.labels)} if chunk.task_type is TaskType.CLASSIFICATION else text
    item = {
        "type": "object",
        # The quote first: what is written next can then rest on it.
        "properties": {"quote": text, "instruction": text, "input": text, "output": output},
        "required": ["quote", "instruction", "input", "output"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"examples": {"type": "array", "items": item, "minItems": 1, "maxItems": wanted}},
        "required": ["examples"],
        "additionalProperties": False,
    }


def _draft(chunk: ChunkText, item: dict[str, str], model: str) -> ExampleDraft:
    draft = ExampleDraft(
        instruction=item["instruction"].strip(),
        input=item["input"].strip(),
        output=item["output"].strip(),
        quote=item["quote"].strip(),
        page=page_of(chunk, item["quote"]),
        meta={"strategy": FreeStrategy.name, "shape": chunk.task_type.value, "worded_by": model, "score": 1.0},
    )
    fault = _fault(chunk, draft)
    return draft if fault is None else replace(draft, is_valid=False, invalid_reason=fault)


def _fault(chunk: ChunkText, draft: ExampleDraft) -> InvalidReason | None:
    if len(draft.instruction.split()) < 3:
        return InvalidReason.QUESTION_VAGUE
    if chunk.task_type is TaskType.CLASSIFICATION:
        if draft.output not in chunk.labels:
            return InvalidReason.LABEL_UNKNOWN
        return None if quote_in(draft.input, chunk.text) else InvalidReason.QUOTE_NOT_FOUND
    return answer_fault(draft.instruction, draft.output, draft.quote, f"{chunk.text} {' '.join(chunk.headings)}")
