"""Strategy for strong models: several examples in one request, each with a verbatim quote that proves it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from backend.datasets.strategies.grounding import codes_of, supported
from backend.datasets.strategies.injection import cleaned, is_order, readings, words_to_say
from backend.datasets.strategies.language import content_stems, words
from backend.datasets.strategies.pages import page_of
from backend.datasets.strategies.passage_language import language_of_passage, named, written_in
from backend.datasets.strategies.prompt_files import fenced, fill, marks
from backend.datasets.strategies.quotes import find_quote
from backend.datasets.strategies.selection import asks_again, best_first, without_repeats
from backend.datasets.strategies.slots import Slot, slots
from backend.datasets.strategies.text_faults import (
    LONGEST_QUESTION_WORDS,
    gives_itself_away,
    leftover,
    length_fault,
    question_unclear,
    refuses,
)
from backend.providers.llm.base import ChatCompletion, ChatMessage, ChatRequest

# More examples in one request than this, and models begin to repeat themselves.
MOST_EXAMPLES_PER_REQUEST = 8
TOKENS_PER_EXAMPLE = 350
SHORTEST_PASSAGE_CHARACTERS = 80
# What is shown of the questions that a chunk already has; all of them are compared with.
MOST_AVOIDED_SHOWN, LONGEST_AVOIDED_SHOWN = 30, 160
# Languages whose nouns all begin with a capital, so that names do not stand out.
_CAPITAL_NOUNS = {"de"}
_WITH_INPUT = {TaskType.CLASSIFICATION, TaskType.SUMMARIZATION}


class FreeStrategy:
    """For models that follow instructions: any task, any language; what its quote does not carry is marked invalid."""

    name = "free"

    def plan(self, chunk: ChunkText, wanted: int) -> Plan:
        """One request for each MOST_EXAMPLES_PER_REQUEST examples; none for a chunk with next to no text."""
        if chunk.task_type is TaskType.CLASSIFICATION and len(chunk.labels) < 2:
            raise TaskNotSupportedByModel(
                advice="It needs at least two classes to choose from: set `labels` in the project's config, "
                "or choose another task.",
                task_type=chunk.task_type.value,
            )
        passage = cleaned(chunk.text)
        if len(passage.text.strip()) < SHORTEST_PASSAGE_CHARACTERS:
            return Plan(orders_removed=len(passage.removed))
        language = language_of_passage(replace(chunk, text=passage.text))
        planned = slots(replace(chunk, text=passage.text), language, wanted)
        asks = tuple(
            _ask(chunk, language, planned[start : start + MOST_EXAMPLES_PER_REQUEST], number)
            for number, start in enumerate(range(0, wanted, MOST_EXAMPLES_PER_REQUEST))
        )
        return Plan(asks=asks, orders_removed=len(passage.removed))

    def read(self, chunk: ChunkText, ask: Ask, completion: ChatCompletion) -> list[ExampleDraft]:
        """The examples of one answer, each judged against the chunk."""
        passage = _Passage.of(chunk)
        return [_draft(passage, item, completion.model) for item in (completion.parsed or {}).get("examples", ())]

    def select(self, drafts: Sequence[ExampleDraft], wanted: int) -> list[ExampleDraft]:
        """The first `wanted` valid ones without repeats, spread over their quotes."""
        return best_first(without_repeats(drafts), wanted)


def _ask(chunk: ChunkText, language: str | None, planned: Sequence[Slot], number: int) -> Ask:
    text = fenced(chunk.text).strip()
    open_mark, close_mark = marks(text)
    headings = fenced(" > ".join(chunk.headings)).strip()
    task = fill(f"free_task_{chunk.task_type.value}", **_task_values(chunk))
    lines = "\n".join(slot.as_line(place) for place, slot in enumerate(planned, 1))
    user = fill(
        "free_user",
        context=f"The passage stands under: {headings}\n\n" if headings else "",
        open=open_mark,
        text=text,
        close=close_mark,
        wanted=len(planned),
        language=named(language),
        task=task,
        slots=fill("free_slots", slots=lines),
        avoid=_avoid(chunk),
    )
    system = fill("free_system", open=open_mark, close=close_mark, language=named(language))
    times = number + chunk.round - 1
    request = ChatRequest(
        messages=(ChatMessage("system", system), ChatMessage("user", user)),
        schema=examples_schema(chunk, planned),
        schema_name="examples",
        max_tokens=TOKENS_PER_EXAMPLE * len(planned) + 200,
        temperature=0.3 + 0.2 * min(times, 3),  # later requests for the same chunk must not repeat the first
        seed=times + 1,
    )
    return Ask(request=request, subject=chunk.text, shape=chunk.task_type.value)


def _avoid(chunk: ChunkText) -> str:
    if not chunk.avoid:
        return ""
    shown = (
        fenced(" ".join(question.split()))[:LONGEST_AVOIDED_SHOWN] for question in chunk.avoid[-MOST_AVOIDED_SHOWN:]
    )
    return fill("free_avoid", questions="\n".join(f"- {question}" for question in shown)) + "\n"


def _task_values(chunk: ChunkText) -> dict[str, str]:
    return {"labels": ", ".join(chunk.labels)} if chunk.task_type is TaskType.CLASSIFICATION else {}


def examples_schema(chunk: ChunkText, planned: Sequence[Slot]) -> dict[str, Any]:
    """JSON Schema of an answer; kinds of questions, difficulties and classes are enums."""
    text = {"type": "string"}
    output = {"enum": list(chunk.labels)} if chunk.task_type is TaskType.CLASSIFICATION else text
    properties = {
        "question_type": {"enum": sorted({slot.question_type for slot in planned})},
        "difficulty": {"enum": sorted({slot.difficulty for slot in planned})},
        # The quote before the rest: what is written next can then rest on it.
        "quote": text,
        "instruction": text,
        "input": text,
        "output": output,
    }
    item = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"examples": {"type": "array", "items": item, "minItems": 1, "maxItems": len(planned)}},
        "required": ["examples"],
        "additionalProperties": False,
    }


@dataclass(frozen=True, slots=True)
class _Passage:
    """A chunk as its examples are judged against it."""

    chunk: ChunkText
    text: str
    removed: str
    # Words that only the orders in the chunk use.
    foreign: frozenset[str]
    language: str | None

    @classmethod
    def of(cls, chunk: ChunkText) -> "_Passage":
        clean = cleaned(chunk.text)
        removed = "\n".join((*clean.removed, *cleaned("\n".join(chunk.headings)).removed))
        decoded = (reading for sentence in clean.removed for reading in readings(sentence))
        own = frozenset(content_stems(f"{clean.text} {' '.join(chunk.headings)}"))
        return cls(
            chunk=chunk,
            text=clean.text,
            removed=removed,
            foreign=frozenset(content_stems("\n".join((removed, *decoded)))) - own - _ANYWHERE,
            language=language_of_passage(replace(chunk, text=clean.text)),
        )


# Words of orders that examples use as well; they betray nothing.
_ANYWHERE = frozenset(
    content_stems(
        "answer question example write say reply respond use give name state mention text word output instruction "
        "réponse question exemple écrire dire répondre donner antwort frage respuesta pregunta document passage all "
        "new only always now task system model language assistant what"
    )
)


def _draft(passage: _Passage, item: dict[str, str], model: str) -> ExampleDraft:
    given, said = item["input"].strip(), item["quote"].strip()
    task = passage.chunk.task_type
    if task in _WITH_INPUT:
        # What is to be classified or summarised is itself the evidence, in the document's own characters.
        found = find_quote(given or said, passage.text)
        given = found or given
    else:
        found = find_quote(said, passage.text)
        if task is not TaskType.INSTRUCTION:
            given = ""
    draft = ExampleDraft(
        instruction=item["instruction"].strip(),
        input=given,
        output=item["output"].strip(),
        quote=found or said,
        page=page_of(passage.chunk, found or said),
        meta={
            "strategy": FreeStrategy.name,
            "shape": task.value,
            "question_type": item.get("question_type", ""),
            "difficulty": item.get("difficulty", ""),
            "worded_by": model,
            "score": 1.0,
            **({"language": passage.language} if passage.language else {}),
            **({"round": passage.chunk.round} if passage.chunk.round > 1 else {}),
        },
    )
    fault = _fault(passage, draft, is_quoted=found is not None)
    return draft if fault is None else replace(draft, is_valid=False, invalid_reason=fault)


def _fault(passage: _Passage, draft: ExampleDraft, *, is_quoted: bool) -> InvalidReason | None:
    chunk, task = passage.chunk, passage.chunk.task_type
    own = f"{passage.text} {' '.join(chunk.labels)}"
    if leftover(draft.instruction, own) or leftover(draft.output, own):
        return InvalidReason.LEFTOVER
    if _rests_on_orders(passage, draft):
        return InvalidReason.INSTRUCTION_IN_SOURCE
    if fault := _text_fault(passage, draft):
        return fault
    if task is TaskType.CLASSIFICATION:
        if draft.output not in chunk.labels:
            return InvalidReason.LABEL_UNKNOWN
        return None if is_quoted else InvalidReason.QUOTE_NOT_FOUND
    if not is_quoted:
        return InvalidReason.QUOTE_NOT_FOUND
    if fault := length_fault(task, draft.output, draft.input):
        return fault
    if task is not TaskType.SUMMARIZATION and gives_itself_away(draft.instruction, draft.output):
        return InvalidReason.ANSWER_IN_QUESTION
    stands = supported(
        draft.instruction,
        draft.output,
        draft.quote,
        context=" ".join((*chunk.headings, draft.input if task is TaskType.INSTRUCTION else "")),
        names_matter=passage.language not in _CAPITAL_NOUNS,
    )
    invented = codes_of(draft.instruction) - codes_of(" ".join((passage.text, *chunk.headings, draft.input)))
    if not stands or invented:
        return InvalidReason.NOT_GROUNDED
    return InvalidReason.DUPLICATE if asks_again(draft.instruction, chunk.avoid) else None


def _text_fault(passage: _Passage, draft: ExampleDraft) -> InvalidReason | None:
    """What is wrong with the texts themselves."""
    is_label = passage.chunk.task_type is TaskType.CLASSIFICATION
    if question_unclear(draft.instruction, has_input=bool(draft.input)):
        return InvalidReason.QUESTION_VAGUE
    if not is_label and refuses(draft.output):
        return InvalidReason.REFUSAL
    if len(draft.instruction.split()) > LONGEST_QUESTION_WORDS:
        return InvalidReason.OUTPUT_TOO_LONG
    if not written_in(draft.instruction, passage.language):
        return InvalidReason.WRONG_LANGUAGE
    if not is_label and not written_in(draft.output, passage.language):
        return InvalidReason.WRONG_LANGUAGE
    return None


def _rests_on_orders(passage: _Passage, draft: ExampleDraft) -> bool:
    """Whether quote, question or answer come from a sentence of the chunk that gives the model orders."""
    if passage.removed and (find_quote(draft.quote, passage.removed) or find_quote(draft.output, passage.removed)):
        return True
    if any(is_order(text) for text in (draft.quote, draft.instruction, draft.output) if text):
        return True
    # Wordings that no pattern knows: an answer that only says what its quote tells somebody to say.
    if words_to_say(draft.quote) & set(words(f"{draft.output} {draft.instruction}")):
        return True
    said = {*content_stems(draft.instruction), *content_stems(draft.output), *content_stems(draft.input)}
    return bool(said & passage.foreign)
