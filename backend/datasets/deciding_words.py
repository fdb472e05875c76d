"""Says whether two nearly equal texts differ by a number, a name, a negation or another word that changes the fact."""

import re
import zlib
from collections.abc import Iterator

# Opposites, ranks and units: one word of a question that turns it into another question. Words that are as often
# mere grammar (on, in, up, all, plus, est) are left out, or rewordings would no longer be found.
_OPPOSITES = frozenset(
    """
    yes true false always maximum minimum max min least fewer highest lowest higher lower largest smallest longest
    shortest biggest oldest newest first third last next previous before after above below left right inside outside
    open closed opening closing start stop starting stopping front rear north south east west summer winter input output
    enable disable enabled disabled allowed forbidden permitted prohibited mandatory optional required increase decrease
    increases decreases hot cold dry wet male female only except half double internal external upper positive negative
    include exclude includes excludes including excluding buy sell day night with
    oui vrai faux toujours maximal minimal maximale minimale haut bas haute basse supérieur inférieur supérieure
    inférieure premier première troisième dernier dernière suivant précédent suivante précédente avant après gauche
    droite dedans dehors intérieur extérieur ouvert fermé ouverte fermée ouvrir fermer ouverture fermeture démarrer
    arrêter démarrage arrêt entrée sortie activer désactiver activé désactivé autorisé interdit autorisée interdite
    obligatoire facultatif facultative augmenter diminuer augmente diminue hausse baisse nord sud ouest jour nuit hiver
    chaud froid sec humide seulement sauf avec inclus exclu interne externe positif négatif positive négative acheter
    vendre
    one two three four five six seven eight nine ten hundred thousand million
    deux trois quatre cinq sept huit neuf dix cent mille millions
    second seconds minute minutes hour hours days week weeks month months year years percent
    seconde secondes heure heures jours semaine semaines mois année années euro euros dollar dollars
    millimetre millimetres centimetre centimetres metre metres meter meters kilometre kilometres mile miles litre litres
    liter liters gallon gallons gram grams gramme grammes kilogram kilograms kilogramme kilogrammes tonne tonnes
    celsius fahrenheit kelvin
    """.split()
)
_NEGATIONS = frozenset(
    "not no never without cannot neither nor none nothing nobody pas jamais sans aucun aucune rien ni non n't".split()
)
# A capital at the start of a sentence makes no name of these.
_STARTERS = frozenset(
    """
    what which who whom whose when where why how is are was were do does did can could may might must should would will
    has have had the a an this that these those it its they he she we you there here in at on of for from by to with as
    if so and or but than according please kindly tell name give list state describe explain say briefly also
    que quel quelle quels quelles qui quoi quand où pourquoi comment combien est sont était étaient peut peuvent doit
    doivent faut le la les un une des ce cet cette ces il elle ils elles on nous vous y dans à au aux en sur de du pour
    par avec selon si et ou mais donc voici merci dites indiquez citez donnez nommez décrivez expliquez quelque qu l d c
    j s n m t
    """.split()
)
_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_TOKEN = re.compile(r"n['’]t\b|\d+(?:[.,:/]\d+)*|[^\W\d_]+|[%‰°€$£]", re.IGNORECASE)
# After a letter or digit and one space: certainly not at the start of a sentence.
_NAME = re.compile(r"(?<=[^\W_] )[A-ZÀ-ÖØ-Þ][^\W\d_]*")
_CONTRACTED = re.compile(r"(?<=[a-z])n['’]t\b", re.IGNORECASE)
_SENTENCE_START = frozenset('.?!:;…\n"«“”(¿¡–—•*')
# What follows a number and is at most this long is taken for its unit.
_UNIT_CHARACTERS = 4


def facts_key(text: str) -> int:
    """32 bits, equal for texts with the same set of numbers and of names inside sentences; cheap enough for any text.

    A text whose case says nothing (all in capitals, say) has no names here, nor has one all in lower case.
    """
    found = {number.replace(",", ".") for number in _NUMBER.findall(text)}
    names = _NAME.findall(text)
    if names and _capitals_tell(text):
        found.update(name.casefold() for name in names)
    return zlib.crc32(" ".join(sorted(found)).encode("utf-8", "surrogatepass")) if found else 0


def differ(first: "str | Facts", second: "str | Facts") -> bool:
    """Whether a number, unit, name, code, opposite or negation of one text is missing in the other.

    Case is no difference, and neither is order: 'from A to B' and 'from B to A' have the same deciding words. Names
    are told by their capital, so a name in a text all in lower case is not seen as one. Made beforehand, `Facts` spare
    time where one text is compared with several.
    """
    one, other = (text if isinstance(text, Facts) else Facts(text) for text in (first, second))
    if one.numbers != other.numbers or one.negations != other.negations:
        return True
    if not (one.deciding <= other.words and other.deciding <= one.words):
        return True
    # A sentence may begin with a name or with any word at all: only when each has one of its own are they names.
    return bool(one.opening - other.words and other.opening - one.words)


def lacks(text: str, reference: str) -> bool:
    """Whether a number, unit, name, code or opposite of the reference is missing in the text."""
    given, wanted = Facts(text), Facts(reference)
    return not (wanted.numbers <= given.numbers and wanted.deciding <= given.words)


class Facts:
    """What a text states by single words: its numbers, its deciding words, how often it negates."""

    def __init__(self, text: str) -> None:
        self.numbers: set[str] = set()
        self.words: set[str] = set()
        self.deciding: set[str] = set()
        self.opening: set[str] = set()
        self.negations = 0
        self._capitals_tell = _capitals_tell(text)
        for token, before, at_start in _tokens(text):
            self._take(token, before, at_start)

    def _take(self, token: str, before: str, at_start: bool) -> None:
        word = token.casefold()
        if token[0].isdigit():
            self.numbers.add(word.replace(",", "."))
            return
        self.words.add(word)
        if word in _NEGATIONS:
            self.negations += 1
        elif word in _OPPOSITES or not word.isalpha() or _is_unit(word, before):
            self.deciding.add(word)
        elif self._capitals_tell and token != token.lower():
            if not at_start or token[1:] != token[1:].lower():
                self.deciding.add(word)
            elif word not in _STARTERS:
                self.opening.add(word)


def _capitals_tell(text: str) -> bool:
    """False for a text in capitals and a Title With One On Every Word."""
    return sum(map(str.isupper, text)) * 4 < sum(map(str.isalpha, text))


def _is_unit(word: str, before: str) -> bool:
    return before[:1].isdigit() and len(word) <= _UNIT_CHARACTERS and word not in _STARTERS


def _tokens(text: str) -> Iterator[tuple[str, str, bool]]:
    """Each word, number or sign with the one before it, and whether it begins a sentence."""
    text = _CONTRACTED.sub(" not", text.replace("cannot", "can not").replace("can't", "can not"))
    before, end = "", 0
    for found in _TOKEN.finditer(text):
        between = text[end : found.start()]
        yield found.group(), before, end == 0 or not _SENTENCE_START.isdisjoint(between)
        before, end = found.group(), found.end()
