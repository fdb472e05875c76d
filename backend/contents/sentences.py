"""Sentence boundaries of English and French prose, by rules that need no model and run in linear time."""

import re

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

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_BULLET_LINE = re.compile(rf"\n(?=[^\S\n]*(?:[{_BULLETS}]|\(?(?:\d{{1,3}}|[A-Za-z])[.)])[^\S\n])")
_SPACES = re.compile(r"\s+")
# A French closing guillemet stands after a space, hence the optional one inside the closers. Possessive quantifiers and
# the look-behind keep a million full stops linear.
_END = re.compile(
    r"(?<![.!?\u2026])(?P<mark>[.!?\u2026]++)"
    rf"(?P<close>(?:[{_CLOSERS}]|[ \u00a0\u202f][\u00bb\u203a])*+)(?P<note>\[\d{{1,3}}\])?(?=\s)"
    r"|(?P<wide>[\u3002\uff01\uff1f]+[\u300d\u300f\uff09\u201d\u2019]*)"
)
_LAST_WORD = re.compile(rf"[^\s{_OPENERS}]*\Z")
_NEXT_WORD = re.compile(rf"[\s{_OPENERS}]*(?P<word>[^\W\d_]*)")
_OUTLINE_NUMBER = re.compile(r"\(?(?:\d{1,3}|[A-Za-z]|[ivxlcIVXLC]{1,5})\Z")
_FIGURE_BEFORE = re.compile(r"\d\s*\Z")
_LONGEST_WORD = 40


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, each with its white space collapsed to single spaces.

    No character but white space is lost: `" ".join(split_sentences(text))` equals the text with its white space
    collapsed (but for CJK, where sentences follow each other without a space). A blank line and the start of a bullet
    line always end a sentence; a plain line break does not.
    """
    sentences: list[str] = []
    for paragraph in _PARAGRAPH.split(text):
        for line in _BULLET_LINE.split(paragraph):
            sentences.extend(_split_line(_SPACES.sub(" ", line).strip()))
    return sentences


def _split_line(line: str) -> list[str]:
    sentences: list[str] = []
    start = 0
    for end in _END.finditer(line):
        if end["wide"] or _ends_sentence(line, start, end):
            sentence = line[start : end.end()].strip()
            if sentence:
                sentences.append(sentence)
            start = end.end()
    rest = line[start:].strip()
    if rest:
        sentences.append(rest)
    return sentences


def _ends_sentence(line: str, start: int, end: re.Match[str]) -> bool:
    following = line[end.end() : end.end() + _LONGEST_WORD].lstrip()
    if not following:
        return True
    # Dialogue goes on in lower case: "Wait!" she said. A figure, a quote or a bullet may start a sentence.
    word = _next_word(following)
    if word and word[0].islower():
        return False
    if following[0] in ",;:)]}»%":
        return False
    if end["mark"] != ".":
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
    return bool(re.fullmatch(r"(?:[^\W\d_][.-]+)+[^\W\d_]", last)) and word.lower() not in _STARTERS


def _next_word(following: str) -> str:
    found = _NEXT_WORD.match(following)
    return found["word"] if found else ""
