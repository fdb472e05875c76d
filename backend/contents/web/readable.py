"""A fetched page to its readable text, in a child process that may fail, hang or swell without harm to the caller."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from backend.contents.blocks import DocumentSummary
from backend.contents.errors import DocumentRejected
from backend.contents.extraction import (
    DocumentBroken,
    EmptyDocument,
    ExtractionError,
    ExtractionLimits,
    extract_to_file,
    find_language,
    run_confined,
)
from backend.contents.sniffing import sniff
from backend.contents.types import PDF, TEXT
from backend.contents.web.errors import UrlTypeNotSupported, WebsiteHasNoText
from backend.contents.web.fetch import Resource

HTML, XHTML = "text/html", "application/xhtml+xml"
ACCEPTED_TYPES = frozenset({HTML, XHTML, PDF, TEXT})
# A page is one slice: a megabyte of prose takes two seconds, two take six.
_STEP_CPU_SECONDS = 9.0
_MARKUP = frozenset({HTML, "application/xml"})


@dataclass(frozen=True, slots=True)
class PageText:
    """What is known of a page whose text was written: `language` is detected, or else declared (ISO 639-1)."""

    mime_type: str
    pages: int | None
    character_count: int
    language: str | None
    meta: dict[str, Any]


async def read_page(path: Path, resource: Resource, destination: Path, limits: ExtractionLimits) -> PageText:
    """Writes the text of the fetched file at `path` to `destination` in the stored form of documents.

    Raises UrlTypeNotSupported, WebsiteHasNoText, and DocumentRejected with the code of an ExtractionError.
    """
    mime_type = _type_of(path, resource)
    try:
        if mime_type == HTML:
            summary, meta = await _read_html(path, resource, destination, limits)
        else:
            summary, meta = await extract_to_file(path, mime_type, destination, limits), {}
    except EmptyDocument as error:
        raise WebsiteHasNoText(str(error) if mime_type == HTML else None) from error
    except ExtractionError as error:
        raise DocumentRejected(error.code, str(error), filename=resource.url) from error
    declared = meta.get("language")
    return PageText(
        mime_type=mime_type,
        pages=summary.pages,
        character_count=summary.character_count,
        language=await find_language(destination) or declared,
        meta={key: value for key, value in {**meta, "url": resource.url}.items() if value is not None},
    )


def _type_of(path: Path, resource: Resource) -> str:
    """What the bytes are; the server's word only tells kinds of text apart. Raises UrlTypeNotSupported."""
    found = sniff(path, "page")
    if found == PDF:
        return PDF
    claimed = resource.content_type
    if found in _MARKUP or found == TEXT:
        if claimed in {HTML, XHTML} or (claimed != TEXT and found == HTML):
            return HTML
        if claimed == TEXT or found == TEXT:
            return TEXT
    if path.stat().st_size == 0:
        raise WebsiteHasNoText()
    raise UrlTypeNotSupported(host=httpx.URL(resource.url).host, type=found)


async def _read_html(
    path: Path, resource: Resource, destination: Path, limits: ExtractionLimits
) -> tuple[DocumentSummary, dict[str, Any]]:
    destination.touch(mode=0o600)
    bounds = replace(limits, step_cpu_seconds=_STEP_CPU_SECONDS)
    facts = await run_confined("backend.contents.web", path, destination, f"{HTML};{resource.charset}", bounds)
    try:
        with destination.open("rb") as file:
            summary = DocumentSummary.from_line(file.readline())
    except ValueError as error:
        raise DocumentBroken from error
    names = ("title", "language", "date")
    meta = {name: facts[name] for name in names if isinstance(facts.get(name), str)}
    return summary, {**meta, "canonical_url": _absolute(resource.url, facts.get("canonical"))}


def _absolute(base: str, canonical: object) -> str | None:
    """The page's own word for its address, if it is one; it is shown, and never fetched."""
    if not isinstance(canonical, str):
        return None
    try:
        found = httpx.URL(base).join(canonical)
    except (httpx.InvalidURL, ValueError):
        return None
    return str(found) if found.scheme in {"http", "https"} and found.host else None
