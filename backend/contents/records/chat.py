"""Conversations in their common forms: OpenAI's messages, ShareGPT's conversations, and pairs of earlier turns."""

from collections.abc import Mapping
from typing import Any

from backend.contents.records.row import MAX_TURNS, RowRefused, Turn
from backend.contents.records.texts import cut_short, required_text, type_name

# The columns whose list of turns is the row; in this order where a row has several.
CHAT_COLUMNS = dict.fromkeys(("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns"))
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TOOL_ROLES = frozenset({"tool", "tools", "function", "function_call", "function_response", "observation", "ipython"})
_CALLS = ("tool_calls", "function_call", "tool_call_id")


def read_turns(column: str, items: list[Any]) -> tuple[str, list[Turn]]:
    """The shape (`messages` or `sharegpt`) and the turns, checked: a system prompt, then user and assistant in turn.

    Raises RowRefused: empty_field, too_long, wrong_type, missing_field, unsupported_content, bad_role_order.
    """
    if not items:
        raise RowRefused("empty_field", f"'{column}' is empty.")
    if len(items) > MAX_TURNS:
        raise RowRefused("too_long", f"'{column}' has {len(items):,} turns; {MAX_TURNS} are the most.")
    turns = [_turn(f"{column}[{index}]", item) for index, item in enumerate(items)]
    _check_order(column, turns)
    shape = "sharegpt" if "from" in items[0] and "role" not in items[0] else "messages"
    return shape, turns


def earlier_turns(columns: Mapping[str, Any]) -> list[Turn] | None:
    """The turns before a plain question: `system`, and `history` as pairs of texts or as messages."""
    turns: list[Turn] = []
    system, history = columns.get("system"), columns.get("history")
    if isinstance(system, str) and system.strip():
        turns.append({"role": "system", "content": required_text("'system'", system)})
    if history and not isinstance(history, list):
        raise RowRefused("wrong_type", f"'history' must be a list of turns, not {type_name(history)}.")
    if history:
        if len(history) > MAX_TURNS:
            raise RowRefused("too_long", f"'history' has {len(history):,} turns; {MAX_TURNS} are the most.")
        for index, item in enumerate(history):
            where = f"history[{index}]"
            if isinstance(item, list) and len(item) == 2:
                turns.append({"role": "user", "content": _content(where, item[0])})
                turns.append({"role": "assistant", "content": _content(where, item[1])})
            else:
                turns.append(_turn(where, item))
        _check_order("history", turns)
    return turns or None


def _turn(where: str, item: Any) -> Turn:
    if not isinstance(item, dict):
        raise RowRefused("wrong_type", f"{where} must be an object with 'role' and 'content', not {type_name(item)}.")
    role = item.get("role", item.get("from"))
    content = item["content"] if "content" in item else item.get("value", item.get("text"))
    if role is None:
        raise RowRefused("missing_field", f"{where} has no 'role'. Use system, user or assistant.")
    if not isinstance(role, str):
        raise RowRefused("wrong_type", f"{where}: 'role' must be text, not {type_name(role)}.")
    name = role.strip().lower()
    if name in _TOOL_ROLES or any(item.get(call) for call in _CALLS):
        raise RowRefused("unsupported_content", f"{where} calls or answers a tool, which cannot be trained on.")
    if name not in _ROLES:
        raise RowRefused("bad_role", f"{where} has the role '{cut_short(role)}'. Use system, user or assistant.")
    return {"role": _ROLES[name], "content": _content(where, content)}


def _content(where: str, value: Any) -> str:
    if isinstance(value, list):
        value = "\n".join(_part(where, part) for part in value)
    return required_text(where, value)


def _part(where: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type_name(part)
    if kind in {"text", "input_text", "output_text"} and isinstance(part.get("text"), str):
        return str(part["text"])
    raise RowRefused(
        "unsupported_content", f"{where} holds a part of type '{cut_short(str(kind))}'; only text is used."
    )


def _check_order(column: str, turns: list[Turn]) -> None:
    spoken = turns[1:] if turns[0]["role"] == "system" else turns
    for index, turn in enumerate(spoken):
        expected = "assistant" if index % 2 else "user"
        if turn["role"] != expected:
            place = index + len(turns) - len(spoken)
            raise RowRefused(
                "bad_role_order",
                f"{column}[{place}] is by {turn['role']} where {expected} has the word. After one system prompt, "
                "user and assistant take turns, the user first.",
            )
    if len(spoken) % 2 or not spoken:
        raise RowRefused("bad_role_order", f"'{column}' must end with an answer of the assistant.")
