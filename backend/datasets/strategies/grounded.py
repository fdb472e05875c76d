"""Strategy for weak models: every answer is a sentence of the document, the model only words the question."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
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
from backend.datasets.strategies.injection import cleaned
from backend.datasets.strategies.language import content_stems
from backend.datasets.strategies.pages import page_of
from backend.datasets.strategies.passage_language import language_of_passage
from backend.datasets.strategies.prompt_files import fenced, fill, worked_examples
from backend.datasets.strategies.quality import question_coverage, question_fault, vague
from backend.datasets.strategies.question_shapes import QuestionShape, base_form, shapes
from backend.datasets.strategies.question_shapes_french import shapes_french
from backend.datasets.strategies.selection import asks_again, best_first, without_repeats
from backend.datasets.strategies.sentences import facts
from backend.providers.llm.base import ChatCompletion, ChatMessage, ChatRequest

# Candidates for each wanted example, since the filters refuse some.
CANDIDATES_PER_EXAMPLE = 1.5
QUESTION_TOKENS = 192
LONGEST_QUESTION_WORDS = 24
FEWEST_FACTS_TO_SUMMARISE, MOST_FACTS_IN_SUMMARY = 2, 4
_AUXILIARY = re.compile(r"\b(is|are|was|were|must|can|should|may|will|has|have)\b")
_SUBORDINATE = re.compile(r" (?:when|if|that|which|who|before|after|until|once|while|because) ")
_HEADING_TASKS = {
    "en": {
        TaskType.INSTRUCTION: "Explain what the document says about “{heading}”.",
        TaskType.SUMMARIZATION: "Give the main points of the section “{heading}”.",
    },
    "fr": {
        TaskType.INSTRUCTION: "Explique ce que dit le document à propos de « {heading} ».",
        TaskType.SUMMARIZATION: "Donne les points principaux de la section « {heading} ».",
    },
}


class GroundedStrategy:
    """For models of about a hundred million parameters: English questions by shape, French ones by grammar alone.

    The task classification raises TaskNotSupportedByModel. A text in another language gives no examples.
    """

    name = "grounded"

    def plan(self, chunk: ChunkText, wanted: int) -> Plan:
        """Drafts by grammar, and one request for each question that the model has to word."""
        if chunk.task_type is TaskType.CLASSIFICATION:
            raise TaskNotSupportedByModel(
                task_type=chunk.task_type.value,
                advice="Choosing classes needs a stronger one: set LLM_BASE_URL and LLM_MODEL, "
                "or choose the task qa, chat, instruction or summarization.",
            )
        passage = cleaned(chunk.text)
        language = language_of_passage(replace(chunk, text=passage.text))
        statements = facts(passage.text)
        ready = list(_heading_drafts(chunk, statements, language))
        asks: list[Ask] = []
        if chunk.task_type is not TaskType.SUMMARIZATION:
            for sentence, shape in _spread(statements, passage.text, language, chunk.avoid, limit=_candidates(wanted)):
                if shape.fixed:
                    ready.append(_draft(chunk, sentence, shape.kind, shape.fixed, fault=_fixed_fault(shape.fixed)))
                else:
                    asks.append(_ask(sentence, shape))
        return Plan(
            # What an earlier round has asked by the same grammar is no attempt that failed.
            ready=tuple(
                replace(draft, meta={**draft.meta, "language": language})
                for draft in ready
                if not asks_again(draft.instruction, chunk.avoid)
            ),
            asks=tuple(asks),
            orders_removed=len(passage.removed),
        )

    def read(self, chunk: ChunkText, ask: Ask, completion: ChatCompletion) -> list[ExampleDraft]:
        """The one question of an answer, judged against its sentence."""
        question = _tidied(str((completion.parsed or {}).get("question", "")))
        shape = next(
            (
                shape
                for shape in shapes(ask.subject, _common_words(cleaned(chunk.text).text))
                if shape.kind == ask.shape
            ),
            None,
        )
        if shape is None or not question:
            return [_draft(chunk, ask.subject, ask.shape, question, fault=InvalidReason.JSON_INVALID)]
        fault = question_fault(question, sentence=ask.subject, source=shape.source, opening=shape.opening)
        draft = _draft(chunk, ask.subject, ask.shape, question, fault=fault)
        score = round(question_coverage(question, shape.source), 3)
        # Only English questions are left to the model.
        meta = {**draft.meta, "worded_by": completion.model, "score": score, "language": "en"}
        return [_not_again(chunk, replace(draft, meta=meta))]

    def select(self, drafts: Sequence[ExampleDraft], wanted: int) -> list[ExampleDraft]:
        """The `wanted` best, first those about sentences that no other one is about."""
        return best_first(without_repeats(drafts), wanted)


def _not_again(chunk: ChunkText, draft: ExampleDraft) -> ExampleDraft:
    """The draft, refused where an earlier round has asked the same."""
    if draft.is_valid and asks_again(draft.instruction, chunk.avoid):
        return replace(draft, is_valid=False, invalid_reason=InvalidReason.DUPLICATE)
    return draft


def _candidates(wanted: int) -> int:
    return int(wanted * CANDIDATES_PER_EXAMPLE) + 1


def _spread(
    statements: Sequence[str], text: str, language: str | None, avoid: Sequence[str], limit: int
) -> Iterator[tuple[str, QuestionShape]]:
    """Up to `limit` questions: the most certain one of each sentence, then the second of each; none a second time."""
    if language not in ("en", "fr"):
        return
    common = _common_words(text)
    of_each = [
        [
            shape
            for shape in (shapes(one, common) if language == "en" else shapes_french(one))
            if _apt(shape, statements) and not _was_asked(shape, avoid)
        ]
        for one in statements
    ]
    count = 0
    for rank in zip_longest(*of_each):
        for sentence, shape in zip(statements, rank, strict=True):
            if shape is not None and count < limit:
                count += 1
                yield sentence, shape


def _was_asked(shape: QuestionShape, avoid: Sequence[str]) -> bool:
    """Whether an earlier round has this question, or one that the model made of this opening and these words.

    It is asked at temperature 0 and would only say the same again.
    """
    if shape.fixed:
        return asks_again(shape.fixed, avoid)
    own = set(content_stems(f"{shape.opening} {shape.source}"))
    return any(one.startswith(f"{shape.opening} ") and set(content_stems(one)) <= own for one in avoid)


def _apt(shape: QuestionShape, statements: Sequence[str]) -> bool:
    """False for 'what does the document say about X' where it says more than one thing about X."""
    if shape.kind != "subject":
        return True
    subject = re.sub(r"^.*? (?:about|sur) | ?\?$", "", shape.fixed).lower()
    return sum(subject in statement.lower() for statement in statements) == 1


def _ask(sentence: str, shape: QuestionShape) -> Ask:
    messages = [ChatMessage("system", fill("grounded_system"))]
    for example, opening, question in worked_examples("grounded_examples"):
        messages.append(ChatMessage("user", fill("grounded_user", sentence=example, opening=opening)))
        messages.append(ChatMessage("assistant", json.dumps({"answer": example, "question": question})))
    messages.append(ChatMessage("user", fill("grounded_user", sentence=fenced(sentence), opening=shape.opening)))
    request = ChatRequest(
        messages=tuple(messages),
        schema=question_schema(sentence, shape),
        schema_name="question",
        max_tokens=QUESTION_TOKENS,
        temperature=0.0,
        seed=1,
    )
    return Ask(request=request, subject=sentence, shape=shape.kind)


def question_schema(sentence: str, shape: QuestionShape) -> dict[str, Any]:
    """JSON Schema that leaves the model only the order and the form of the sentence's own words.

    Repeating the answer first costs tokens and pays: the question then stays with the sentence.
    """
    tokens = [token.strip('.,;:!?()"“”«»') for token in shape.source.split()]
    # Only the main clause's auxiliary moves to the front: 'beeps when the coffee is ready' asks with 'does'.
    own = _AUXILIARY.findall(_SUBORDINATE.split(shape.source)[0])
    inverted = own[:1] or ["does", "do"]
    vocabulary = dict.fromkeys(token for token in tokens if token and token not in own[:1])
    if not own:
        vocabulary.update(dict.fromkeys(base_form(token) for token in tokens if re.search(r"[^s]s$", token)))
    choices = "|".join(_literal(word) for word in vocabulary)
    rest = f"( ({choices})){{1,{len(tokens)}}}"
    pattern = rf"^{_literal(shape.opening)} ({'|'.join(inverted)}){rest}\?$"
    return {
        "type": "object",
        "properties": {"answer": {"enum": [sentence]}, "question": {"type": "string", "pattern": pattern}},
        "required": ["answer", "question"],
        "additionalProperties": False,
    }


def _literal(text: str) -> str:
    """The text as a pattern. Python escapes blanks and hyphens too, which grammar compilers refuse."""
    return re.sub(r"([\\.^$*+?()\[\]{}|/])", r"\\\1", text)


def _heading_drafts(chunk: ChunkText, statements: Sequence[str], language: str | None) -> Iterator[ExampleDraft]:
    """The section under the chunk's heading as an instruction or a summary, in the document's own sentences."""
    task = _HEADING_TASKS.get(language or "", {}).get(chunk.task_type)
    if task is None or not chunk.headings or len(statements) < FEWEST_FACTS_TO_SUMMARISE:
        return
    heading = re.sub(r"^[\d.]+\s+", "", chunk.headings[-1]).strip()
    lead = list(statements[:MOST_FACTS_IN_SUMMARY])
    draft = _draft(chunk, lead[0], "heading", task.format(heading=heading))
    yield replace(draft, output=" ".join(lead))


def _draft(
    chunk: ChunkText, sentence: str, shape: str, question: str, fault: InvalidReason | None = None
) -> ExampleDraft:
    return ExampleDraft(
        instruction=question,
        output=sentence,
        quote=sentence,
        page=page_of(chunk, sentence),
        is_valid=fault is None,
        invalid_reason=fault,
        meta={
            "strategy": GroundedStrategy.name,
            "shape": shape,
            "worded_by": "grammar",
            "score": 0.1 if shape == "subject" else 1.0,
        },
    )


def _fixed_fault(question: str) -> InvalidReason | None:
    if len(question.split()) > LONGEST_QUESTION_WORDS:
        return InvalidReason.QUESTION_GARBLED
    return InvalidReason.QUESTION_VAGUE if vague(question) else None


def _tidied(question: str) -> str:
    return " ".join(question.split())


def _common_words(text: str) -> frozenset[str]:
    """Words that the text also writes in lower case, and nowhere as a name."""
    names = {name.lower() for name in re.findall(r"(?<=[a-zà-ÿ,] )[A-ZÀ-Þ][a-zà-ÿ]+", text)}
    return frozenset(re.findall(r"\b[a-zà-ÿ]+\b", text)) - names
