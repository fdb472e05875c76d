"""The prompts: readable template files beside this module, filled with string.Template."""

from functools import cache
from importlib.resources import files
from string import Template

OPEN_MARK, CLOSE_MARK = "<document>", "</document>"


@cache
def _read(name: str) -> str:
    return files(__package__).joinpath("prompts", f"{name}.txt").read_text("utf-8").strip()


def fill(name: str, **values: object) -> str:
    """The prompt file `name` with its $placeholders filled. Raises KeyError when one is missing."""
    return Template(_read(name)).substitute(values)


def fenced(text: str) -> str:
    """Document text that cannot close the marks it is put between."""
    return text.replace(CLOSE_MARK, "").replace(OPEN_MARK, "")


@cache
def worked_examples(name: str) -> tuple[tuple[str, str, str], ...]:
    """The few-shot examples of a file: (sentence, opening, question) of each."""
    found = []
    for block in _read(name).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["Sentence"], fields["Opening"], fields["Question"]))
    return tuple(found)
