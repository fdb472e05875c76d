"""What can go wrong with characters and money."""

from backend.kit.errors import DomainError


class InsufficientCharacters(DomainError):
    """`context` has the quote: what is needed, what is there, and what the rest would cost."""

    status = 402
    code = "INSUFFICIENT_CHARACTERS"
    template = (
        "This needs {needed} characters and {available} are available. Buy the rest with "
        "POST /api/characters/purchase, or choose fewer documents."
    )
