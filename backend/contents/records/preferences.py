"""Rows with a preferred and a rejected answer: the forms of TRL, LLaMA-Factory and OpenAI, and our own."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from backend.contents.records.chat import CHAT_COLUMNS, read_turns
from backend.contents.records.row import Row, RowRefused, Turn
from backend.contents.records.texts import required_text, type_name

# The first name of each is the one that a message tells.
PREFERRED = ("chosen", "preferred", "preferred_output")
REJECTED = ("rejected", "non_preferred_output", "non_preferred", "dispreferred")
PREFERENCE_COLUMNS = (*PREFERRED, *REJECTED)
SHAPE = "preference"
_ANSWER_TYPES = (str, list, dict)


class Question(NamedTuple):
    """What a plain row asks."""

    instruction: str
    given: str
    history: list[Turn] | None


def is_preference(columns: Mapping[str, Any], answers: Iterable[str]) -> bool:
    """Whether the row has a column for either answer. Marks such as true and false are no answers.

    `answers`: what a plain row may call its answer.
    """
    preferred, rejected = _name(columns, PREFERRED), _name(columns, REJECTED)
    if preferred is None or rejected is None:
        return False
    own = next((columns[name] for name in answers if columns.get(name)), None)
    return not any(_is_mark(columns[name], own) for name in (preferred, rejected))


def read(line: int, columns: Mapping[str, Any], ask: Callable[[], Question | None]) -> Row:
    """The row of two answers; `ask` finds a plain question in its columns.

    The prompt may stand in `prompt`, in `input`, as plain columns, or before either answer as a conversation.
    Raises RowRefused: same_answers, different_prompts, and what a conversation can be refused for.
    """
    preferred, rejected = _name(columns, PREFERRED), _name(columns, REJECTED)
    assert preferred is not None
    assert rejected is not None
    chosen_items, rejected_items = (_items(name, columns[name]) for name in (preferred, rejected))
    prompt = _prompt(columns)
    question = ask() if prompt is None else None
    if prompt is None and question is None and 1 in (len(chosen_items), len(rejected_items)):
        raise RowRefused(
            "missing_field", f"There is '{preferred}' but no question to it. Add the question as 'prompt'."
        )
    if question is not None and len(chosen_items) == len(rejected_items) == 1:
        asked = {"role": "user", "content": question.instruction}
        answers = [
            _ending(name, [asked], items)[-1]["content"]
            for name, items in ((preferred, chosen_items), (rejected, rejected_items))
        ]
        row = Row(line, question.instruction, question.given, answers[0], question.history, answers[1])
    else:
        chosen_turns = _ending(preferred, prompt or [], chosen_items)
        rejected_turns = _ending(rejected, prompt or [], rejected_items)
        if chosen_turns[:-1] != rejected_turns[:-1]:
            raise _different(f"'{preferred}' and '{rejected}' answer different prompts.")
        _require_asked(question, chosen_turns)
        *history, last, answer = chosen_turns
        row = Row(line, last["content"], "", answer["content"], history or None, rejected_turns[-1]["content"])
    return _checked(row)


def with_rejected(row: Row, columns: Mapping[str, Any]) -> Row:
    """A plain row with the answer that is worse than its own, where the columns have one. Raises RowRefused."""
    name = _name(columns, REJECTED)
    if name is None or not isinstance(columns[name], _ANSWER_TYPES) or not columns[name]:
        return row
    if isinstance(columns[name], str) and (not columns[name].strip() or _is_mark(columns[name], row.output)):
        return row
    asked = {"role": "user", "content": row.instruction}
    return _checked(replace(row, rejected=_ending(name, [asked], _items(name, columns[name]))[-1]["content"]))


def _is_mark(value: Any, answer: Any) -> bool:
    """Whether it says that the row's own answer was taken or not. A table has no truth values, only their words."""
    if not isinstance(value, str) or answer is None:
        return isinstance(value, bool)
    return _is_truth(value) and not _is_truth(answer)


def _is_truth(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in ("true", "false")


def _name(columns: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The column that has the answer, first of all one that is filled."""
    there = [name for name in names if name in columns]
    return next((name for name in there if columns[name]), there[0] if there else None)


def _items(name: str, value: Any) -> list[Any]:
    """An answer as messages: a text is one of the assistant."""
    if isinstance(value, list):
        if not value:
            raise RowRefused("empty_field", f"'{name}' is empty.")
        return value
    if isinstance(value, dict):
        return [value]
    if value is not None and not isinstance(value, str):
        raise RowRefused("wrong_type", f"'{name}' must be text or a list of messages, not {type_name(value)}.")
    return [{"role": "assistant", "content": required_text(f"'{name}'", value)}]


def _prompt(columns: Mapping[str, Any]) -> list[Any] | None:
    """The messages of a prompt that is given as such; None for a plain question, or one before the answers."""
    given = columns.get("prompt")
    if isinstance(given, list):
        return given
    given = columns.get("input")
    if isinstance(given, dict) and isinstance(given.get("messages"), list):
        if given.get("tools"):
            raise RowRefused("unsupported_content", "'tools': conversations that call tools cannot be trained on.")
        found: list[Any] = given["messages"]
        return found
    for name in CHAT_COLUMNS:
        items = columns.get(name)
        if not isinstance(items, list) or not items or not isinstance(items[-1], dict):
            continue
        # One that ends with an answer repeats what the answers hold.
        if items[-1].get("role", items[-1].get("from")) not in ("user", "human"):
            continue
        system = columns.get("system")
        is_told = isinstance(system, str) and system.strip()
        return [{"role": "system", "content": system}, *items] if is_told else items
    return None


def _ending(name: str, prompt: list[Any], items: list[Any]) -> list[Turn]:
    """The turns up to the answer; items of more than one message bring the prompt themselves."""
    if len(items) == 1:
        return read_turns(f"prompt and {name}" if prompt else name, [*prompt, *items])[1]
    turns = read_turns(name, items)[1]
    if prompt and read_turns("prompt", [*prompt, items[-1]])[1][:-1] != turns[:-1]:
        raise _different(f"'{name}' repeats another prompt than 'prompt'.")
    return turns


def _require_asked(question: Question | None, turns: list[Turn]) -> None:
    """A plain question beside whole conversations is one of theirs."""
    if question is None or len(turns) < 2:
        return
    said = {turn["content"] for turn in turns if turn["role"] == "user"}
    if question.instruction not in said:
        raise _different("The question is none of those in the answers' conversations.")


def _different(problem: str) -> RowRefused:
    return RowRefused("different_prompts", f"{problem} Both answers must be to one prompt.")


def _checked(row: Row) -> Row:
    if row.output == row.rejected:
        raise RowRefused(
            "same_answers", "The preferred and the rejected answer are the same. Change one, or leave 'rejected' out."
        )
    return row
