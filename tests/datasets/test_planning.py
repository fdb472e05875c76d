"""Shares of examples per chunk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.datasets.planning import capacity, is_enough, spread, statements, still_to_ask


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=50), st.integers(0, 2000))
def test_the_shares_add_up_to_the_target(weights: list[int], target: int) -> None:
    shares = spread(weights, target)
    assert sum(shares) == target
    assert len(shares) == len(weights)
    assert min(shares) >= (1 if target >= len(weights) else 0)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 50)), min_size=1, max_size=50), st.integers(0, 3000))
def test_no_share_is_above_its_cap_and_nothing_is_left_that_fits(chunks: list[tuple[int, int]], target: int) -> None:
    weights, most = [weight for weight, _ in chunks], [cap for _, cap in chunks]
    shares = spread(weights, target, most)
    assert all(share <= cap for share, cap in zip(shares, most, strict=True))
    assert sum(shares) == min(target, sum(most))


def test_fuller_chunks_get_more() -> None:
    assert spread([100, 300, 100], 13) == [3, 7, 3]


def test_what_a_chunk_cannot_give_goes_to_the_others() -> None:
    shares = spread([900, 50, 50], 30, [10, 50, 50])
    assert shares[0] == 10
    assert abs(shares[1] - shares[2]) <= 2


def test_few_examples_lie_evenly_over_many_chunks() -> None:
    assert spread([1] * 10, 2) == [0, 0, 1, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("target", [0, 5])
def test_no_chunks_give_no_shares(target: int) -> None:
    assert spread([], target) == []


def test_statements_are_distinct_and_say_something() -> None:
    text = "# Lamps\n\nThe lamp weighs four hundred grams. THE LAMP weighs four hundred grams. Page 3.\n\n1 | 2 | 3"
    assert len(statements(text)) == 1
    assert len(statements("水瓶座的灯重四百克。它的灯罩是蓝色玻璃做的！")) == 2
    assert len(statements("- Turn the valve to the left first\n- Wait until the pressure has dropped")) == 2


def test_a_table_of_figures_asks_for_little_whatever_its_length() -> None:
    assert capacity(len(statements("1 | 2 | 3\n" * 500))) == capacity(0) == 2
    assert capacity(10) == 20
    assert capacity(1000) == 50
    assert capacity(1000, most=5) == 5


def test_what_is_missing_is_asked_for_by_the_yield_so_far() -> None:
    assert still_to_ask(100, 100, 100) == still_to_ask(98, 100, 100) == 0
    assert still_to_ask(50, 100, 100) == 110
    assert still_to_ask(90, 100, 90) == 11
    # However bad the yield, a round stays within bounds.
    assert still_to_ask(0, 100, 500) == 550
    assert not is_enough(9, 10)
    assert is_enough(10, 10)
