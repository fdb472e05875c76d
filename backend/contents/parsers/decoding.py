"""Bytes of a text file to characters, for whatever encoding it was saved in."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

import charset_normalizer

from backend.contents.encodings import shown_encoding

_SAMPLE_BYTES = 65_536
_READ_BYTES = 1024 * 1024
_LONGEST_PIECE = 32_768
# UTF-8 with up to this share of foreign sequences is UTF-8 with pasted pieces, not a file of another encoding.
_MAX_FOREIGN_SHARE = 0.2
_COMMON = ("cp1252", "latin_1", "cp1251", "cp1250", "cp1253", "cp1254", "gb18030", "cp932", "big5", "cp949")
_EQUALLY_WELL = 0.1
# Letters and marks of western European languages outside ASCII. A text that has some of them between its plain letters,
# and nothing else, is in the table of those languages however short it is.
_WESTERN = re.compile(
    r"[\s\x20-\x7eàâäáãåæçèéêëìíîïñòóôöõøœùúûüýÿßÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖÕØŒÙÚÛÜÝŸ€£§°«»¿¡·\u2018\u2019\u201c\u201d\u201e"
    r"\u2013\u2014\u2026\u2022\xa0\xad]*"
)
_MOST_ACCENTED_SHARE = 0.4
_PIECES = "finetuneflow.pieces"


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, each with `\\n` at its end whatever the file uses (LF, CRLF, CR).

    A line of more than 32,768 characters comes in pieces, of which only the last has the `\\n`.
    """
    encoding = _encoding(path)
    errors = _PIECES if encoding in {"utf-8", "utf-8-sig"} else "replace"
    with path.open(encoding=encoding, errors=errors, newline=None) as file:
        while line := file.readline(_LONGEST_PIECE):
            yield line


def _encoding(path: Path) -> str:
    foreign = known = 0
    sample = b""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            if not known and not foreign:
                shown = shown_encoding(block) if file.tell() == len(block) else None
                if shown is not None:
                    return shown
            text = decoder.decode(block)
            found = text.count("\ufffd")
            if found and not sample:
                first = max(0, len(text[: text.index("\ufffd")].encode()) - 1024)
                sample = block[first : first + _SAMPLE_BYTES]
            foreign += found
            known += 0 if text.isascii() else sum(character > "\x7f" for character in text) - found
    if foreign <= _MAX_FOREIGN_SHARE * known:
        return "utf-8"
    if _is_western(sample):
        return "cp1252"
    matches = charset_normalizer.from_bytes(sample)
    best = matches.best()
    if best is None:
        return "cp1252"
    # A short text fits dozens of tables almost equally well; where a common one does, it is meant.
    plausible = {match.encoding for match in matches if match.chaos <= best.chaos + _EQUALLY_WELL}
    return next((encoding for encoding in _COMMON if encoding in plausible), best.encoding)


def _is_western(sample: bytes) -> bool:
    text = sample.decode("cp1252", errors="replace")
    letters = sum(map(str.isalpha, text))
    accented = sum(character.isalpha() for character in text if character > "\x7f")
    return accented <= _MOST_ACCENTED_SHARE * letters and _WESTERN.fullmatch(text) is not None


def _decode_piece(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


codecs.register_error(_PIECES, _decode_piece)
