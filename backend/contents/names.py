"""File names as users send them, made safe to store, to show and to put in a header."""

import re
import unicodedata

MAX_NAME_LENGTH = 120

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_DOTS = re.compile(r"\.{2,}")
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,10}\Z")
# Letters that Unicode does not decompose into a base letter and a mark.
_FOLDED = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D"}
)
# Windows opens a device for these, whatever the extension.
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))]
)


def safe_filename(name: str) -> str:
    """A name of ASCII letters, digits, `.`, `_` and `-`: 1 to 120 characters, never `..`, no leading dot or dash.

    Folders are dropped (both slashes), accents are folded (`é` to `e`), every other character becomes `_`, and the
    extension survives shortening. A name with nothing usable becomes `file`, with its extension if it has one.
    """
    base = re.split(r"[/\\]", name.replace("\0", ""))[-1].translate(_FOLDED)
    folded = "".join(c for c in unicodedata.normalize("NFKD", base) if not unicodedata.combining(c))
    # Compatibility forms decompose into slashes and runs of dots, so cleaning comes after folding.
    cleaned = _DOTS.sub(".", _UNSAFE.sub("_", folded)).rstrip("._-")
    found = _EXTENSION.search(cleaned)
    extension = found.group() if found else ""
    stem = cleaned[: len(cleaned) - len(extension)].strip("._-") or "file"
    if stem.split(".")[0].lower() in _RESERVED:
        stem = f"_{stem}"
    return stem[: MAX_NAME_LENGTH - len(extension)].rstrip("._-") + extension
