"""The reader's language, and what failed work says in it."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request

from backend.kit import language, messages
from backend.kit.language import Language


async def get_reader_language(request: Request) -> Language:
    return language.choose(",".join(request.headers.getlist("accept-language")))


ReaderLanguage = Annotated[Language, Depends(get_reader_language)]


async def get_platform_language(request: Request) -> Language:
    """For what the platform face's contract says in French: French, unless the reader prefers English."""
    return language.choose(",".join(request.headers.getlist("accept-language")), default="fr")


PlatformLanguage = Annotated[Language, Depends(get_platform_language)]


def told(reader: Language, code: str | None, sentence: str | None, context: Mapping[str, Any] | None) -> str | None:
    """The kept sentence of an error, or the same in French where that is wanted and known."""
    if reader != "fr" or code is None or sentence is None:
        return sentence
    return messages.french_sentence(code, context or {}) or sentence
