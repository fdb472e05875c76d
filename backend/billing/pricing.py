"""What characters cost: pure functions from prices and means to a quote, with every line of its reasoning."""

from dataclasses import asdict, dataclass, fields
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal, localcontext
from typing import Any, Literal

from backend.kit.config import Settings

LineKind = Literal["free_quota", "balance", "complimentary", "complimentary_used_up", "purchase", "owed", "minimum"]
# bigint * price has at most 19 digits before the point; the rest is room for the fractions of a price.
_DIGITS = 60


@dataclass(frozen=True, slots=True)
class Prices:
    """The settings that decide a price. `price_per_character` is in units of the currency, the minimum in cents."""

    price_per_character: Decimal
    free_characters: int
    checkout_minimum_cents: int
    complimentary_per_month: int
    currency: str

    @classmethod
    def of(cls, settings: Settings) -> "Prices":
        return cls(
            price_per_character=settings.price_per_character,
            free_characters=settings.free_characters,
            checkout_minimum_cents=settings.checkout_minimum_cents,
            complimentary_per_month=settings.complimentary_characters_per_month,
            currency=settings.currency,
        )


@dataclass(frozen=True, slots=True)
class Means:
    """What a user has, in characters: on the balance, of a free quota not claimed yet, and left of this month's cap.

    `owed` is what the next purchase pays first.
    """

    available: int = 0
    free_unclaimed: int = 0
    complimentary_left: int = 0
    owed: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """One step of the reasoning. `complimentary_used_up` says what was left of the cap, and adds to no sum."""

    kind: LineKind
    characters: int
    amount_cents: int = 0


@dataclass(frozen=True, slots=True)
class Quote:
    """What `characters` of work cost: from_free + from_balance + complimentary + to_pay, of which the last is bought.

    `characters_bought` is at least `to_pay` and `owed`; what is beyond them stays on the balance. The amounts of the
    lines add up to `amount_cents`.
    """

    characters: int
    from_free: int
    from_balance: int
    complimentary: int
    to_pay: int
    # Bought besides, because a payment pays what is owed first: without it, the work would miss that much.
    owed: int
    amount_cents: int
    characters_bought: int
    minimum_applied: bool
    # What was left of this month's cap; None where the cap was no question.
    complimentary_left: int | None
    price_per_character: Decimal
    currency: str

    @property
    def is_free(self) -> bool:
        return self.to_pay == 0

    @property
    def lines(self) -> list[Line]:
        """The reasoning, in the order of the policy; steps that gave nothing are left out."""
        found = [
            Line("free_quota", self.from_free),
            Line("balance", self.from_balance),
            Line("complimentary", self.complimentary),
        ]
        lines = [line for line in found if line.characters]
        if not self.to_pay:
            return lines
        if self.complimentary_left is not None:
            lines.append(Line("complimentary_used_up", self.complimentary_left))
        cost = cents(self.price_per_character, self.to_pay)
        lines.append(Line("purchase", self.to_pay, cost))
        whole, whole_cost = self.to_pay + self.owed, cents(self.price_per_character, self.to_pay + self.owed)
        if self.owed:
            lines.append(Line("owed", self.owed, whole_cost - cost))
        if self.amount_cents > whole_cost or self.characters_bought > whole:
            lines.append(Line("minimum", self.characters_bought - whole, self.amount_cents - whole_cost))
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For a JSONB column and the context of an error: integers and strings."""
        return {
            **asdict(self),
            "price_per_character": f"{self.price_per_character:f}",
            "is_free": self.is_free,
            "lines": [asdict(line) for line in self.lines],
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Quote":
        """The quote that `as_dict` was taken of."""
        values = {field.name: stored[field.name] for field in fields(cls)}
        return cls(**{**values, "price_per_character": Decimal(values["price_per_character"])})


def cents(price_per_character: Decimal, characters: int) -> int:
    """The price of that many characters in whole cents, half a cent upwards."""
    with localcontext() as exact:
        exact.prec = _DIGITS
        return int((price_per_character * characters * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def quote(prices: Prices, means: Means, characters: int) -> Quote:
    """What work of `characters` takes from where.

    First the free quota if it is not claimed yet, then the balance. The rest is complimentary when the whole work is
    not larger than the free quota, or the rest would cost less than the smallest checkout, and this month's cap has
    room for it; otherwise it is bought.
    """
    assert characters >= 0, "work has no negative size"
    from_free = min(characters, means.free_unclaimed)
    from_balance = min(characters - from_free, max(means.available, 0))
    rest = characters - from_free - from_balance
    cost = cents(prices.price_per_character, rest)
    may_be_given = characters <= prices.free_characters or cost < prices.checkout_minimum_cents
    complimentary = rest if may_be_given and rest <= means.complimentary_left else 0
    return _quote(
        prices,
        characters=characters,
        from_free=from_free,
        from_balance=from_balance,
        complimentary=complimentary,
        to_pay=rest - complimentary,
        owed=max(means.owed, 0) if rest > complimentary else 0,
        complimentary_left=max(means.complimentary_left, 0) if may_be_given else None,
    )


def quote_purchase(prices: Prices, characters: int) -> Quote:
    """What `characters` cost that are bought for the balance, without any work."""
    assert characters > 0, "a purchase is of something"
    return _quote(prices, to_pay=characters)


def _quote(
    prices: Prices,
    *,
    to_pay: int,
    owed: int = 0,
    characters: int = 0,
    from_free: int = 0,
    from_balance: int = 0,
    complimentary: int = 0,
    complimentary_left: int | None = None,
) -> Quote:
    price, minimum = prices.price_per_character, prices.checkout_minimum_cents
    amount = bought = 0
    wanted = to_pay + owed
    cost = cents(price, wanted)
    if to_pay:
        amount = max(cost, minimum)
        # The smallest checkout buys what its money is worth; a larger one exactly what is missing.
        bought = max(wanted, _worth(price, minimum)) if cost <= minimum else wanted
    return Quote(
        characters=characters,
        from_free=from_free,
        from_balance=from_balance,
        complimentary=complimentary,
        complimentary_left=complimentary_left,
        to_pay=to_pay,
        owed=owed,
        amount_cents=amount,
        characters_bought=bought,
        minimum_applied=amount > cost,
        price_per_character=price,
        currency=prices.currency,
    )


def _worth(price_per_character: Decimal, amount_cents: int) -> int:
    """How many whole characters an amount buys."""
    with localcontext() as exact:
        exact.prec = _DIGITS
        return int((Decimal(amount_cents) / (price_per_character * 100)).to_integral_value(rounding=ROUND_FLOOR))
