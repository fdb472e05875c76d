"""Shares of examples per chunk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.datasets.planning import spread


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=200), st.integers(0, 2000))
def test_the_shares_add_up_to_the_target(weights: list[int], target: int) -> None:
    shares = spread(weights, target)
    assert sum(shares) == target
    assert len(shares) == len(weights)
    assert min(shares) >= (1 if target >= len(weights) else 0)


def test_longer_chunks_get_more() -> None:
    assert spread([100, 300, 100], 13) == [3, 7, 3]


def test_few_examples_lie_evenly_over_many_chunks() -> None:
    assert spread([1] * 10, 2) == [0, 0, 1, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("target", [0, 5])
def test_no_chunks_give_no_shares(target: int) -> None:
    assert spread([], target) == []
