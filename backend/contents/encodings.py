"""Encodings that a file of text shows by its first bytes: byte-order marks, and wide characters without one."""

import codecs

BYTE_ORDER_MARKS: tuple[tuple[bytes, str], ...] = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_LOOKED_AT = 4_096
_FEWEST_BYTES = 8
_BLANKS = frozenset("\r\n\t\f ")


def shown_encoding(head: bytes) -> str | None:
    """The encoding that the first bytes of a file show, else None: it is of one byte a character, or UTF-8, or no text.

    UTF-16 and UTF-32 without a mark are known by their zero bytes, if what they say is readable.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    sample = head[: min(len(head), _LOOKED_AT) // 4 * 4]
    if len(sample) < _FEWEST_BYTES or b"\0" not in sample:
        return None
    zeros = [sample[place::4].count(0) for place in range(4)]
    wide = ["utf-32-le", "utf-32-be"] if sum(zeros) > len(sample) / 2 else []
    # In both, it is the upper byte of a letter or a space that is zero.
    narrow = "utf-16-le" if zeros[1] + zeros[3] >= zeros[0] + zeros[2] else "utf-16-be"
    for encoding in [*wide, narrow]:
        # The last character may be half of a pair.
        for cut in (sample, sample[:-2]):
            if _is_readable(cut, encoding):
                return encoding
    return None


def _is_readable(sample: bytes, encoding: str) -> bool:
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError:
        return False
    words = "".join(character for character in text if character not in _BLANKS)
    return bool(words) and words.isprintable() and (len(words) < len(text) or len(text) < 40)
