"""What makes a question that a weak model wrote fit its sentence."""

import re
from collections.abc import Sequence
from itertools import pairwise

from backend.datasets.strategies.base import InvalidReason
from backend.datasets.strategies.language import content_stems, words

# Share of the sentence's own content words, the asked-for part left out, that its question must have.
LEAST_COVERAGE = 0.5

_OPENING = re.compile(
    r"^(?:what|who|when|where|why|how|which|is|are|may|can|do|does|at what|in which|under which|for how|"
    r"que|qu['’]|quel\w*|qui|quand|où|pourquoi|comment|combien|est-ce|faut-il|peut-on|à quel\w*|avec quoi|"
    r"pendant combien)\b",
    re.IGNORECASE,
)
_POINTER = re.compile(
    r"\b(?:it|its|they|them|their|this|these|those|he|she|his|her|the (?:passage|text|sentence|author|above)|"
    # Not that of an inversion, which the question's own subject or nobody stands behind: 'faut-il'.
    r"(?<!-)(?:il|elle|ils|elles)|cela|ceci|ce (?:texte|passage)|le (?:texte|passage))\b",
    re.IGNORECASE,
)


def question_coverage(question: str, source: str) -> float:
    """Share of the source's distinct content words that the question uses, 0 to 1."""
    wanted = set(content_stems(source))
    return len(wanted & set(content_stems(question))) / len(wanted) if wanted else 0.0


def question_fault(question: str, *, sentence: str, source: str, opening: str) -> InvalidReason | None:
    """Why a question that a weak model wrote about one sentence must not be kept; None when it may.

    `source` is the sentence without the asked-for part, `opening` the words that the question had to start with.
    """
    asked = content_stems(question[len(opening) :])
    own = content_stems(source)
    if vague(question) or not asked or not own:
        return InvalidReason.QUESTION_VAGUE
    hidden = set(content_stems(sentence)) - set(own) - set(content_stems(opening))
    if hidden & set(asked):
        return InvalidReason.ANSWER_IN_QUESTION
    if question.startswith(f"{opening} does ") and set(words(question)) <= {*words(source), *words(opening), "does"}:
        return InvalidReason.QUESTION_GARBLED  # 'does it takes': no verb lost its ending
    # Without the sentence's first content word, which names its subject, a question is about something else.
    if own[0] not in asked or set(asked) - set(own) or question_coverage(question, source) < LEAST_COVERAGE:
        return InvalidReason.QUESTION_UNRELATED
    if (
        len(asked) != len(set(asked)) > 0
        and len(set(own)) == len(own)
        or not _in_order(asked, own)
        or _stutters(question)
    ):
        return InvalidReason.QUESTION_GARBLED
    return None


def vague(question: str) -> bool:
    """True for a question that nobody can answer without the passage beside it."""
    if len(words(question)) < 4 or not _OPENING.match(question):
        return True
    return bool(_POINTER.search(question)) or not content_stems(question)


def _in_order(asked: Sequence[str], own: Sequence[str]) -> bool:
    """Whether the asked words come in the order of the sentence."""
    remaining = iter(own)
    return all(word in remaining for word in asked)


def _stutters(question: str) -> bool:
    """Whether a word follows itself, or the question ends on a word that wants another one."""
    found = words(question)
    if any(left == right for left, right in pairwise(found)):
        return True
    return found[-1] in {
        "the",
        "a",
        "an",
        "of",
        "and",
        "or",
        "to",
        "is",
        "are",
        "be",
        "for",
        "with",
        "at",
        "does",
        "do",
    }
