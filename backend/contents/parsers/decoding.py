"""Bytes of a text file to characters, for whatever encoding it was saved in."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import charset_normalizer

_SAMPLE_BYTES = 65_536
_READ_BYTES = 1024 * 1024
_LONGEST_PIECE = 32_768
_BOMS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# UTF-8 with up to this share of foreign sequences is UTF-8 with pasted pieces, not a file of another encoding.
_MAX_FOREIGN_SHARE = 0.2
_COMMON = ("cp1252", "latin_1", "cp1251", "cp1250", "cp1253", "cp1254", "gb18030", "cp932", "big5", "cp949")
_EQUALLY_WELL = 0.05
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
                for bom, encoding in _BOMS:
                    if block.startswith(bom) and file.tell() == len(block):
                        return encoding
            text = decoder.decode(block)
            found = text.count("\ufffd")
            if found and not sample:
                first = max(0, len(text[: text.index("\ufffd")].encode()) - 1024)
                sample = block[first : first + _SAMPLE_BYTES]
            foreign += found
            known += 0 if text.isascii() else sum(character > "\x7f" for character in text) - found
    if foreign <= _MAX_FOREIGN_SHARE * known:
        return "utf-8"
    matches = charset_normalizer.from_bytes(sample)
    best = matches.best()
    if best is None:
        return "cp1252"
    # A short text fits dozens of tables almost equally well; where a common one does, it is meant.
    plausible = {match.encoding for match in matches if match.chaos <= best.chaos + _EQUALLY_WELL}
    return next((encoding for encoding in _COMMON if encoding in plausible), best.encoding)


def _decode_piece(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


codecs.register_error(_PIECES, _decode_piece)
