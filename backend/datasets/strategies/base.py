"""What every generation strategy takes and gives: a chunk in, requests to a model, checked example drafts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from backend.kit.errors import DomainError
from backend.providers.llm.base import ChatCompletion, ChatRequest


class TaskType(StrEnum):
    """What the examples teach."""

    QA = "qa"
    INSTRUCTION = "instruction"
    CHAT = "chat"
    CLASSIFICATION = "classification"
    SUMMARIZATION = "summarization"


class InvalidReason(StrEnum):
    """Why a draft is not fit for training; counted in the dataset's statistics. docs/datasets.md explains each."""

    JSON_INVALID = "json_invalid"  # the model gave no answer that meets the schema
    DUPLICATE = "duplicate"  # the same question twice in one chunk, or in an earlier round
    OUTPUT_TOO_SHORT = "output_too_short"
    OUTPUT_TOO_LONG = "output_too_long"
    QUESTION_UNRELATED = "question_unrelated"  # too few of the sentence's own words
    QUESTION_GARBLED = "question_garbled"  # the sentence's words in another order, or twice
    QUESTION_VAGUE = "question_vague"  # cannot be understood without the passage
    ANSWER_IN_QUESTION = "answer_in_question"  # the question gives its own answer away
    QUOTE_NOT_FOUND = "quote_not_found"  # the quoted evidence is not in the chunk
    NOT_GROUNDED = "not_grounded"  # the quote does not carry the answer
    LABEL_UNKNOWN = "label_unknown"  # a class that was not asked for
    WRONG_LANGUAGE = "wrong_language"  # another language than the passage's
    REFUSAL = "refusal"  # 'I cannot answer that', 'as a language model'
    LEFTOVER = "leftover"  # placeholders, markup, JSON or role marks instead of text
    INSTRUCTION_IN_SOURCE = "instruction_in_source"  # rests on a sentence that gives the model orders


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkText:
    """One chunk of a document. `position` counts from 0; pages from 1, None where the format has none."""

    text: str
    position: int = 0
    page_start: int | None = None
    page_end: int | None = None
    # (offset in `text`, page) of each page that begins in the chunk; empty where only the range of pages is known.
    page_starts: tuple[tuple[int, int], ...] = ()
    headings: tuple[str, ...] = ()
    task_type: TaskType = TaskType.QA
    # The classes of a classification task, from the project's configuration.
    labels: tuple[str, ...] = ()
    # ISO 639-1 code of the document's language; None has it detected from the text.
    language: str | None = None
    # Questions that the chunk already has, from earlier rounds: none may come again.
    avoid: tuple[str, ...] = ()
    # How often the chunk has been asked, this time included; 1 the first time.
    round: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleDraft:
    """One example before it becomes a row. `quote` is the evidence, verbatim from the chunk."""

    instruction: str
    output: str
    input: str = ""
    quote: str = ""
    page: int | None = None
    is_valid: bool = True
    invalid_reason: InvalidReason | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to the model; `subject` is the sentence or passage that it is about, `shape` the kind of question."""

    request: ChatRequest
    subject: str
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a chunk needs: `ready` drafts that need no model, and the requests for the others."""

    ready: tuple[ExampleDraft, ...] = ()
    asks: tuple[Ask, ...] = ()
    # How many sentences of the chunk were kept from the model because they give it orders.
    orders_removed: int = 0


class GenerationStrategy(Protocol):
    """Turns chunks into requests and answers into drafts. Pure: the same input gives the same output."""

    name: str

    def plan(self, chunk: ChunkText, wanted: int) -> Plan:
        """Requests for `wanted` examples (perhaps more, as candidates). Raises TaskNotSupportedByModel."""
        ...

    def read(self, chunk: ChunkText, ask: Ask, completion: ChatCompletion) -> list[ExampleDraft]:
        """The drafts in one answer, each judged valid or not by itself."""
        ...

    def select(self, drafts: Sequence[ExampleDraft], wanted: int) -> list[ExampleDraft]:
        """The best `wanted` valid drafts, then the invalid ones, without repeats."""
        ...


class TaskNotSupportedByModel(DomainError):
    """The model is too weak for this kind of example, or the configuration lacks what the task needs."""

    status = 400
    code = "TASK_NOT_SUPPORTED_BY_MODEL"
    template = "The task '{task_type}' cannot be done by this model. {advice}"
