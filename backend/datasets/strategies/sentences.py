"""Split extracted text into sentences, and tell those that state a fact on their own from headings and tables."""

import re
from collections.abc import Iterator

from backend.datasets.strategies.language import STOPWORDS, words

SHORTEST_WORDS = 4
LONGEST_WORDS = 45
LONGEST_CHARACTERS = 320

_BULLET = re.compile(r"^\s*(?:[•◦▪‣·●■–—*+-]|\(?\d{1,2}[.)]|\(?[a-z][.)]|\(?[A-Z]\))\s+")
_HEADING_MARK = re.compile(r"^\s*#{1,6}\s+")
_NUMBERED_HEADING = re.compile(r"^\s*\d+(?:\.\d+)*\.?\s+[^\W\d_]")
_TERMINAL = re.compile(r"[.!?…][\"'”’»)\]]*$")
_BOUNDARY = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+(?=[\"'“‘«(\[]*[A-ZÀ-ÖØ-Þ0-9])")
# Abbreviations that do not end a sentence; the second kind only when a number follows. 'a.m.' and 'etc.' may end one.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[«\"'“])(?:(?i:e\.g|i\.e|cf|vs|approx|ca|drs?|mrs?|ms|prof|mme|mlle|mm|p\. ?ex|env|tél|resp|"
    r"incl|excl)"
    r"|St|M|Me|[A-Z])\.$"
)
_REFERENCE = re.compile(r"(?:^|[\s(\[])(?i:no|nos|n|nr|art|figs?|eq|sec|ch|vol|pp?|réf|ref)\.$")
_TABLE = re.compile(r"\S(?: {3,}|\t)\S|\||\.{4,}|_{3,}|…{2,}")
_DANGLING = re.compile(
    r"^(?:it|its|they|them|their|this|these|that|those|he|she|his|her|such|here|there|however|also|then|"
    r"therefore|thus|"
    r"otherwise|instead|likewise|similarly|finally|moreover|furthermore|additionally|(?:in|for|because of|due "
    r"to|after|with|at|as|by) (?:this|that|these|those|such)|"
    r"both|neither|the (?:former|latter|same|following|above)|and|but|or|so|"
    r"il|ils|elle|elles|ce|cet|cette|ces|c['’]|cela|ceci|celui|celle|son|sa|ses|leur|leurs|cependant|ensuite|"
    r"ainsi|donc|"
    r"toutefois|sinon|de plus|en outre|enfin|dans ce cas|le (?:premier|second)|et|mais|ou)\b",
    re.IGNORECASE,
)
_POINTS_ELSEWHERE = re.compile(
    r"\b(?:above|below|following|previous(?:ly)?|see (?:also|section|chapter|page|figure|table)|this (?:manual|"
    r"chapter|section|"
    r"document|page|guide)|(?:section|chapter|figure|table|appendix) \d[\d.]*|ci-(?:dessus|dessous|après)|"
    r"suivante?s?|précédente?s?|voir (?:la|le|page|chapitre|section)|"
    r"ce (?:manuel|chapitre|document)|cette (?:page|section))\b|[:;]$",
    re.IGNORECASE,
)


def split_sentences(text: str) -> list[str]:
    """Sentences in reading order, with wrapped lines joined; list items and table rows stay apart. No text is changed
    but for white space and hyphens at line ends."""
    return [sentence for block in _blocks(text) for sentence in _split_block(block)]


def facts(text: str) -> list[str]:
    """The sentences that state something and can be understood without their neighbours, each once."""
    return list(dict.fromkeys(sentence for sentence in split_sentences(text) if stands_alone(sentence)))


def stands_alone(sentence: str) -> bool:
    """True for a statement or instruction of a sensible length that refers to nothing outside itself."""
    found = words(sentence)
    if not SHORTEST_WORDS <= len(found) <= LONGEST_WORDS or len(sentence) > LONGEST_CHARACTERS:
        return False
    if not re.search(r"[.!]$", sentence) or not re.match(r"[\"'“‘«]?[A-ZÀ-ÖØ-Þ]", sentence):
        return False
    if _TABLE.search(sentence) or _DANGLING.match(sentence) or _POINTS_ELSEWHERE.search(sentence):
        return False
    numbers = sum(any(character.isdigit() for character in word) for word in found)
    if numbers * 2 > len(found):
        return False
    # A sentence has function words; a heading or a row of cells has few or none.
    return any(word in STOPWORDS["en"] or word in STOPWORDS["fr"] for word in found) or len(found) >= 6


def squeeze(text: str) -> str:
    """White space collapsed, for comparing text across line breaks."""
    return " ".join(text.split())


def _blocks(text: str) -> Iterator[str]:
    """Runs of lines that belong to one paragraph, list item, heading or table row."""
    lines = [line.rstrip() for line in _without_soft_hyphens(text).split("\n")]
    width = max((len(line) for line in lines), default=0)
    block = last = ""
    for line in lines:
        bullet = _BULLET.match(line)
        if block and (not line.strip() or bullet or _starts_block(last, line, width)):
            yield block
            block = ""
        last = line
        line = _HEADING_MARK.sub("", line)
        content = line[bullet.end() :] if bullet else line.strip()
        if re.search(r"[^\W\d_]-$", block) and re.match(r"[a-zà-öø-ÿ]", content):
            block = block[:-1] + content
        else:
            block = f"{block} {content}" if block and content else block or content
    if block:
        yield block


def _starts_block(last: str, line: str, width: int) -> bool:
    """Whether the line begins a new block although no blank line stands between it and the last one."""
    if _TABLE.search(line) or _TABLE.search(last) or _HEADING_MARK.match(line) or _HEADING_MARK.match(last):
        return True
    if _TERMINAL.search(last) or re.match(r"\s*[a-zà-öø-ÿ(]", line):
        return False
    # A line that stopped well before the margin was not wrapped: it is a heading, a label or a row.
    return len(last) < 0.6 * min(width, 90) or bool(_NUMBERED_HEADING.match(last) and len(last) < 60)


def _without_soft_hyphens(text: str) -> str:
    """Text whose words are whole again where a PDF marked a break inside them (U+00AD, or U+FFFE from pdfium)."""
    return re.sub(r"[\u00ad\ufffe]\n?", "", text.replace("\r\n", "\n"))


def _split_block(block: str) -> Iterator[str]:
    if _TABLE.search(block):
        yield block
        return
    block, start = squeeze(block), 0
    for boundary in _BOUNDARY.finditer(block):
        end = boundary.start() + len(boundary.group().rstrip())
        piece = block[start:end]
        if _REFERENCE.search(piece) and block[boundary.end() : boundary.end() + 1].isdigit():
            continue
        if _ABBREVIATION.search(piece) or re.fullmatch(r"\(?\d+(?:\.\d+)*\.", piece.strip()):
            continue
        yield piece.strip()
        start = boundary.end()
    if block[start:].strip():
        yield block[start:].strip()
