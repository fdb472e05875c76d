"""The mails to users, one file for each kind and language: the subject, an empty line, the text."""

import re
from importlib.resources import files

from backend.kit.mail import Mail
from backend.users.models import User

# Whoever registers somebody else's address chooses the name in the mail: nothing that a mail program makes a link of.
_HARMLESS_NAME = re.compile(r"[^\W\d_](?:[^\W_]|['’ -]|\.(?=\s|$)){0,59}")


def compose(kind: str, user: User, **fields: object) -> Mail:
    """The mail of a kind in the user's language."""
    text = files(__package__).joinpath(f"{kind}.{user.language}.txt").read_text(encoding="utf-8")
    subject, _, body = text.partition("\n\n")
    name = f" {user.name}" if _HARMLESS_NAME.fullmatch(user.name) else ""
    return Mail(to=user.email, subject=subject, text=body.format(name=name, **fields))
