"""A row of any common shape to instruction, input, output and history."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from backend.contents.records import chat, preferences
from backend.contents.records.chat import CHAT_COLUMNS
from backend.contents.records.preferences import PREFERENCE_COLUMNS, PREFERRED, Question
from backend.contents.records.row import Row, RowRefused, Turn
from backend.contents.records.texts import cut_short, required_text


@dataclass(frozen=True, slots=True)
class _Shape:
    """A shape by its columns: the first name of each list is the one that a message tells."""

    name: str
    asked: tuple[str, ...]
    given: tuple[str, ...]
    answered: tuple[str, ...]


_CONTEXT = ("context", "contexte", "passage")
# In this order: `instruction` with `response` is Alpaca's, and `input` asks only where nothing else does.
_SHAPES = (
    _Shape(
        "instruction",
        ("instruction", "instructions"),
        ("input", "inputs", "entree", "question", *_CONTEXT),
        ("output", "outputs", "response", "reponse", "answer", "completion", "target", "sortie"),
    ),
    _Shape("prompt_completion", ("prompt",), ("input", *_CONTEXT), ("completion", "completions")),
    _Shape("prompt_response", ("prompt",), ("input", *_CONTEXT), ("response", "reponse", "output", "answer")),
    _Shape(
        "question_answer",
        ("question", "query", "q"),
        (*_CONTEXT, "input"),
        ("answer", "answers", "reponse", "reponses", "response", "output", "a"),
    ),
    _Shape("input_output", ("input", "entree"), _CONTEXT, ("output", "target", "sortie")),
)
_KNOWN = frozenset(name for shape in _SHAPES for name in (*shape.asked, *shape.given, *shape.answered)) | {
    *CHAT_COLUMNS,
    *PREFERENCE_COLUMNS,
}
_ANSWERED = tuple(name for shape in _SHAPES for name in shape.answered)
_ANSWERS = frozenset({"answer", "answers", "reponse", "reponses"})
_TOOLS = ("tools", "functions", "tool_calls", "function_call")
_SHOWN_COLUMNS = 8


def map_row(line: int, fields: Mapping[str, Any]) -> tuple[str, Row]:
    """The name of the row's shape, and the row. Raises RowRefused with the reason."""
    columns = _columns(fields)
    for name in _TOOLS:
        if columns.get(name):
            raise RowRefused("unsupported_content", f"'{name}': conversations that call tools cannot be trained on.")
    if preferences.is_preference(columns, _ANSWERED):
        return preferences.SHAPE, preferences.read(line, columns, lambda: _question(columns))
    shape, row = _plain(line, columns)
    rated = preferences.with_rejected(row, columns)
    return (shape if rated.rejected is None else preferences.SHAPE), rated


def _plain(line: int, columns: Mapping[str, Any]) -> tuple[str, Row]:
    """A row with one answer."""
    conversation = _conversation(columns)
    if conversation is not None:
        kind, turns = conversation
        return kind, _of_turns(line, turns)
    shape, question, answer = _pair(columns)
    asked = _asked(columns, shape, question)
    output = required_text(f"'{answer}'", _first_answer(columns[answer]) if answer in _ANSWERS else columns[answer])
    return shape.name, Row(line, asked.instruction, asked.given, output, asked.history)


def _question(columns: Mapping[str, Any]) -> Question | None:
    """What a row asks in plain columns, whatever the answer is called; None where nothing does."""
    for shape in _SHAPES:
        name = next((name for name in shape.asked if name in columns), None)
        if name is not None:
            return _asked(columns, shape, name)
    return None


def _asked(columns: Mapping[str, Any], shape: _Shape, question: str) -> Question:
    instruction = required_text(f"'{question}'", columns[question])
    given = [required_text(f"'{name}'", columns[name]) for name in shape.given if not _is_blank(columns.get(name))]
    return Question(instruction, "\n\n".join(given), chat.earlier_turns(columns))


def known_columns(names: Iterable[str]) -> int:
    """How many of a header's names mean something here."""
    return sum(column_of(name) in _KNOWN for name in names)


@lru_cache(maxsize=1024)
def column_of(name: str) -> str:
    """A column's name without case, accents, spaces and byte-order marks: `Réponse ` and `reponse` are one."""
    plain = unicodedata.normalize("NFKD", name.replace("\ufeff", "")).casefold()
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return "_".join(plain.replace("-", " ").replace("_", " ").split())


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, value in fields.items():
        # A name of thousands of letters is no column of ours, and would fill the cache.
        column = column_of(name) if len(name) <= 100 else name
        if column in columns:
            raise RowRefused("duplicate_key", f"The column '{cut_short(name)}' is there twice. Keep one of them.")
        columns[column] = value
    return columns


def _conversation(columns: Mapping[str, Any]) -> tuple[str, list[Turn]] | None:
    """The shape and turns of a row that holds a conversation; None for a plain question and answer."""
    prompt, completion = columns.get("prompt"), columns.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return "messages", chat.read_turns("prompt and completion", [*prompt, *completion])[1]
    for name in CHAT_COLUMNS:
        if isinstance(columns.get(name), list):
            shape, turns = chat.read_turns(name, columns[name])
            system = columns.get("system")
            if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":
                turns.insert(0, {"role": "system", "content": required_text("'system'", system)})
            return shape, turns
    named = next((name for name in CHAT_COLUMNS if columns.get(name)), None)
    if named is not None and not any(columns.get(shape.asked[0]) for shape in _SHAPES):
        raise RowRefused("wrong_type", f"'{named}' must be a list of turns.")
    return None


def _of_turns(line: int, turns: Sequence[Turn]) -> Row:
    *history, question, answer = turns
    return Row(line, question["content"], "", answer["content"], history or None)


def _pair(columns: Mapping[str, Any]) -> tuple[_Shape, str, str]:
    """The shape of a row and the columns of its question and answer."""
    unanswered: tuple[_Shape, str] | None = None
    for shape in _SHAPES:
        question = next((name for name in shape.asked if name in columns), None)
        if question is None:
            continue
        answer = next((name for name in shape.answered if name in columns), None)
        if answer is not None:
            return shape, question, answer
        unanswered = unanswered or (shape, question)
    preferred = next((name for name in PREFERRED if name in columns), None)
    if preferred is not None:
        raise RowRefused(
            "missing_field",
            f"There is '{preferred}' but no answer that is worse. Add one as 'rejected', or call the answer 'output'.",
        )
    if unanswered is not None:
        shape, question = unanswered
        raise RowRefused(
            "missing_field",
            f"There is '{question}' but no answer to it. Add the answer as '{shape.answered[0]}'.",
        )
    answer = next((name for shape in _SHAPES for name in shape.answered if name in columns), None)
    if answer is not None:
        raise RowRefused(
            "missing_field", f"There is '{answer}' but no question to it. Add the question as 'instruction'."
        )
    if "text" in columns:
        raise RowRefused(
            "text_only",
            "A row of plain 'text' has no question and answer. Upload the texts as documents (kind raw_doc) and "
            "generate examples from them, or split each into 'instruction' and 'output'.",
        )
    shown = ", ".join(f"'{cut_short(name)}'" for name in list(columns)[:_SHOWN_COLUMNS]) or "none"
    raise RowRefused(
        "unknown_shape",
        f"The columns are {shown}. Use instruction/input/output, messages, prompt/completion, prompt/response, "
        "question/answer, conversations, or prompt/chosen/rejected.",
    )


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _first_answer(value: Any) -> Any:
    """The first answer of SQuAD's forms: a list of texts or of {text}, or {text: [...]}."""
    if isinstance(value, dict):
        value = value.get("text", value.get("answer"))
    if isinstance(value, list):
        texts = [item.get("text", item.get("answer")) if isinstance(item, dict) else item for item in value]
        return next((text for text in texts if text), None)
    return value
