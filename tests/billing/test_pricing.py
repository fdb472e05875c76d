"""What characters cost: a table of cases, and what holds for all of them."""

from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from backend.billing import pricing
from backend.billing.pricing import Means, Prices, Quote
from backend.kit.config import Settings

PRICES = Prices(
    price_per_character=Decimal("0.000365"),
    free_characters=10_000,
    checkout_minimum_cents=60,
    complimentary_per_month=20_000,
    currency="eur",
)
NEW = Means(free_unclaimed=10_000, complimentary_left=20_000)
USED_UP = Means()
CLAIMED = Means(complimentary_left=20_000)
HUGE = 10**12

# Means and characters, then: from the free quota, the balance, complimentary, to pay, cents, characters bought.
CASES: list[Any] = [
    pytest.param(NEW, 0, (0, 0, 0, 0, 0, 0), id="nothing costs nothing"),
    pytest.param(USED_UP, 0, (0, 0, 0, 0, 0, 0), id="nothing costs nothing, without means too"),
    pytest.param(NEW, 1, (1, 0, 0, 0, 0, 0), id="one, of the free quota"),
    pytest.param(USED_UP, 1, (0, 0, 0, 1, 60, 1643), id="one, without means: the smallest checkout"),
    pytest.param(NEW, 9_999, (9_999, 0, 0, 0, 0, 0), id="below the free quota"),
    pytest.param(NEW, 10_000, (10_000, 0, 0, 0, 0, 0), id="at the free quota"),
    pytest.param(NEW, 10_001, (10_000, 0, 1, 0, 0, 0), id="above it, by less than the smallest checkout"),
    pytest.param(replace(NEW, complimentary_left=0), 10_001, (10_000, 0, 0, 1, 60, 1643), id="the same past the cap"),
    pytest.param(NEW, 15_000, (10_000, 0, 0, 5_000, 183, 5_000), id="the contract's 15,000: half a cent upwards"),
    pytest.param(NEW, 50_000, (10_000, 0, 0, 40_000, 1_460, 40_000), id="above it by much"),
    pytest.param(CLAIMED, 10_000, (0, 0, 10_000, 0, 0, 0), id="a repeat run as large as the quota"),
    pytest.param(CLAIMED, 10_001, (0, 0, 0, 10_001, 365, 10_001), id="a repeat run larger than the quota"),
    pytest.param(Means(complimentary_left=10_000), 10_000, (0, 0, 10_000, 0, 0, 0), id="just within the cap"),
    pytest.param(Means(complimentary_left=9_999), 10_000, (0, 0, 0, 10_000, 365, 10_000), id="just past the cap"),
    pytest.param(Means(9_000, 0, 20_000), 10_500, (0, 9_000, 1_500, 0, 0, 0), id="a rest below the minimum"),
    pytest.param(Means(9_000, 0, 20_000), 10_630, (0, 9_000, 1_630, 0, 0, 0), id="a rest of 59 cents"),
    pytest.param(Means(9_000, 0, 20_000), 10_631, (0, 9_000, 0, 1_631, 60, 1_643), id="a rest of 60 cents"),
    pytest.param(Means(9_000, 0, 0), 10_630, (0, 9_000, 0, 1_630, 60, 1_643), id="59 cents, past the cap"),
    pytest.param(Means(9_000, 0, 0), 10_644, (0, 9_000, 0, 1_644, 60, 1_644), id="what 60 cents buy, and no more"),
    pytest.param(Means(9_000, 0, 0), 10_658, (0, 9_000, 0, 1_658, 61, 1_658), id="61 cents: no minimum"),
    pytest.param(Means(80_000, 0, 0), 80_000, (0, 80_000, 0, 0, 0, 0), id="a purchased balance covers all"),
    pytest.param(Means(80_000, 0, 0), 79_999, (0, 79_999, 0, 0, 0, 0), id="and keeps the rest"),
    pytest.param(Means(5_000, 10_000, 0), 12_000, (10_000, 2_000, 0, 0, 0, 0), id="the free quota goes first"),
    pytest.param(Means(5_000, 10_000, 0), 100_000, (10_000, 5_000, 0, 85_000, 3_103, 85_000), id="then the balance"),
    pytest.param(NEW, HUGE, (10_000, 0, 0, HUGE - 10_000, 36_499_999_635, HUGE - 10_000), id="very large"),
    pytest.param(Means(HUGE, 0, 0), HUGE, (0, HUGE, 0, 0, 0, 0), id="very large, and there"),
]


@pytest.mark.parametrize(("means", "characters", "expected"), CASES)
def test_the_policy(means: Means, characters: int, expected: tuple[int, ...]) -> None:
    found = pricing.quote(PRICES, means, characters)
    parts = (found.from_free, found.from_balance, found.complimentary, found.to_pay)
    assert (*parts, found.amount_cents, found.characters_bought) == expected
    assert found.is_free == (expected[3] == 0)


@pytest.mark.parametrize(("characters", "cents", "bought"), [(1, 60, 1643), (1643, 60, 1643), (10_000, 365, 10_000)])
def test_a_purchase_alone(characters: int, cents: int, bought: int) -> None:
    found = pricing.quote_purchase(PRICES, characters)
    assert (found.characters, found.to_pay) == (0, characters)
    assert (found.amount_cents, found.characters_bought) == (cents, bought)


def test_the_reasoning_is_told_line_by_line() -> None:
    lines = pricing.quote(PRICES, Means(500, 10_000, 200), 11_000).lines
    assert [(line.kind, line.characters, line.amount_cents) for line in lines] == [
        ("free_quota", 10_000, 0),
        ("balance", 500, 0),
        ("complimentary_used_up", 200, 0),
        ("purchase", 500, 18),
        ("minimum", 1_143, 42),
    ]


def test_what_is_owed_is_bought_with_what_is_missing() -> None:
    found = pricing.quote(PRICES, Means(500, 0, 0, owed=4_000), 1_500)
    assert (found.from_balance, found.to_pay, found.owed) == (500, 1_000, 4_000)
    assert (found.characters_bought, found.amount_cents) == (5_000, 183)
    assert [(line.kind, line.characters, line.amount_cents) for line in found.lines[-2:]] == [
        ("purchase", 1_000, 37),
        ("owed", 4_000, 146),
    ]
    # Nothing is bought for it where nothing is missing, or is given.
    assert pricing.quote(PRICES, Means(500, 0, 0, owed=4_000), 500).owed == 0
    assert pricing.quote(PRICES, Means(0, 0, 20_000, owed=4_000), 1_500).owed == 0
    small = pricing.quote(PRICES, Means(owed=100), 200)
    assert (small.amount_cents, small.characters_bought, small.minimum_applied) == (60, 1_643, True)
    assert sum(line.characters for line in small.lines if line.kind != "complimentary_used_up") == 1_643


_COUNTS = st.integers(0, 60_000) | st.integers(0, HUGE)


@given(
    means=st.builds(Means, _COUNTS, st.sampled_from([0, 10_000]), st.integers(0, 20_000), st.just(0) | _COUNTS),
    characters=_COUNTS,
    price=st.decimals("0.000000000001", "10", places=12),
    minimum=st.integers(1, 10_000),
)
def test_what_every_quote_adds_up_to(means: Means, characters: int, price: Decimal, minimum: int) -> None:
    prices = replace(PRICES, price_per_character=price, checkout_minimum_cents=minimum)
    found = pricing.quote(prices, means, characters)
    assert found.from_free + found.from_balance + found.complimentary + found.to_pay == characters
    assert found.from_free <= means.free_unclaimed
    assert found.from_balance <= means.available
    assert found.complimentary <= means.complimentary_left
    assert sum(line.amount_cents for line in found.lines) == found.amount_cents
    assert found.is_free or found.amount_cents >= minimum
    assert found.characters_bought >= found.to_pay + found.owed
    # Nobody pays more than a character's price too much, beyond the smallest checkout and the rounding of a cent.
    assert found.minimum_applied or abs(found.amount_cents - price * 100 * (found.to_pay + found.owed)) <= Decimal(
        "0.5"
    )
    assert Quote.from_dict(found.as_dict()) == found


@given(st.lists(st.integers(1, 3_000), min_size=2, max_size=60))
def test_splitting_a_job_gains_no_more_than_the_cap(parts: list[int]) -> None:
    """The same work in many small jobs: what is not paid is the free quota and at most the month's cap."""
    left, balance, unclaimed, paid_for = 20_000, 0, 10_000, 0
    for part in parts:
        found = pricing.quote(PRICES, Means(balance, unclaimed, left), part)
        left -= found.complimentary
        balance += (unclaimed if found.from_free else 0) + found.characters_bought + found.complimentary - part
        unclaimed = 0
        paid_for += found.characters_bought
    assert balance >= 0
    assert paid_for >= sum(parts) - 10_000 - 20_000


@pytest.mark.parametrize(("currency", "is_taken"), [("eur", True), ("usd", True), ("jpy", False), ("kwd", False)])
def test_a_currency_without_cents_is_refused(monkeypatch: pytest.MonkeyPatch, currency: str, is_taken: bool) -> None:
    """100 yen would be charged where 1 is meant."""
    monkeypatch.setenv("CURRENCY", currency)
    with nullcontext() if is_taken else pytest.raises(ValidationError, match="has no cents"):
        assert Settings(_env_file=None).currency == currency
