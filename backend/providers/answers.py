"""What outside services say in their answers: the sentence of an error, and how long they ask to wait."""

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

QUOTED_CHARACTERS: Final = 500
_LONGEST_WAIT_SECONDS: Final = 24 * 3600.0


def words_of(content: bytes) -> str:
    """The sentence in an error's body, whichever of the usual places it stands in."""
    try:
        body: Any = json.loads(content)
    except ValueError:
        return content[:2000].decode(errors="replace")
    for _ in range(3):
        if not isinstance(body, dict):
            break
        body = next((body[name] for name in ("error", "message", "detail", "msg") if body.get(name)), "")
    if isinstance(body, list):  # a validation error: one entry a field
        parts = [item.get("msg") or item.get("message") or item if isinstance(item, dict) else item for item in body]
        return "; ".join(str(part) for part in parts)
    return str(body or "")


def retry_after_seconds(header: str | None) -> float | None:
    """Seconds to wait, from either form of Retry-After; at most a day."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS) if seconds == seconds else None


def quoted(text: object, *secrets: str) -> str:
    """A provider's words on one line, bounded, without full stop, and without the secrets should they quote them."""
    words = " ".join(str(text).split())
    for secret in secrets:
        # An empty one would stand between all letters.
        if secret:
            words = words.replace(secret, "[key]")
    # Providers quote keys in part as well: "Incorrect API key provided: sk-abc***wxyz".
    words = re.sub(r"\b(?:sk|fw|tgp)[-_][\w*-]{6,}", "[key]", words)
    return words[:QUOTED_CHARACTERS].rstrip(". ")
