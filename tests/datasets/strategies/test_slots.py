"""The mix of what is asked: kinds of questions that the passage has something for, difficulties, classes."""

from collections import Counter

import pytest

from backend.datasets.strategies.base import ChunkText, TaskNotSupportedByModel, TaskType
from backend.datasets.strategies.choice import check_task, strategy_for
from backend.datasets.strategies.prompt_files import described
from backend.datasets.strategies.slots import QuestionType, slots, suited

RICH = (
    "A gasket is a ring of rubber. If the lid is open, the pump stops, because air would enter. Press the red, blue "
    "and green buttons for 3 seconds. The K9 is faster than the K8. Otherwise the seal is damaged."
)


def test_difficulties_keep_their_shares_over_chunks_and_rounds() -> None:
    for wanted in (1, 2, 3, 5):
        levels = Counter(
            slot.difficulty
            for position in range(200)
            for times in (1, 2)
            for slot in slots(ChunkText(text=RICH, position=position, round=times), "en", wanted)
        )
        total = levels.total()
        assert abs(levels["easy"] / total - 0.4) < 0.02
        assert abs(levels["medium"] / total - 0.4) < 0.02
        assert abs(levels["hard"] / total - 0.2) < 0.02


def test_all_kinds_come_round_and_a_round_differs_from_the_last() -> None:
    first = [slots(ChunkText(text=RICH, position=position), "en", 1)[0] for position in range(18)]
    assert {slot.question_type for slot in first} == {kind.value for kind in QuestionType}
    chunk = ChunkText(text=RICH, position=4)
    again = ChunkText(text=RICH, position=4, round=2)
    assert slots(chunk, "en", 3) == slots(chunk, "en", 3) != slots(again, "en", 3)


@pytest.mark.parametrize(
    ("text", "language", "absent"),
    [
        ("The carafe stands on the table of the kitchen.", "en", {"quantity", "reason", "condition", "procedure"}),
        ("La carafe reste sur la table de la cuisine.", "fr", {"quantity", "reason", "condition", "comparison"}),
        ("Karaf mutfak masasının üzerinde duruyor.", "tr", {"quantity"}),
    ],
)
def test_no_kind_that_the_passage_has_nothing_for(text: str, language: str, absent: set[str]) -> None:
    assert not absent & {kind.value for kind in suited(ChunkText(text=text), language)}


@pytest.mark.parametrize("task", [TaskType.INSTRUCTION, TaskType.SUMMARIZATION])
def test_every_passage_has_a_kind(task: TaskType) -> None:
    assert list(suited(ChunkText(text="Nothing of note here.", task_type=task), "en"))


def test_kinds_and_difficulties_are_described() -> None:
    assert set(described("question_types")) == {kind.value for kind in QuestionType}
    assert set(described("difficulties")) == {"easy", "medium", "hard"}


def test_classes_are_asked_for_as_often() -> None:
    labels = ("care", "warranty", "safety")
    asked = Counter(
        slot.label
        for position in range(30)
        for slot in slots(
            ChunkText(text=RICH, position=position, task_type=TaskType.CLASSIFICATION, labels=labels), "en", 2
        )
    )
    assert asked == {"care": 20, "warranty": 20, "safety": 20}


def test_a_task_is_checked_before_any_document_is_read() -> None:
    strong, tiny = strategy_for("llama3.1:70b"), strategy_for("SmolLM2-135M-Instruct")
    for task in ("qa", "chat", "instruction", "summarization"):
        check_task(task, (), strong)
        check_task(task, (), tiny)
    check_task("classification", ("a", "b"), strong)
    with pytest.raises(TaskNotSupportedByModel, match="two classes"):
        check_task("classification", ("a",), strong)
    with pytest.raises(TaskNotSupportedByModel, match="LLM_MODEL"):
        check_task("classification", ("a", "b"), tiny)
