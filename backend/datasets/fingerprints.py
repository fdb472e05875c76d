"""What makes two examples the same one: a digest of their words that case and white space do not change."""

import hashlib
from collections.abc import Mapping, Sequence


def fingerprint(
    instruction: str,
    given: str,
    output: str,
    history: Sequence[Mapping[str, str]] | None = None,
    rejected: str | None = None,
) -> str:
    """SHA-256 over the parts in lower case with their white space made one.

    Earlier turns and a rejected answer count where there are any: the same answer may be preferred to several others.
    """
    parts = [instruction, given, output]
    for turn in history or ():
        parts += [turn["role"], turn["content"]]
    if rejected is not None:
        parts += ["rejected", rejected]
    return hashlib.sha256("\x1f".join(normalised(part) for part in parts).encode()).hexdigest()


def normalised(text: str) -> str:
    return " ".join(text.lower().split())
