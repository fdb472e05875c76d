"""Ten megabytes to cut up: the prose of installed packages' documentation, with sentences planted whose ends are known.

The prose is what people wrote, so its words repeat as words do. The planted sentences hold what splitters trip over:
abbreviations, initials, decimals, quotes, addresses, ellipses, in English and French; each is unique.
"""

import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)
_BLANK_LINE = re.compile(r"\n\s*\n")
_NAMES = "Adeyemi Bouchard Castellano Dubois Eriksen Fontaine Girard Haddad Ito Jansen Kowalski Lefèvre Moreau".split()
_TOWNS = "Annecy Bergen Calais Dublin Évreux Fribourg Ghent Houston Izmir Jena Kyoto Lille Metz Namur Oslo".split()
_MONTHS = "Jan. Feb. Aug. Sept. Oct. Nov. Dec.".split()
_PLANTED = (
    "Dr. {name} of {town} paid {a}.{b} euros for part no. {n} in {month} {year}.",
    "The report by J. R. {name} et al. gives {a}.{b} mm on p. {c} for sample {n}.",
    "Use a clean brush, e.g. the No. {c} brush of {name} Inc. in {town}, for item {n}.",
    "“Does the U.S. office in {town} know about order {n}?” asked Mrs. {name}.",
    "See https://example.org/{town}/{n}.html?v={a}.{b} before you write to Prof. {name}.",
    "He waited... then Mr. {name} signed paper {n} at {c}:{b} p.m. in {town}.",
    "M. {name} a livré {n} pièces, soit {a},{b} kg, à {town} vers le {c} janv. {year}.",
    "Le Dr {name} renvoie à l'art. {c} du règlement n° {n}, cf. p. ex. la fig. {a}.",
    "« La vanne {n} est-elle fermée ? » a demandé Mme {name} à {town}.",
    "L'appareil {n} de la société {name} et Cie. pèse env. {a},{b} kg sans le couvercle.",
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """`text` is Markdown: headings with `#`, paragraphs between blank lines; all of `planted` are in it verbatim."""

    text: str
    planted: list[str]


def build(size_bytes: int, seed: int = 7) -> Corpus:
    """A corpus of about this size. The same installed packages and seed give the same text."""
    chance = random.Random(seed)
    parts: list[str] = []
    planted: list[str] = []
    size = 0
    for number, paragraph in enumerate(_paragraphs()):
        if number % 24 == 0:
            title = " ".join(paragraph.split()[:5]).strip(".,:;!?")
            parts.append(f"{'#' * chance.randint(1, 3)} {title} {number // 24}")
        sentence = _planted_sentence(chance, len(planted))
        planted.append(sentence)
        # Before, after, or between two texts; one sentence in ten is a paragraph of its own.
        place = chance.randrange(10)
        if place == 0:
            parts += [sentence, paragraph]
        elif place <= 3:
            parts.append(f"{sentence} {paragraph}")
        elif place <= 6 or parts[-1].startswith("#"):
            parts.append(f"{paragraph} {sentence}")
        else:
            parts[-1] = f"{parts[-1]} {sentence} {paragraph}"
        size += len(paragraph.encode()) + len(sentence.encode()) + 2
        if size >= size_bytes:
            return Corpus("\n\n".join(parts), planted)
    raise RuntimeError(f"the installed packages have {size:,} bytes of prose, which is less than {size_bytes:,}")


def _planted_sentence(chance: random.Random, number: int) -> str:
    return chance.choice(_PLANTED).format(
        name=chance.choice(_NAMES),
        town=chance.choice(_TOWNS),
        month=chance.choice(_MONTHS),
        year=chance.randint(1950, 2025),
        a=chance.randint(1, 9),
        b=chance.randint(10, 99),
        c=chance.randint(1, 12),
        n=number + 1000,
    )


def _paragraphs() -> Iterator[str]:
    """Paragraphs of docstrings that are prose, each once, in the order of the files' paths."""
    paths = sysconfig.get_paths()
    seen: set[str] = set()
    for root in (Path(paths["purelib"]), Path(paths["stdlib"])):
        for path in sorted(root.rglob("*.py")):
            if root == Path(paths["stdlib"]) and "site-packages" in path.parts:
                continue
            try:
                source = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            for docstring in _DOCSTRING.findall(source):
                for found in _BLANK_LINE.split(docstring):
                    paragraph = " ".join(found.split())
                    if _is_prose(paragraph) and paragraph not in seen:
                        seen.add(paragraph)
                        yield paragraph


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < 80 or not paragraph[0].isupper() or paragraph[-1] not in ".!?" or ">>>" in paragraph:
        return False
    return sum(character.isalpha() or character == " " for character in paragraph) >= 0.9 * len(paragraph)
