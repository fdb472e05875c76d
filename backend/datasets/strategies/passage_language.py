"""Which language a passage is in, what it is called, and whether an example is written in it."""

import re

from backend.contents.languages import detect
from backend.datasets.strategies.base import ChunkText
from backend.datasets.strategies.language import words
from backend.datasets.strategies.prompt_files import described

# Shorter passages lean on what is known of the whole document.
_ENOUGH_LETTERS = 60
# Outputs of fewer words are names, figures and labels, which belong to no language.
SHORTEST_TELLING_WORDS = 4
# Written so much alike that a sentence does not tell them apart.
_ALIKE = ({"da", "no", "sv"}, {"hr", "sr", "sl"}, {"cs", "sk"}, {"id", "ms"}, {"es", "pt", "ca"}, {"ru", "uk", "bg"})
# Text with much of this is code or a table, not prose.
_SYMBOLS = re.compile(r"[^\w\s.,;:!?'\"()’“”«»¿¡-]|_|\d")
# Chinese, Japanese and Thai put no blanks between words.
_UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]{6}")
_MOST_SYMBOLS = 0.25


def language_of_passage(chunk: ChunkText) -> str | None:
    """ISO 639-1 code of the chunk's language; the document's where the chunk is too short to tell. None if unknown."""
    if sum(map(str.isalpha, chunk.text)) >= _ENOUGH_LETTERS:
        return detect(chunk.text) or chunk.language
    return chunk.language or detect(chunk.text)


def named(language: str | None) -> str:
    """The language as prompts name it, in English and in itself: 'French (français)'."""
    return described("languages").get(language or "", "the language of the passage")


def written_in(text: str, language: str | None) -> bool:
    """Whether the text is in the language; True where it is too short to tell, or no prose."""
    if language is None or len(words(text)) < SHORTEST_TELLING_WORDS and not _UNSPACED.search(text):
        return True
    if len(_SYMBOLS.findall(text)) > _MOST_SYMBOLS * len(text):
        return True
    found = detect(text)
    return found is None or found == language or any({found, language} <= group for group in _ALIKE)
