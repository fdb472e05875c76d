"""Which of our two languages a reader wants, by the Accept-Language header of a request (RFC 9110, 12.5.4)."""

import re
from typing import Final, Literal

Language = Literal["en", "fr"]
LANGUAGES: Final[tuple[Language, ...]] = ("en", "fr")
DEFAULT: Final[Language] = "en"
# A browser sends less than ten; whoever sends thousands gets those that come first.
_MOST_RANGES: Final = 50
_TAG: Final = r"\*|[a-z]{1,8}(?:-[a-z0-9]{1,8})*"
_WEIGHT: Final = r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?"
_RANGE: Final = re.compile(rf"\s*({_TAG})\s*(?:;\s*q\s*=\s*({_WEIGHT})\s*)?", re.IGNORECASE | re.ASCII)


def choose(accept_language: str, default: Language = DEFAULT) -> Language:
    """The language of ours with the greatest weight, and of equal ones that named first; `fr-CA` counts as `fr`.

    `*` stands for what is not named, so it means the default unless that is excluded (`en;q=0, *`). What is not
    well-formed is skipped. Nothing of ours, or all of it excluded: the default.
    """
    weights: dict[str, float] = {}
    for part in accept_language.split(",", _MOST_RANGES)[:_MOST_RANGES]:
        found = _RANGE.fullmatch(part)
        if found is not None:
            name = found[1].lower().split("-")[0]
            weights[name] = max(float(found[2] or 1), weights.get(name, 0.0))
    others = weights.get("*", 0.0)
    order = [*weights, default, *LANGUAGES]
    best = max(sorted(LANGUAGES, key=order.index), key=lambda language: weights.get(language, others))
    return best if weights.get(best, others) > 0 else default
