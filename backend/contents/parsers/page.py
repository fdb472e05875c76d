"""A web page's HTML to the blocks of its main text, without the menus and notices around it."""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lxml.etree
import lxml.html
from trafilatura import bare_extraction

from backend.contents.blocks import Block
from backend.contents.encodings import shown_encoding
from backend.contents.parsers.decoding import read_lines
from backend.contents.parsers.failures import EmptyDocument

_DECLARED = re.compile(
    rb"""<(?:meta|\?xml)[^>]{0,500}?(?:charset|encoding)\s*=\s*["']?([A-Za-z0-9._:-]{1,40})""", re.IGNORECASE
)
_DECLARED_WITHIN = 4_096
# What the web means by these names (WHATWG Encoding, 4.2).
_WESTERN = frozenset({"iso-8859-1", "iso8859-1", "latin1", "latin-1", "us-ascii", "ascii", "iso_8859-1", "l1"})
_SPACES = re.compile(r"\s+")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?=[-_]|\Z)")
_LONGEST_TITLE = 300
_LONGEST_URL = 2_048
# Of a page that scripts would fill, less than this is "Loading..." or a plea to turn them on.
_FEWEST_CHARACTERS_BESIDE_SCRIPTS = 120
_BLOCKS = frozenset({"head", "p", "list", "table", "quote"})
_NEEDS_SCRIPTS = (
    "The page has no readable text of its own: scripts would put it there, and scripts are not run. Save the page in a "
    "browser as PDF and upload that."
)
_NO_TEXT = "The page has no readable text. Send the address of a page with prose, or upload the text as a file."


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What the page says of itself; `language` is the declared ISO 639 code, `canonical` may be relative."""

    title: str | None
    language: str | None
    canonical: str | None
    date: str | None

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)


def parse_page(source: Path, charset: str) -> tuple[PageFacts, Iterable[Block]]:
    """The facts and blocks of a page; `charset` is what the server claimed, maybe "". Raises EmptyDocument."""
    tree = _tree(source, charset)
    has_scripts = bool(tree.xpath("boolean(//script)"))
    title, language, canonical = _title(tree), _language(tree), _canonical(tree)
    for plea in tree.xpath("//noscript"):
        plea.drop_tree()
    found: Any = bare_extraction(
        tree, with_metadata=True, include_comments=False, include_tables=True, include_formatting=False
    )
    blocks = [] if found is None or found.body is None else list(_Walker().walk(found.body))
    characters = sum(len(block.text.strip()) for block in blocks)
    if not characters or (has_scripts and characters < _FEWEST_CHARACTERS_BESIDE_SCRIPTS):
        raise EmptyDocument(_NEEDS_SCRIPTS if has_scripts else _NO_TEXT)
    title = _short(found.title, _LONGEST_TITLE) or title
    return PageFacts(title, language, canonical, _short(found.date, 40)), blocks


def _tree(source: Path, charset: str) -> Any:
    text = _decoded(source, charset).replace("\0", "")
    # As bytes of one known encoding: what the page itself claims to be in has been weighed already.
    parser = lxml.html.HTMLParser(encoding="utf-8")
    try:
        return lxml.html.document_fromstring(text.encode("utf-8", errors="replace"), parser=parser)
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError) as error:
        raise EmptyDocument(_NO_TEXT) from error


def _decoded(source: Path, charset: str) -> str:
    """The characters of a page: by its marks, as UTF-8 if it is that, as claimed if that holds, else by its bytes."""
    data = source.read_bytes()
    shown = shown_encoding(data[:65_536])
    declared = _DECLARED.search(data, 0, _DECLARED_WITHIN)
    claims = [name for name in (charset, declared[1].decode("ascii") if declared else "") if name]
    # Its bytes are all ASCII, so that it would pass for UTF-8.
    stateful = [name for name in claims if name.lower().startswith("iso-2022")]
    for name in (shown, *stateful, "utf-8-sig", *claims):
        if name is None:
            continue
        try:
            found = codecs.lookup("cp1252" if name.lower() in _WESTERN else name)
            return data.decode(found.name)
        except (LookupError, UnicodeError):
            continue
    return "".join(read_lines(source))


def _title(tree: Any) -> str | None:
    return _short(tree.findtext(".//title"), _LONGEST_TITLE)


def _language(tree: Any) -> str | None:
    declared = tree.xpath("string(/html/@lang)") or tree.xpath("string(/html/@*[local-name()='lang'])")
    found = _LANGUAGE.match(str(declared).strip().lower())
    return found.group() if found else None


def _canonical(tree: Any) -> str | None:
    return _short(tree.xpath("string(//link[@rel='canonical']/@href)"), _LONGEST_URL)


def _short(text: object, longest: int) -> str | None:
    cleaned = _SPACES.sub(" ", str(text or "")).strip()
    return cleaned[:longest] or None


class _Walker:
    """Turns the reader's elements into blocks; the state is the loose text before the next of them."""

    def __init__(self) -> None:
        self.loose: list[str] = []
        self.depth = 0
        self.marker = ""

    def walk(self, element: Any) -> Iterator[Block]:
        """The blocks of what `element` holds, in order."""
        self._add(element.text)
        for child in element:
            if child.tag in _BLOCKS or self._is_code(child, element):
                yield from self._end()
                yield from self._block(child)
            elif child.tag == "lb":
                self.loose.append("\n")
            elif isinstance(child.tag, str):
                yield from self.walk(child)
            self._add(child.tail)
        if element.tag in {"body", "item", *_BLOCKS}:
            yield from self._end()

    def _block(self, element: Any) -> Iterator[Block]:
        match element.tag:
            case "head":
                level = str(element.get("rend", ""))[-1:]
                text = _flat(element)
                if text:
                    yield Block("heading", text, int(level) if level in {"1", "2", "3", "4", "5", "6"} else 2)
            case "list":
                yield from self._list(element)
            case "table":
                rows = [[_flat(cell) for cell in row.iter("cell")] for row in element.iter("row")]
                text = "\n".join(" | ".join(row) for row in rows if any(row))
                if text:
                    yield Block("table", text)
            case "code":
                yield Block("code", "".join(element.itertext()))
            case _:
                yield from self.walk(element)

    def _list(self, element: Any) -> Iterator[Block]:
        self.depth += 1
        numbered = element.get("rend") == "ol"
        for number, item in enumerate(element.iterchildren("item"), start=1):
            self.marker = f"{number}. " if numbered else "- "
            yield from self.walk(item)
        self.depth -= 1

    def _add(self, text: str | None) -> None:
        if text:
            self.loose.append(_SPACES.sub(" ", text))

    def _end(self) -> Iterator[Block]:
        text = "".join(self.loose).strip()
        self.loose = []
        if not text:
            return
        if self.depth:
            yield Block("list_item", self.marker + text, min(self.depth, 6))
            self.marker = ""
        else:
            yield Block("paragraph", text)

    @staticmethod
    def _is_code(element: Any, parent: Any) -> bool:
        """Code that stands by itself, or has lines; a word of code within a sentence stays there."""
        return element.tag == "code" and (parent.tag == "body" or "\n" in "".join(element.itertext()))


def _flat(element: Any) -> str:
    return _SPACES.sub(" ", " ".join(element.itertext())).strip()
