"""The words of a text, and which of them carry its content."""

import re

WORD = re.compile(r"[^\W_]+(?:[.,'’/-][^\W_]+)*", re.UNICODE)

STOPWORDS = {
    "en": frozenset(
        "a an the of in on at for to with by from into onto over under as than and or but not no nor is are was "
        "were be been "
        "being am do does did has have had can could may might must shall should will would it its they them "
        "their this "
        "that these those there here he she his her you your we our i who whom whose which what when where why "
        "how if "
        "then so also only very more most much many any some each every all up out off about per via during while "
        "before after until between through without within".split()
    ),
    "fr": frozenset(
        "le la les l un une des du de d à au aux en dans sur sous pour par avec sans chez vers entre et ou mais "
        "ni que qu qui "
        "quoi dont où ce cet cette ces il elle ils elles on nous vous je tu se s sa son ses leur leurs ne n pas "
        "plus est sont "
        "était étaient être été a ont avait avoir peut peuvent doit doivent faut si quand lorsque comme très "
        "tout tous toute "
        "toutes y c j m t quel quelle quels quelles combien comment pourquoi après avant pendant".split()
    ),
}


def words(text: str) -> list[str]:
    """Lower-case words and numbers, with decimals and hyphenated words whole and French elisions split."""
    return [part for word in WORD.findall(text.lower()) for part in re.split(r"(?<=\b[cdjlmnst])['’]", word) if part]


def stem(word: str) -> str:
    """Crude common form of a word's inflections, enough to see that 'holds' and 'hold' are one word."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s", "e"):
        if len(word) - len(ending) >= 3 and word.endswith(ending) and not word.endswith("ss"):
            return (
                stem(word[: -len(ending)]) if ending in ("es", "s") and word.endswith("ings") else word[: -len(ending)]
            )
    return word


def content_stems(text: str) -> list[str]:
    """Stems of the words that carry content, in order of appearance."""
    stop = STOPWORDS["en"] | STOPWORDS["fr"]
    return [stem(word) for word in words(text) if word not in stop]
