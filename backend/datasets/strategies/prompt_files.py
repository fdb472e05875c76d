"""The prompts: readable template files beside this module, filled with string.Template, and marks around documents."""

import hashlib
import re
from functools import cache
from importlib.resources import files
from string import Template

from backend.datasets.strategies.injection import cleaned

OPEN_MARK, CLOSE_MARK = "<document>", "</document>"
_MARK = re.compile(r"<\s*/?\s*document\s*>", re.IGNORECASE)


@cache
def _read(name: str) -> str:
    return files(__package__).joinpath("prompts", f"{name}.txt").read_text("utf-8").strip()


def fill(name: str, **values: object) -> str:
    """The prompt file `name` with its $placeholders filled. Raises KeyError when one is missing."""
    return Template(_read(name)).substitute(values)


def fenced(text: str) -> str:
    """Document text as a model may see it: it cannot close its marks, and gives no orders."""
    text = cleaned(text).text
    while _MARK.search(text):  # what is left may close up to a new mark
        text = _MARK.sub("", text)
    return text


def marks(text: str) -> tuple[str, str]:
    """The lines before and after a text. Their number comes from the whole text, so no document can hold it."""
    number = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{OPEN_MARK} {number}", f"{CLOSE_MARK} {number}"


@cache
def described(name: str) -> dict[str, str]:
    """The lines 'name: description' of a file, in their order."""
    return dict(line.split(": ", 1) for line in _read(name).splitlines())


@cache
def worked_examples(name: str) -> tuple[tuple[str, str, str], ...]:
    """The few-shot examples of a file: (sentence, opening, question) of each."""
    found = []
    for block in _read(name).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["Sentence"], fields["Opening"], fields["Question"]))
    return tuple(found)
