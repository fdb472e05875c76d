"""How much of a document the demo uses."""

import pytest

from backend.demo.budget import FEWEST_EXAMPLES, MOST_EXAMPLES, Budget
from backend.training.hyperparams import complete


def test_the_number_of_examples_follows_the_document_between_its_limits() -> None:
    budget = Budget()
    targets = [budget.examples_target(chunks) for chunks in (0, 1, 5, 22, 1000)]
    assert targets[0] == FEWEST_EXAMPLES
    assert targets == sorted(targets)
    assert targets[-2:] == [MOST_EXAMPLES, MOST_EXAMPLES]


def test_the_work_of_training_is_bounded_whatever_the_document() -> None:
    budget = Budget()
    for examples in range(FEWEST_EXAMPLES, MOST_EXAMPLES + 1):
        assert examples * budget.hyperparams(examples)["num_epochs"] <= 500


@pytest.mark.parametrize("examples", [8, 30, 80])
def test_the_service_accepts_the_hyperparameters(examples: int) -> None:
    given = Budget(epochs=2).hyperparams(examples)
    values = complete(given)
    assert {name: values[name] for name in given} == given
    assert values["num_epochs"] == 2
