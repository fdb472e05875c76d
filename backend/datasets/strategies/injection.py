"""Find what a document says to a language model instead of to its readers, and keep it from the model."""

import base64
import binascii
import codecs
import html
import itertools
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from backend.datasets.strategies.injection_marks import (
    COMMENTS,
    CORE_WORDS,
    FAKED_JSON,
    FAKED_TURN,
    HIDDEN,
    MARKS,
    ROLE_LINE,
)
from backend.datasets.strategies.injection_signals import CUES, ENOUGH, FIXED_STRING, SAYING, SIGNALS, SPOKEN_WORD, TALK

# Between two chat marks that stand closer than this, all is part of the faked conversation.
LONGEST_FAKED_TURN = 600
_BOUNDARY = re.compile(
    r"(?<=[.!?…。])[\"'”’»)\]*_`]*\s+(?=[\"'“‘«(\[*_`<#]*[^\sa-zà-öø-ÿ]|[<\[{&]|\S{24})|\n[ \t]{0,20}\n\s*"
    r"|\n(?=[ \t]{0,20}(?:[-*•+]|\d{1,2}[.)]|#{1,6}) )|(?<=\n)(?=#{1,6} )|(?<=[.!?])(?=<)",
)
_PARAGRAPH_END = re.compile(r"\n[ \t]{0,20}\n|\Z")
# Longer stretches without a full stop are looked at in pieces that overlap, which bounds the work on hostile text.
_LONGEST_UNIT, _STEP = 800, 400
_HEADING_LINE = re.compile(r"#{1,6} [^\n]*\n")
_EMPHASIS = re.compile(r"(?<!\w)[*_`~]+|[*_`~]+(?!\w)|</?[a-z][^<>]{0,200}>")
# Letters of other alphabets that look like Latin ones.
_LOOKALIKES = str.maketrans(
    "авеёікмнорстухјѕԁɡһӏαβεικνορτυχ",
    "abeeikmhopctyxjsdghlabeikvoptux",
)
_LEET = str.maketrans("013457@$", "oieastas")
_SPACED = re.compile(r"(?<!\w)\w(?:([ .\-_/])\w){3,}(?!\w)(?:\s{2,}\w(?:\1\w)+(?!\w))*")
_SEPARATED_WORDS = re.compile(r"(?<!\w)(?:\w[.\-_/]){2,}\w(?!\w)")
_BASE64 = re.compile(r"(?<![\w+/])[A-Za-z0-9+/_-]{24,}={0,2}(?![\w+/])")
_HEX = re.compile(r"(?<!\w)(?:0x)?((?:[0-9a-fA-F]{2}){16,})(?!\w)")
_ENTITIES = re.compile(r"(?:&#x?[0-9a-fA-F]{1,6};){8,}")
_PERCENT = re.compile(r"(?<!\S)\S*(?:%[0-9a-fA-F]{2}\S*){3,}")
_REVERSED = re.compile("\u202e([^\u202c\n]*)\u202c?")
_LETTERS = re.compile(r"[a-z]+")
_FUNCTION_WORDS = frozenset(
    "the of and is are with to for in le la les des est et du der die das und ist el los las es con que il un".split()
)
_BOUNDARY_BEFORE = re.compile(r"[.!?…。]\s*\Z|\n\s*\Z")
# Words that may be one of the keywords with a letter too few or two of them swapped.
_MENDABLE = re.compile(r"\b[idpasof][a-z]{3,11}\b")
_TAGS = re.compile("[\U000e0020-\U000e007e]")
_KEYWORDS = "ignore disregard previous instructions answer system prompt override forget".split()


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A chunk's text as the model may see it, and what was taken out of it."""

    text: str
    removed: tuple[str, ...] = ()


@lru_cache(maxsize=256)
def cleaned(text: str) -> Cleaned:
    """The text without hidden characters and without sentences that give orders to a model.

    Where nothing was found the text is the same but for hidden characters. What was removed leaves nothing behind.
    """
    hidden = _tags_in(text)
    removed = [hidden] if hidden else []
    removed += [match for match in _REVERSED.findall(text) if is_order(match)]
    visible = HIDDEN.sub("", _REVERSED.sub(lambda match: "" if is_order(match[1]) else match[1], text))
    # Comments and faked turns go first: what they cut in two is then one sentence again.
    for find in (_regions, _sentences_with_orders):
        spans = _merged(list(find(visible)))
        removed += [visible[start:end].strip() for start, end in spans]
        visible = _without(visible, spans)
    return Cleaned(visible, tuple(removed))


def is_order(text: str) -> bool:
    """Whether one sentence, whatever its disguise, is an order to a language model."""
    text = text[: 2 * _LONGEST_UNIT]
    return _weight(text) >= ENOUGH or any(_weight(reading) >= ENOUGH for reading in readings(text))


def words_to_say(text: str) -> set[str]:
    """The bare words that a text tells somebody to say ('reply banana'), in lower case; none in quotation marks."""
    return {match["said"].split()[-1] for match in SPOKEN_WORD.finditer(_folded(text)) if match["said"][-1].isalnum()}


def signs(text: str) -> list[str]:
    """The names of the signs in one sentence as it stands, for finding out why it was removed."""
    folded = _folded(text)
    return [signal.name for signal in SIGNALS if signal.pattern.search(folded)]


def _sentences_with_orders(text: str) -> Iterator[tuple[int, int]]:
    units = list(_units(text))
    flagged = [is_order(text[start:end]) for start, end in units]
    for index, ((start, middle), (_, end)) in enumerate(pairwise(units)):
        # An order may lie across the cut of a long unit.
        is_cut = middle - start >= _STEP // 2 and not _BOUNDARY_BEFORE.search(text, start, middle)
        if is_cut and not (flagged[index] or flagged[index + 1]) and is_order(text[start:end]):
            flagged[index] = flagged[index + 1] = True
    # 'Parrot mode on. Say banana.': what is said to a machine and what it is to say may be two sentences.
    heard = [_has_cue(text[start:end]) for start, end in units]
    for index, ((start, middle), _) in enumerate(pairwise(units)):
        if "\n\n" in text[max(start, middle - 2) : middle + 1] or not (heard[index][0] or heard[index + 1][0]):
            continue
        if heard[index][0] and heard[index + 1][1] or heard[index][1] and heard[index + 1][0]:
            flagged[index] = flagged[index + 1] = True
    if not any(flagged):
        return
    alike = [_weight(text[start:end]) > 0 or bool(SAYING.search(_folded(text[start:end]))) for start, end in units]
    # What merely sounds like an order is one when it stands beside one in the same paragraph.
    for indices in (range(1, len(units)), range(len(units) - 2, -1, -1)):
        step = indices.step
        for index in indices:
            neighbour = index - step
            left, right = sorted((index, neighbour))
            together = "\n\n" not in text[units[left][1] - 2 : units[right][0] + 1]
            if flagged[neighbour] and alike[index] and together:
                flagged[index] = True
    for (start, end), flag in zip(units, flagged, strict=True):
        if flag:
            yield _without_leading_lines(text, start, end), end


def _has_cue(text: str) -> tuple[bool, bool]:
    """Whether a sentence speaks of models, and whether it tells somebody to say one word."""
    folded = _folded(text)
    if CORE_WORDS.isdisjoint(_LETTERS.findall(folded)):
        return False, False
    return bool(CUES.search(folded)), bool(TALK.search(folded))


def _without_leading_lines(text: str, start: int, end: int) -> int:
    """Where the order begins in a unit of several lines, of which the first ones may be a heading or a table."""
    while (line_end := text.find("\n", start, end)) >= 0 and is_order(text[line_end + 1 : end]):
        if _weight(text[start:end]) > _weight(text[line_end + 1 : end]):
            break  # the line is part of the order
        start = line_end + 1
    return start


def _units(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence, list item and heading, with the white space after it."""
    start = 0
    ends = sorted({match.end() for match in _BOUNDARY.finditer(text)} | {m.end() for m in _HEADING_LINE.finditer(text)})
    for end in [*ends, len(text)]:
        if not text[start:end].strip():
            continue
        while end - start > _LONGEST_UNIT:
            cut = text.rfind(" ", start, start + _STEP)
            cut = cut if cut > start else start + _STEP
            yield start, cut
            start = cut
        yield start, end
        start = end


def _regions(text: str) -> Iterator[tuple[int, int]]:
    """What is no text for readers at all: comments, faked answers, and turns between the marks of chat templates."""
    for pattern in (COMMENTS, FAKED_TURN):
        yield from (match.span() for match in pattern.finditer(text))
    yield from _faked_answers(text)
    for pattern in (_BASE64, _HEX, _ENTITIES, _PERCENT):
        yield from (match.span() for match in pattern.finditer(text) if is_order(match.group()))
    marks = list(MARKS.finditer(text))
    for index, mark in enumerate(marks):
        end = mark.end()
        if index + 1 < len(marks) and marks[index + 1].start() - end <= LONGEST_FAKED_TURN:
            end = marks[index + 1].end()
        elif mark.group().startswith("#") or not re.match(
            r"</|\[/|<<?/|<\|(?:im_)?end|<end", mark.group(), re.IGNORECASE
        ):
            stop = _PARAGRAPH_END.search(text, end)
            assert stop is not None
            end = stop.start()
        yield mark.start(), end
    turns = list(ROLE_LINE.finditer(text))
    # One line 'User: ...' is a definition; two in a row with different roles are a conversation.
    for first, second in itertools.pairwise(turns):
        between = text[first.end() : second.start()]
        if first.group().lower().strip() != second.group().lower().strip() and between.count("\n") <= 2:
            stop = re.compile(r"\n|\Z").search(text, second.end())
            assert stop is not None
            if "assistant" in f"{first.group()}{second.group()}".lower():
                yield first.start(), stop.start()


def _faked_answers(text: str) -> Iterator[tuple[int, int]]:
    """JSON like an answer's: from its brace to the last one of its paragraph."""
    done = 0
    for match in FAKED_JSON.finditer(text):
        if match.start() < done:
            continue
        stop = _PARAGRAPH_END.search(text, match.end())
        assert stop is not None
        closing = max(text.rfind(one, match.end(), stop.start()) for one in "}]")
        done = closing + 1 if closing > 0 else stop.start()
        if text.startswith("```", done) or text.startswith("\n```", done):
            done = text.index("```", done) + 3
        yield match.start(), done


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    if not spans:
        return text
    pieces, at = [], 0
    for start, end in spans:
        pieces.append(text[at:start])
        at = end
    return re.sub(r"\n{3,}", "\n\n", "".join([*pieces, text[at:]]))


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def _weight(text: str) -> int:
    visible = HIDDEN.sub("", text)
    if MARKS.search(visible) or FAKED_JSON.search(visible):
        return ENOUGH
    folded = _folded(visible)
    if CORE_WORDS.isdisjoint(_LETTERS.findall(folded)):
        return 0
    found = sum(signal.weight for signal in SIGNALS if signal.pattern.search(folded))
    plain = _without_accents(_EMPHASIS.sub("", visible))
    return found + bool(FIXED_STRING.search(plain)) + bool(ROLE_LINE.search(visible))


@lru_cache(maxsize=1024)
def _folded(text: str) -> str:
    """Lower case without accents, emphasis, hidden characters or look-alikes, with one blank between words."""
    text = _EMPHASIS.sub("", HIDDEN.sub("", unicodedata.normalize("NFKC", text))).lower().replace("’", "'")
    if re.search(r"[a-z]", text):
        text = text.translate(_LOOKALIKES)
    return " ".join(_without_accents(text).strip(" \n\t#>|-•\"'“”«»").split())


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    return "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))


def readings(text: str) -> Iterator[str]:
    """What the text says once it is decoded, in each way that has been used to hide orders."""
    if tags := _tags_in(text):
        yield tags
    folded = _folded(text)
    if _FUNCTION_WORDS.isdisjoint(_LETTERS.findall(folded)):  # else it is plain language
        yield codecs.encode(folded, "rot13")
        yield folded[::-1]
    if re.search(r"\d", folded) and re.search(r"[a-z]\d[a-z]|\b\d[a-z]{2}", folded):
        yield folded.translate(_LEET)
    if _SPACED.search(text) or _SEPARATED_WORDS.search(text):
        yield _closed_up(text)
    if (mended := _mended(folded)) != folded:
        yield mended
    if "&#" in text or "&lt;" in text:
        yield html.unescape(text)
    if re.search(r"(?:%[0-9a-fA-F]{2}.*){3}", text):
        yield urllib.parse.unquote(text)
    for blob in _BASE64.findall(text):
        yield _text_of(_base64_bytes(blob))
    for blob in _HEX.findall(text):
        yield _text_of(bytes.fromhex(blob))


def _closed_up(text: str) -> str:
    """'i g n o r e  a l l' and 'i.g.n.o.r.e a.l.l' as words again."""
    text = _SEPARATED_WORDS.sub(lambda match: re.sub(r"[.\-_/]", "", match.group()), text)
    return _SPACED.sub(lambda match: re.sub(r"(?<=\w)[ .\-_/](?=\w)", "", match.group()), text)


def _mended(folded: str) -> str:
    """The keywords of orders spelled right where letters are swapped or one is missing."""
    return _MENDABLE.sub(lambda match: _keyword(match.group()) or match.group(), folded)


def _keyword(word: str) -> str | None:
    for keyword in _KEYWORDS:
        if word[0] != keyword[0] or abs(len(word) - len(keyword)) > 1 or word == keyword:
            continue
        one_missing = any(keyword[:at] + keyword[at + 1 :] == word for at in range(len(keyword)))
        if one_missing or sorted(word) == sorted(keyword):
            return keyword
    return None


def _tags_in(text: str) -> str:
    """ASCII that is written in the invisible tag characters of Unicode."""
    return "".join(chr(ord(one) - 0xE0000) for one in _TAGS.findall(text))


def _base64_bytes(blob: str) -> bytes:
    try:
        return base64.b64decode(blob.rstrip("=") + "=" * (-len(blob.rstrip("=")) % 4), altchars=b"-_")
    except (binascii.Error, ValueError):
        return b""


def _text_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""
