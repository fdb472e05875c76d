"""What each example of a request is to ask: a kind of question that the passage has something for, and a "
"difficulty."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from backend.datasets.strategies.base import ChunkText, TaskType
from backend.datasets.strategies.prompt_files import described

# Of ten examples in a row four are easy, four medium and two hard.
DIFFICULTIES = ("easy", "medium", "easy", "medium", "hard", "easy", "medium", "easy", "medium", "hard")
# How far the next chunk and the next round begin in it; neither divides ten, so all places come round.
_STEP_OF_CHUNK, _STEP_OF_ROUND = 7, 3


class QuestionType(StrEnum):
    """Kinds of questions; prompts/question_types.txt describes each to the model."""

    FACTUAL = "factual"
    DEFINITION = "definition"
    REASON = "reason"
    PROCEDURE = "procedure"
    COMPARISON = "comparison"
    CONDITION = "condition"
    QUANTITY = "quantity"
    LIST = "list"
    CONSEQUENCE = "consequence"


_T = QuestionType
# A summary has no question of quantity, and a task to be done is never a mere fact.
_SUITED = {
    TaskType.QA: tuple(QuestionType),
    TaskType.CHAT: tuple(QuestionType),
    TaskType.INSTRUCTION: (
        _T.PROCEDURE,
        _T.DEFINITION,
        _T.LIST,
        _T.REASON,
        _T.COMPARISON,
        _T.CONDITION,
        _T.CONSEQUENCE,
    ),
    TaskType.SUMMARIZATION: (_T.FACTUAL, _T.LIST, _T.PROCEDURE, _T.REASON, _T.COMPARISON),
}
# What a passage must have for a kind of question; kinds that are not here fit every passage.
_SIGNS = {
    _T.QUANTITY: r"\d",
    _T.DEFINITION: r"\b(?:means?|refers? to|is an?|are|called|known as|defined|stands for|"
    r"signifi\w+|désign\w+|est une?|sont|appel\w+|bedeutet|ist eine?|heißt|significa|es una?|se llama)\b",
    _T.REASON: r"\b(?:because|since|due to|so that|in order to|therefore|cause[sd]?|reason|as a result|"
    r"parce que?|car|afin|pour éviter|à cause|raison|weil|damit|denn|grund|porque|debido|para que)\b",
    _T.PROCEDURE: r"(?m)^\s*(?:[-*•]|\d{1,2}[.)]) |\b(?:first|then|next|before|after|step|must be|should|"
    r"press|use|open|"
    r"remove|insert|click|select|d'abord|ensuite|puis|avant|après|étape|appuyez|utilisez|ouvrez|"
    r"zuerst|dann|schritt|drücken|primero|luego|después|paso|pulse)\b",
    _T.COMPARISON: r"\b(?:than|whereas|while|unlike|compared|both|differ\w*|more|less|higher|lower|"
    r"plus|moins|tandis|contrairement|différ\w+|alors que|als|während|höher|más|menos|mientras)\b",
    _T.CONDITION: r"\b(?:if|when|unless|until|provided|whenever|once|si|s'il|lorsque|quand|sauf|wenn|falls|"
    r"sobald|cuando)\b",
    _T.LIST: r"(?m)^\s*(?:[-*•]|\d{1,2}[.)]) |\w, [^.,]{2,60},? (?:and|or|et|ou|und|oder|y|o) ",
    _T.CONSEQUENCE: r"\b(?:otherwise|causes?|leads? to|results? in|damages?|therefore|if|when|because|will|"
    r"sinon|entraîne\w*|provoque\w*|abîme\w*|donc|si|lorsque|sonst|führt|daher|wenn|provoca\w*|causa\w*|si)\b",
}
_READ = {"en", "fr", "de", "es"}


@dataclass(frozen=True, slots=True)
class Slot:
    """What one example is to be. `label` is the class that it should show, for classification; else empty."""

    question_type: str
    difficulty: str
    label: str = ""

    def as_line(self, number: int) -> str:
        """The slot as the prompt states it."""
        difficulty = f"{self.difficulty} ({described('difficulties')[self.difficulty]})"
        if self.label:
            return f"{number}. class {self.label}; {difficulty}"
        return f"{number}. {self.question_type} ({described('question_types')[self.question_type]}); {difficulty}"


def slots(chunk: ChunkText, language: str | None, wanted: int) -> list[Slot]:
    """`wanted` slots for a chunk: the same for the same chunk and round, others for its next round."""
    start = chunk.position + chunk.round - 1
    first = chunk.position * _STEP_OF_CHUNK + (chunk.round - 1) * _STEP_OF_ROUND
    levels = [DIFFICULTIES[(first + number) % len(DIFFICULTIES)] for number in range(wanted)]
    if chunk.task_type is TaskType.CLASSIFICATION:
        # The classes in turn over chunks and rounds, so that each is asked for as often.
        turn = chunk.position * wanted + (chunk.round - 1)
        labels = [chunk.labels[(turn + number) % len(chunk.labels)] for number in range(wanted)]
        return [Slot("classification", level, label) for level, label in zip(levels, labels, strict=True)]
    kinds = list(suited(chunk, language))
    return [Slot(kinds[(start + number) % len(kinds)].value, level) for number, level in enumerate(levels)]


def suited(chunk: ChunkText, language: str | None) -> Iterator[QuestionType]:
    """The kinds of questions that suit the task and that the passage has something for; at least one.

    Words are only looked for in languages that the patterns know; elsewhere the model has to see for itself.
    """
    kinds = _SUITED[chunk.task_type]
    known = language in _READ
    found = [
        kind
        for kind in kinds
        if kind not in _SIGNS
        or (not known and kind is not _T.QUANTITY)
        or re.search(_SIGNS[kind], chunk.text, re.IGNORECASE)
    ]
    yield from found or kinds[:1]
