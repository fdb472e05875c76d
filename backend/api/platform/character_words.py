"""What the books, a price and a judgement of quality say to their reader, in French and in English."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from backend.billing import ledger
from backend.billing.models import LedgerEntry
from backend.billing.pricing import Line, Quote
from backend.datasets.content_quality import Judgement, language_factor, length_score, variety_factor
from backend.kit.language import Language

Sentences = Mapping[Language, str]

_ENTRIES: Final[dict[str, Sentences]] = {
    ledger.GRANT: {"fr": "Quota gratuit de {n} caractères", "en": "Free quota of {n} characters"},
    ledger.PURCHASE: {"fr": "Achat de {n} caractères", "en": "Purchase of {n} characters"},
    ledger.COMPLIMENTARY: {"fr": "{n} caractères offerts", "en": "{n} complimentary characters"},
    ledger.USAGE: {"fr": "Utilisation de {n} caractères", "en": "Use of {n} characters"},
    ledger.REFUND: {
        "fr": "Remboursement d'un achat : {n} caractères retirés",
        "en": "Refund of a purchase: {n} characters taken back",
    },
    ledger.CHARGEBACK: {
        "fr": "Paiement contesté : {n} caractères retirés",
        "en": "Disputed payment: {n} characters taken back",
    },
    ledger.REINSTATEMENT: {
        "fr": "Contestation close : {n} caractères rendus",
        "en": "Dispute closed: {n} characters given back",
    },
    ledger.ADVANCE: {
        "fr": "Avance de {n} caractères déjà utilisés, à déduire du prochain achat",
        "en": "Advance of {n} characters that were used already, to be taken from the next purchase",
    },
    ledger.REPAYMENT: {"fr": "Avance remboursée : {n} caractères", "en": "Advance paid back: {n} characters"},
    ledger.ADJUSTMENT: {
        "fr": "Correction de {n} caractères par l'administration : {reason}",
        "en": "Correction of {n} characters by the administration: {reason}",
    },
}
_UNBILLED: Final[Sentences] = {"fr": "{n} caractères non facturés", "en": "{n} characters that are not billed"}
_FOR_DATASET: Final[Sentences] = {
    "fr": "Utilisation de {n} caractères pour le dataset '{name}'",
    "en": "Use of {n} characters for the dataset '{name}'",
}
_FOR_GONE_DATASET: Final[Sentences] = {
    "fr": "Utilisation de {n} caractères pour un dataset supprimé",
    "en": "Use of {n} characters for a dataset that was deleted",
}
_FOR_ANSWER: Final[Sentences] = {
    "fr": "Utilisation de {n} caractères pour une réponse d'un modèle",
    "en": "Use of {n} characters for an answer of a model",
}
_NOT_SAID: Final[Sentences] = {"fr": "sans motif", "en": "no reason given"}

_LINES: Final[dict[str, Sentences]] = {
    "free_quota": {
        "fr": "{n} caractères sont pris sur votre quota gratuit, accordé une seule fois.",
        "en": "{n} characters come from your free quota, which is granted once.",
    },
    "balance": {
        "fr": "{n} caractères sont pris sur votre solde.",
        "en": "{n} characters come from your balance.",
    },
    "complimentary": {
        "fr": "{n} caractères sont offerts, et comptent dans la limite de {cap} par mois.",
        "en": "{n} characters are complimentary, and count against the {cap} of each month.",
    },
    "complimentary_used_up": {
        "fr": "Le reste pourrait être offert, mais il ne vous reste que {n} caractères sur les {cap} de ce mois.",
        "en": "The rest could be complimentary, but only {n} of this month's {cap} characters are left to you.",
    },
    "purchase": {
        "fr": "{n} caractères à {price} {currency} l'unité coûtent {amount} {currency}.",
        "en": "{n} characters at {price} {currency} each cost {amount} {currency}.",
    },
    "owed": {
        "fr": "{n} caractères que vous devez, utilisés avant d'être remboursés, coûtent {amount} {currency} de plus.",
        "en": "{n} characters that you owe, used before their money went back, cost {amount} {currency} more.",
    },
    "minimum": {
        "fr": "Un paiement est de {minimum} {currency} au moins : {amount} {currency} de plus, et {n} caractères de "
        "plus restent sur votre solde.",
        "en": "A payment is {minimum} {currency} at least: {amount} {currency} more, and {n} characters more stay on "
        "your balance.",
    },
}
NOTHING: Final[Sentences] = {"fr": "Aucun caractère n'est à traiter.", "en": "There are no characters to process."}
LOCAL: Final[Sentences] = {
    "fr": "Rien n'est facturé dans ce mode ; l'utilisation est seulement notée.",
    "en": "Nothing is billed in this mode; what is used is only recorded.",
}
PENDING: Final[Sentences] = {
    "fr": "Des contenus sont encore en cours de lecture ({n}) : leurs caractères s'ajouteront.",
    "en": "Contents are still being read ({n}): their characters will be added.",
}

# By score, from below each of these; then what a judgement of the texts adds.
_BY_SCORE: Final[list[tuple[float, list[Sentences]]]] = [
    (
        0.3,
        [
            {
                "fr": "Votre jeu de données est trop petit. Ajoutez beaucoup plus de contenu avant de lancer un "
                "fine-tuning.",
                "en": "Your data set is too small. Add much more content before you start a fine-tuning.",
            },
            {
                "fr": "Incluez des exemples plus variés pour couvrir différents aspects de votre domaine.",
                "en": "Include more varied examples, to cover different aspects of your field.",
            },
        ],
    ),
    (
        0.6,
        [
            {
                "fr": "Votre jeu de données pourrait être amélioré. Ajoutez plus de contenu pour de meilleurs "
                "résultats.",
                "en": "Your data set could be improved. Add more content for better results.",
            },
            {
                "fr": "Incluez des exemples plus variés pour couvrir différents aspects de votre domaine.",
                "en": "Include more varied examples, to cover different aspects of your field.",
            },
        ],
    ),
    (
        0.8,
        [
            {
                "fr": "Votre jeu de données est bon. Quelques contenus de plus le rendraient encore meilleur.",
                "en": "Your data set is good. A few more contents would make it better still.",
            }
        ],
    ),
    (
        1.01,
        [
            {
                "fr": "Votre jeu de données est assez grand. Vérifiez quelques exemples avant de lancer le "
                "fine-tuning.",
                "en": "Your data set is large enough. Check a few examples before you start the fine-tuning.",
            }
        ],
    ),
]
_VARIETY: Final[Sentences] = {
    "fr": "Les textes répètent souvent les mêmes tournures. Ajoutez des documents d'autres sortes.",
    "en": "The texts often repeat the same turns of phrase. Add documents of other kinds.",
}
_DUPLICATES: Final[Sentences] = {
    "fr": "{n} passages en répètent d'autres. Retirez les documents en double.",
    "en": "{n} passages repeat others. Remove the documents that are there twice.",
}
_LANGUAGES: Final[Sentences] = {
    "fr": "Les textes sont en plusieurs langues ({named}). Faites un jeu de données pour chacune.",
    "en": "The texts are in several languages ({named}). Make a data set for each of them.",
}
_LOW_VARIETY, _MANY_DUPLICATES, _FEW_OF_MAIN_LANGUAGE = 0.85, 0.05, 0.95


def describe_entry(entry: LedgerEntry, dataset_name: str | None, language: Language) -> str:
    """`dataset_name`: of the dataset that the entry names, as long as there is one."""
    params = entry.params
    sentence = _ENTRIES.get(entry.kind, _ENTRIES[ledger.ADJUSTMENT])
    if entry.kind == ledger.COMPLIMENTARY and "unbilled" in params:
        sentence = _UNBILLED
    elif entry.kind == ledger.USAGE and dataset_name is not None:
        sentence = _FOR_DATASET
    elif entry.kind == ledger.USAGE and "dataset" in params:
        sentence = _FOR_GONE_DATASET
    elif entry.kind == ledger.USAGE and "fine_tuning_id" in params:
        sentence = _FOR_ANSWER
    reason = params.get("reason") or _NOT_SAID[language]
    return sentence[language].format(n=abs(entry.characters), name=dataset_name, reason=reason)


def explain_line(line: Line, quote: Quote, *, minimum_cents: int, cap: int, language: Language) -> str:
    price = f"{quote.price_per_character:f}"
    return _LINES[line.kind][language].format(
        n=line.characters,
        cap=cap,
        price=price.replace(".", ",") if language == "fr" else price,
        amount=money(line.amount_cents, language),
        minimum=money(minimum_cents, language),
        currency=quote.currency.upper(),
    )


def money(cents: int, language: Language) -> str:
    """Cents as units with two digits: 0,60 or 0.60."""
    amount = f"{Decimal(cents) / 100:.2f}"
    return amount.replace(".", ",") if language == "fr" else amount


def suggestions(score: float, found: Judgement | None, language: Language) -> list[str]:
    """What to do for a better score."""
    chosen = next(sentences for below, sentences in _BY_SCORE if score < below)
    said = [sentence[language] for sentence in chosen]
    if found is None:
        return said
    if found.variety < _LOW_VARIETY:
        said.append(_VARIETY[language])
    if found.duplicate_share > _MANY_DUPLICATES:
        said.append(_DUPLICATES[language].format(n=found.exact_duplicates + found.near_duplicates))
    if found.languages and max(found.languages.values()) < _FEW_OF_MAIN_LANGUAGE:
        named = ", ".join(f"{code} {share:.0%}" for code, share in list(found.languages.items())[:4])
        said.append(_LANGUAGES[language].format(named=named))
    return said


def factors(characters: int, usage: Any, found: Judgement) -> dict[str, float]:
    """What the score is the product of, each from 0 to 1."""
    return {
        "length": round(length_score(characters, usage), 3),
        "variety": round(variety_factor(found.variety), 3),
        "repeats": round(1 - found.duplicate_share, 3),
        "languages": round(language_factor(found.languages), 3),
    }
