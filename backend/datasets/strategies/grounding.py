"""Whether a quote carries an answer: its words, numbers with their units, names, and what it says yes or no to."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from backend.datasets.strategies.grounding_words import (
    AMBIGUOUS_MONTHS,
    COURTESY,
    MONTHS,
    NEGATIONS,
    NUMBER_WORDS,
    OPPOSITES,
    SCAFFOLDING,
    SOFT_NEGATIONS,
    UNITS,
)
from backend.datasets.strategies.language import STOPWORDS, stem, words

# Share of an answer's content words that quote, question and headings must have between them.
LEAST_SUPPORT = 0.6
# The same for each clause of it on its own, so that a true sentence cannot carry an invented one.
LEAST_CLAUSE_SUPPORT = 0.5
# Words that begin alike are one word in two forms from this many letters on.
_COMMON_LETTERS = 4

_NUMBER = re.compile(r"\d+(?:[.,   ]\d{3})*(?:[.,]\d+)?|\d+")
_CLAUSE = re.compile(
    r"[.;:!?](?=\s|$)|,(?=\s)|\s(?=as (?:it|they|the|this|that|an?) )|"
    r"\s(?=(?:because|since|while|whereas|but|although|which|who|unless|and|when|if|"
    r"car|parce|tandis|alors|mais|bien que|qui|sauf|et|lorsque|quand|si|weil|aber|und|wenn|porque|pero|y) )",
    re.IGNORECASE,
)
# 'does not cover A and B' denies both; 'must not be used because it breaks' denies one.
_SUBORDINATE = re.compile(
    r"(?:because|as|since|while|whereas|but|although|unless|if|when|car|parce|tandis|mais|si|quand|lorsque|weil|aber|wenn|"
    r"porque|pero)\b",
    re.IGNORECASE,
)
_YES = re.compile(r"^(?:yes|oui|si|sí|ja)\b", re.IGNORECASE)
_NO = re.compile(r"^(?:no|non|nein)\b(?=\s*[,.;:!]|$)", re.IGNORECASE)
_CODE = re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[^\W\d_])\w(?:[\w-]*\w)?\b")
_IDENTIFIER = re.compile(r"\b(?=\w*\d)(?=\w*[^\W\d_])[\w.-]*\w\b|\b[A-Z]{2,}[\w-]*\b|\b\w+_\w+\b|\b[a-z]+[A-Z]\w*\b")
_NAME = re.compile(r"(?<![.!?:«“\"(]\s)(?<!^)(?<![\w'’-])[A-ZÀ-ÖØ-Þ][\w’'-]{2,}")


@dataclass(frozen=True, slots=True)
class _Clause:
    stems: frozenset[str]
    text: str
    negated: bool


def supported(question: str, answer: str, quote: str, *, context: str = "", names_matter: bool = True) -> bool:
    """Whether everything that the answer states stands in the quote, or is taken over from question and `context`.

    `context` are the headings of the passage. `names_matter` is False for languages that write every noun with a
    capital, where names cannot be told from other words.
    """
    stated = _without_courtesy(answer)
    around = f"{question} {context}"
    if not _numbers_stand(stated, quote, around) or not _identifiers_stand(stated, quote, around, names_matter):
        return False
    claims = list(_claims(question, stated))
    evidence = list(_clauses(quote))
    own = frozenset().union(*(clause.stems for clause in evidence))
    known = own | _stems(around)
    all_stems = [one for claim in claims for one in claim.stems]
    if not all_stems or not any(_known(one, own) for one in all_stems):
        return False
    if sum(_known(one, known) for one in all_stems) / len(all_stems) < LEAST_SUPPORT:
        return False
    return all(_claim_stands(claim, evidence, known) for claim in claims)


def codes_of(text: str) -> frozenset[str]:
    """Part numbers, error codes and the like: the words of a text that have letters and digits, in lower case."""
    return frozenset(match.lower() for match in _CODE.findall(text))


def _claim_stands(claim: _Clause, evidence: list[_Clause], known: frozenset[str]) -> bool:
    if (
        len(claim.stems) >= 2
        and sum(_known(one, known) for one in claim.stems) / len(claim.stems) < LEAST_CLAUSE_SUPPORT
    ):
        return False
    scored = [(sum(_known(one, clause.stems) for one in claim.stems), clause) for clause in evidence]
    best = max((score for score, _ in scored), default=0)
    if best == 0:
        return True  # said by question or heading; the whole answer has been measured already
    nearest = [clause for score, clause in scored if score == best]
    # Where several clauses are as near, the answer may rest on any of them.
    return any(_agrees(claim, clause) and _belongs_together(claim, clause, evidence) for clause in nearest)


def _agrees(claim: _Clause, clause: _Clause) -> bool:
    """Whether both say yes or both say no, and neither says the opposite word of the other."""
    if claim.negated != clause.negated:
        softly = _has(claim.text, SOFT_NEGATIONS) or _has(clause.text, SOFT_NEGATIONS)
        if not softly and not _excepted(claim, clause):
            return False
    said, written = f" {_plain(claim.text)} ", f" {_plain(clause.text)} "
    for left, right in OPPOSITES:
        for here, there in ((left, right), (right, left)):
            if _has(said, here) and not _has(said, there) and _has(written, there) and not _has(written, here):
                # 'Not full' may be said of what is empty.
                return claim.negated != clause.negated
    return True


def _excepted(claim: _Clause, clause: _Clause) -> bool:
    """'Not without supervision' and 'only with supervision' are one: two negations in a clause undo each other."""
    return _count(clause.text, NEGATIONS) >= 2 or _count(claim.text, NEGATIONS) >= 2


def _belongs_together(claim: _Clause, clause: _Clause, evidence: list[_Clause]) -> bool:
    """Whether a number of the claim stands with the thing it is said of, where the quote has several of both."""
    numbers = _numbers(claim.text)
    things = {one.lower() for one in _IDENTIFIER.findall(claim.text) + _NAME.findall(f". {claim.text}")}
    if not numbers or not things:
        return True
    for one in evidence:
        here = {name.lower() for name in _IDENTIFIER.findall(one.text) + _NAME.findall(f". {one.text}")}
        if numbers & _numbers(one.text) and here and not things & here:
            elsewhere = any(things & set(words(other.text)) for other in evidence if other is not one)
            if elsewhere and not any(
                numbers <= _numbers(other.text) and things & set(words(other.text)) for other in evidence
            ):
                return False
    return True


def _claims(question: str, answer: str) -> Iterator[_Clause]:
    """The answer clause by clause; a bare yes or no says what the question says."""
    body = re.sub(_YES.pattern + "|" + _NO.pattern, "", answer, flags=re.IGNORECASE).strip(" ,.;:!-–—")
    clauses = [clause for clause in _clauses(body) if clause.stems]
    if (_YES.match(answer) or _NO.match(answer)) and sum(len(clause.stems) for clause in clauses) < 2:
        asked = next(_clauses(question.replace(",", " ")), None)
        if asked is not None:
            yield _Clause(asked.stems, asked.text, asked.negated != bool(_NO.match(answer)))
    yield from clauses


def _clauses(text: str) -> Iterator[_Clause]:
    """Clauses with their content words. A short one joins the clause before it, as in a list of things."""
    pending = ""
    for piece in [*(part.strip() for part in _CLAUSE.split(text)), ""]:
        if pending and (not piece or _apart(pending, piece)):
            yield _Clause(_stems(pending), pending, _count(pending, NEGATIONS) > 0)
            pending = piece
        else:
            pending = f"{pending}, {piece}".strip(", ")


def _apart(left: str, right: str) -> bool:
    """Whether two pieces say something each: both of some length, or one of them denied and the other not."""
    shorter = min(len(_stems(left)), len(_stems(right)))
    denied = _count(left, NEGATIONS) > 0, _count(right, NEGATIONS) > 0
    return shorter >= 2 or shorter == 1 and denied[0] != denied[1] and bool(_SUBORDINATE.match(right))


def _numbers_stand(answer: str, quote: str, around: str) -> bool:
    """Whether every number of the answer stands in the quote or in the question, with the same unit."""
    known = _numbers(quote) | _numbers(around)
    if _numbers(answer) - known:
        return False
    written = _measures(quote) | _measures(around)
    for number, unit in _measures(answer):
        units = {other for same, other in written if same == number}
        if units and unit not in units:
            return False
    return True


@lru_cache(maxsize=4096)
def _numbers(text: str) -> frozenset[str]:
    spelled = (NUMBER_WORDS[word] for word in _parts(text) if word in NUMBER_WORDS)
    return frozenset((*(_value(one) for one in _NUMBER.findall(text)), *spelled))


def _value(digits: str) -> str:
    """A number in one notation: 1,150 and 1 150 are 1150, and 1,8 is 1.8."""
    plain = re.sub(r"(?<=\d)[.,   ](?=\d{3}(?:\D|$))", "", digits).replace(",", ".")
    return plain.lstrip("0") or "0"


def _measures(text: str) -> set[tuple[str, str]]:
    """Each number with the unit or month beside it."""
    found = set()
    parts = re.findall(r"\d[\d.,]*\d|\d|%|/|°\s?[CFcf]\b|[^\W\d_]+", text)
    for at, part in enumerate(parts):
        number = _value(part) if part[0].isdigit() else NUMBER_WORDS.get(part.lower())
        if number is None:
            continue
        after = [one.lower().replace("° ", "°") for one in parts[at + 1 : at + 4]]
        for name in (" ".join(after[:2]), *after[:1], *(parts[at - 1 : at] if at else ())):
            unit = UNITS.get(name) or (MONTHS.get(name.lower()) if _is_month(name.lower(), parts, at) else None)
            if unit:
                rate = after[1:2] and after[1] in ("per", "par", "/") and UNITS.get("".join(after[2:3]))
                found.add((number, f"{unit}/{rate}" if rate else unit))
                break
    return found


def _is_month(name: str, parts: list[str], at: int) -> bool:
    """False for 'eight may use it': such months count only with a capital."""
    return name not in AMBIGUOUS_MONTHS or name.capitalize() in parts[max(0, at - 1) : at + 2]


def _identifiers_stand(answer: str, quote: str, around: str, names_matter: bool) -> bool:
    """Whether names, codes and months of the answer stand in the quote, the question or the headings."""
    known = {_plain(word) for word in words(f"{quote} {around}")} | {
        _plain(part) for part in _parts(f"{quote} {around}")
    }
    named = _IDENTIFIER.findall(answer)
    if names_matter:
        named += _NAME.findall(answer)
    for name in named:
        pieces = [one for one in _parts(name) if one not in SCAFFOLDING and not _is_measure(one)]
        if any(not _known(stem(_plain(piece)), frozenset(known) | {stem(one) for one in known}) for piece in pieces):
            return False
    months = {MONTHS[part] for part in _parts(answer) if part in MONTHS and part not in AMBIGUOUS_MONTHS}
    return months <= {MONTHS[part] for part in _parts(f"{quote} {around}") if part in MONTHS}


def _is_measure(part: str) -> bool:
    return part[0].isdigit() or part in UNITS or part in NUMBER_WORDS


@lru_cache(maxsize=4096)
def _stems(text: str) -> frozenset[str]:
    """Stems of the words that state something: no function words, numbers, units or turns of phrase."""
    stop = STOPWORDS["en"] | STOPWORDS["fr"] | NEGATIONS | SCAFFOLDING
    return frozenset(
        stem(_plain(word))
        for word in words(text)
        if word not in stop
        and _plain(word) not in stop
        and not word[0].isdigit()
        and word not in NUMBER_WORDS
        and word not in UNITS
    )


def _known(word: str, known: frozenset[str]) -> bool:
    """Whether the word or another form of it is among those known."""
    if word in known:
        return True
    least = max(_COMMON_LETTERS, (len(word) * 3 + 3) // 5)
    return len(word) >= _COMMON_LETTERS and any(
        len(other) >= _COMMON_LETTERS and other[:least] == word[:least] and abs(len(other) - len(word)) <= 5
        for other in known
    )


def _has(text: str, wanted: frozenset[str]) -> bool:
    plain = _spaced(text)
    return any(f" {one} " in plain for one in wanted)


# One sentence is asked for many lists of words in a row.
@lru_cache(maxsize=256)
def _spaced(text: str) -> str:
    """The words without accents, each between blanks."""
    return f" {' '.join(_parts(_plain(text)))} "


def _count(text: str, wanted: frozenset[str]) -> int:
    return sum(word in wanted for word in _parts(text)) + len(re.findall(r"n[’']t\b", text))


def _parts(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


@lru_cache(maxsize=256)
def _plain(text: str) -> str:
    if text.isascii():
        return text.lower()
    lowered = unicodedata.normalize("NFKD", text.lower())
    return "".join(one for one in lowered if not unicodedata.combining(one))


def _without_courtesy(answer: str) -> str:
    return COURTESY.sub(" ", answer).strip() or answer
