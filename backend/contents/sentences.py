"""Sentence boundaries of English and French prose, by rules that need no model and run in linear time."""

import re
from collections.abc import Iterator
from itertools import pairwise

# Ends that do not end a sentence when a name, a number or a reference follows.
_ABBREVIATIONS = frozenset(
    # English
    "mr mrs ms dr prof rev hon gen col capt lt sgt maj cmdr gov sen rep pres st sr jr messrs mt ft "
    "vs viz cf ca approx al ed eds vol vols fig figs eq eqs ref refs sec secs ch chap art para pt pts "
    "no nos nr p pp op cit ibid est dept univ min max avg tel ext temp resp incl excl misc "
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun "
    "e.g i.e a.k.a "
    # French
    "m mm mme mmes mlle mlles me mgr pr ste av bd boul env éd éds n° nº réf tél chap fasc hab janv févr avr juil "
    "déc p.ex c.-à-d".split()
)
# Ends that may well end a sentence: they do when a usual first word follows.
_OFTEN_FINAL = frozenset("etc inc ltd co corp llc plc cie a.m p.m u.s u.k u.n e.u ph.d b.c a.d s.a d.c".split())
_NOT_ALWAYS_FINAL = _ABBREVIATIONS | _OFTEN_FINAL
_STARTERS = frozenset(
    "the a an this that these those it its he she they we you i in on at as if when while after before for from "
    "by with to but and or so however there here all each every no not many most some one what who why how where "
    "le la les l un une des ce cet cette ces il elle ils elles on nous vous je dans sur si quand après avant pour "
    "par avec mais et ou donc cependant tous toutes chaque aucun".split()
)
# Written as escapes: lint and readers both confuse typographic quotes with straight ones.
_OPENERS = "\"'(\\[{\u00ab\u2039\u201c\u2018\u201e\u00bf\u00a1"
_CLOSERS = "\"')\\]}\u00bb\u203a\u201d\u2019"
_BULLETS = "\u2022\u2023\u25e6\u2043\u2219\u25aa\u25ab\u25cf\u25cb\u25a0\u25a1\u2013\u2014*+-"

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_BULLET = re.compile(rf"[^\S\n]*(?:[{_BULLETS}]|\(?(?:\d{{1,3}}|[A-Za-z])[.)])[^\S\n]")
_CELLS = re.compile(r"\S(?: {3,}|\t)\S|\|")
_COMPLETE = re.compile(rf"[.!?\u2026:;,][{_CLOSERS}\s]*\Z")
# A French closing guillemet stands after a space, hence the optional one inside the closers. Possessive quantifiers and
# the look-behind keep a million full stops linear; it stands second, so that the search skips to the marks fast.
_END = re.compile(
    r"[.!?\u2026\u3002\uff01\uff1f](?:"
    r"(?<=[\u3002\uff01\uff1f])[\u3002\uff01\uff1f]*+(?P<wide>[\u300d\u300f\uff09\u201d\u2019]*+)"
    r"|(?<![.!?\u2026\u3002\uff01\uff1f][.!?\u2026])[.!?\u2026]*+"
    rf"(?P<close>(?:[{_CLOSERS}]|[ \u00a0\u202f][\u00bb\u203a])*+)(?P<note>\[\d{{1,3}}\])?(?=\s|\Z))"
)
_LAST_WORD = re.compile(rf"[^\s{_OPENERS}]*\Z")
_NEXT_WORD = re.compile(rf"[\s{_OPENERS}]*(?P<word>[^\W\d_]*)")
_OUTLINE_NUMBER = re.compile(r"\(?(?:\d{1,3}|[A-Za-z]|[ivxlcIVXLC]{1,5})\Z")
_FIGURE_BEFORE = re.compile(r"\d\s*\Z")
_LETTERS_AND_STOPS = re.compile(r"(?:[^\W\d_][.-]+)+[^\W\d_]")
_LONGEST_WORD = 40
# White space is made even in stretches of this length: a list of all words of ten megabytes would be large.
_STRETCH = 65_536
# In lines about as long as a page is wide, one that stops well before the margin was not wrapped.
_NARROWEST, _WIDEST, _SHORT_LINE = 40, 90, 0.6


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, each with its white space collapsed to single spaces.

    No character but white space is lost: `" ".join(split_sentences(text))` equals the text with its white space
    collapsed (but for CJK, where sentences follow each other without a space). A blank line always ends a sentence,
    and so do the start of a list item, a row of cells and a line that is a heading; another line break does not.
    """
    return list(sentences_of(text))


def sentences_of(text: str) -> Iterator[str]:
    """`split_sentences`, one by one."""
    if "\n" not in text:
        yield from _split_run(_even(text))
        return
    for paragraph in _BLANK_LINE.split(text):
        if "\n" not in paragraph:
            yield from _split_run(_even(paragraph))
        else:
            for run in _runs(paragraph.split("\n")):
                yield from _split_run(_even(run))


def _runs(lines: list[str]) -> Iterator[str]:
    """Lines without a blank one among them, as list items, headings, rows and stretches of wrapped prose."""
    width = min(max(map(len, lines)), _WIDEST)
    run = [lines[0]]
    for last, line in pairwise(lines):
        if _BULLET.match(line) or _CELLS.search(line) or _CELLS.search(last) or _is_heading(last, line, width):
            yield "\n".join(run)
            run = []
        run.append(line)
    yield "\n".join(run)


def _is_heading(line: str, following: str, width: int) -> bool:
    """Whether a line with no mark at its end is short, and a capital follows: it was not wrapped."""
    if width < _NARROWEST or len(line) >= _SHORT_LINE * width or _COMPLETE.search(line[-_LONGEST_WORD:]):
        return False
    first = following.lstrip()[:1]
    return first.isupper() or first.isdigit()


def _even(text: str) -> str:
    """White space collapsed to single spaces."""
    if len(text) <= _STRETCH:
        return " ".join(text.split())
    parts: list[str] = []
    start = 0
    while start < len(text):
        stop = text.find(" ", start + _STRETCH)
        stop = len(text) if stop < 0 else stop
        parts.append(" ".join(text[start:stop].split()))
        start = stop
    return " ".join(part for part in parts if part)


def _split_run(line: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(line):
        stop = end.end()
        if end["wide"] is not None or _ends_sentence(line, start, end, stop):
            if sentence := line[start:stop].strip():
                yield sentence
            start = stop
    if rest := line[start:].strip():
        yield rest


def _ends_sentence(line: str, start: int, end: re.Match[str], stop: int) -> bool:
    mark = end.start()
    first = line[stop + 1 : stop + 2]
    if first.islower():
        return False
    if stop == mark + 1 and line[mark] == "." and first.isupper():
        # By far the most frequent: a full stop between a word that is no abbreviation and a capital.
        space = line.rfind(" ", max(start, mark - _LONGEST_WORD), mark)
        last = line[space + 1 : mark]
        if space > start and mark - space > 2 and last.isalpha() and last.lower() not in _NOT_ALWAYS_FINAL:
            return True
    following = line[stop : stop + _LONGEST_WORD].lstrip()
    if not following:
        return True
    # Dialogue goes on in lower case: "Wait!" she said. A figure, a quote or a bullet may start a sentence.
    word = _next_word(following)
    if word and word[0].islower():
        return False
    if following[0] in ",;:)]}\u00bb%":
        return False
    if line[mark] != "." or line[mark + 1 : mark + 2] in {".", "!", "?", "\u2026"}:
        return True
    return not _is_abbreviation(line, start, end, following, word)


def _is_abbreviation(line: str, start: int, end: re.Match[str], following: str, word: str) -> bool:
    before = line[max(start, end.start() - _LONGEST_WORD) : end.start()]
    found = _LAST_WORD.search(before)
    last = found.group() if found else ""
    if not last:
        return False
    # "1. Open the lid." and "a. Open the lid.": the number belongs to the sentence it announces.
    if not line[start : end.start() - len(last)].strip() and _OUTLINE_NUMBER.match(last):
        return True
    if end["close"]:
        return False
    lowered = last.lower()
    if lowered in _OFTEN_FINAL:
        return bool(word) and word.lower() not in _STARTERS
    if lowered in _ABBREVIATIONS:
        # "It is 40 mm. The lid": after a figure these are units.
        if _FIGURE_BEFORE.search(before[: len(before) - len(last)]):
            return following[0].isdigit()
        # "The answer is no. The lid" ends; "No. 5" and "p. 12" do not. "min" and "max" end when no figure follows.
        if lowered in {"no", "nos", "art", "min", "max", "sat", "sun", "mar", "me", "est", "sec", "temp", "ed", "av"}:
            return following[0].isdigit() or (lowered == "no" and last == "No" and not word)
        return word.lower() not in _STARTERS or lowered in {"mr", "mrs", "ms", "dr", "prof", "e.g", "i.e", "cf", "vs"}
    if len(last) == 1 and last.isalpha():
        # An initial, as in "J. Moreau"; "vitamin C. The" ends.
        return last.isupper() and word.lower() not in _STARTERS and last != "I"
    # "J.-P. Moreau", "U.S.A. Today".
    return bool(_LETTERS_AND_STOPS.fullmatch(last)) and word.lower() not in _STARTERS


def _next_word(following: str) -> str:
    found = _NEXT_WORD.match(following)
    return found["word"] if found else ""
