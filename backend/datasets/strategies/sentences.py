"""Tells the sentences of a chunk that state a fact on their own from headings, tables and what needs its neighbours."""

import re

from backend.contents.sentences import split_sentences
from backend.datasets.strategies.language import STOPWORDS, words

SHORTEST_WORDS = 4
LONGEST_WORDS = 45
LONGEST_CHARACTERS = 320

# What stands before the first word of a list item or a numbered heading.
_MARK = re.compile(
    r"\A(?:[\u2022\u25e6\u25aa\u2023\u00b7\u25cf\u25a0\u2013\u2014*+-]|\(?\d{1,2}[.)]|\(?[a-z][.)]|\(?[A-Z]\)|#{1,6})\s+"
)
_TABLE = re.compile(r"\S(?: {3,}|\t)\S|\||\.{4,}|_{3,}|\u2026{2,}")
_DANGLING = re.compile(
    r"^(?:it|its|they|them|their|this|these|that|those|he|she|his|her|such|here|there|however|also|then|"
    r"therefore|thus|"
    r"otherwise|instead|likewise|similarly|finally|moreover|furthermore|additionally|(?:in|for|because of|due "
    r"to|after|with|at|as|by) (?:this|that|these|those|such)|"
    r"both|neither|the (?:former|latter|same|following|above)|and|but|or|so|"
    # 'Il faut' and its like stand for nobody.
    r"il(?! (?:ne )?faut\b| est (?:interdit|déconseillé|nécessaire|obligatoire|recommandé|conseillé|possible)\b)|"
    r"ils|elle|elles|ce|cet|cette|ces|c['’]|cela|ceci|celui|celle|son|sa|ses|leur|leurs|cependant|ensuite|"
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


def facts(text: str) -> list[str]:
    """The sentences that state something and can be understood without their neighbours, each once.

    Each is in the text as it stands there but for white space; the mark of a list item is left out.
    """
    prose = "\n".join("" if _TABLE.search(line) else line for line in text.split("\n"))
    sentences = (_MARK.sub("", sentence) for sentence in split_sentences(prose))
    return list(dict.fromkeys(sentence for sentence in sentences if stands_alone(sentence)))


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
