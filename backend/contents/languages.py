"""The language of a text as an ISO 639-1 code, by the byte sequences that its words are made of (py3langid)."""

import re
import threading
from functools import lru_cache
from typing import Any

# Widely written languages that a sentence tells apart. The model knows 140: with all of them, Galician takes sentences
# from Portuguese; with these, 84 of 84 sentences in seven languages came out right, and so did their first 25 letters.
LANGUAGES = frozenset(
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it ja ka ko lt lv ms nl no pl pt ro ru sk sl sq sr sv "
    "sw ta te th tr uk ur vi zh".split()
)
NO_LANGUAGE = "zxx"

_FEWEST_LETTERS = 10
# A sign of Chinese, Japanese, Korean or Thai says as much as a few letters.
_DENSE = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_DENSE_LETTERS = 4
_LOWEST_CONFIDENCE = 0.4
_SAMPLE_CHARACTERS = 6_000
_SAMPLE_PIECES = 6

_loading = threading.Lock()
_loaded: Any = None


# A passage is asked for each time that something is made from it.
@lru_cache(maxsize=128)
def detect(text: str) -> str | None:
    """The code of the language that most of `text` is in, or None where there is too little to tell.

    May be called from any thread. A sentence is enough, a word is not; of a long text a few pieces are looked at, which
    takes about a millisecond. The first call loads the model: under a second, and about 60 MB that stay.
    """
    sample = _sample(text)
    letters = sum(map(str.isalpha, sample)) + (_DENSE_LETTERS - 1) * len(_DENSE.findall(sample))
    if letters < _FEWEST_LETTERS:
        return None
    language, confidence = _identifier().classify(sample)
    return str(language) if confidence >= _LOWEST_CONFIDENCE and language != NO_LANGUAGE else None


def _sample(text: str) -> str:
    """Pieces from all over a long text: its beginning may be a title page in another language."""
    if len(text) <= _SAMPLE_CHARACTERS:
        return text
    length = _SAMPLE_CHARACTERS // _SAMPLE_PIECES
    step = (len(text) - length) // (_SAMPLE_PIECES - 1)
    return "\n".join(text[step * piece : step * piece + length] for piece in range(_SAMPLE_PIECES))


def _identifier() -> Any:
    global _loaded
    with _loading:
        if _loaded is None:
            # Imported here: most processes never ask for a language.
            from py3langid.langid import MODEL_DIR, MODEL_FILE, LanguageIdentifier
            from py3langid.modelio import load_model

            weights, priors, classes, moves, rows, outputs = load_model(MODEL_DIR / MODEL_FILE)
            kept = [at for at, language in enumerate(classes) if language in LANGUAGES or language == NO_LANGUAGE]
            # The columns are copied, so that those of the other languages are freed.
            _loaded = LanguageIdentifier(
                weights[:, kept].copy(),
                priors[kept].copy(),
                [classes[at] for at in kept],
                moves,
                outputs,
                norm_probs=True,
                tk_row=rows,
            )
        return _loaded
