"""An auditor's model of one account: what each operation must do, written a second time and without a database."""

import copy
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sqlalchemy import select, text

from backend.billing import ledger
from backend.billing.errors import InsufficientCharacters
from backend.billing.models import Hold
from backend.kit.db import Database

Verb = Literal["post", "credit", "take_back", "record_usage", "hold", "extend", "settle", "release"]
Result = Literal["done", "again", "short"]


class Operation(NamedTuple):
    """`characters` is signed for `post` alone. `kind` matters for entries, `reference` names entry or hold."""

    verb: Verb
    reference: str
    characters: int = 0
    kind: str = ""


@dataclass
class Books:
    """What an account and its entries and holds must be."""

    entries: dict[tuple[str, str], int] = field(default_factory=dict)
    # Reference to characters and, once it has ended, what was settled (-1: released).
    holds: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    @property
    def posted(self) -> int:
        return sum(self.entries.values())

    @property
    def held(self) -> int:
        return sum(size for size, ended in self.holds.values() if ended is None)

    def total(self, *kinds: str) -> int:
        return sum(characters for (kind, _), characters in self.entries.items() if kind in kinds)

    def as_balance(self) -> ledger.Balance:
        return ledger.Balance(
            posted=self.posted,
            held=self.held,
            owed=self.total("advance", "repayment"),
            granted=self.total("grant"),
            purchased=self.total("purchase", "refund", "chargeback", "reinstatement"),
            complimentary=self.total("complimentary"),
            used=-self.total("usage"),
        )

    def copy(self) -> "Books":
        return copy.deepcopy(self)

    def apply(self, operation: Operation) -> Result:
        verb, reference, characters, kind = operation
        if verb in ("hold", "extend", "settle", "release"):
            return self._apply_to_hold(verb, reference, characters)
        key = ("complimentary" if verb == "record_usage" else kind, reference)
        if key in self.entries:
            return "again"
        if verb == "post":
            if self.posted + characters < self.held:
                return "short"
            self.entries[key] = characters
        elif verb == "credit":
            self.entries[key] = characters
            if repaid := min(self.total("advance", "repayment"), characters):
                self.entries["repayment", f"{kind}:{reference}"] = -repaid
        elif verb == "take_back":
            if (missing := characters - (self.posted - self.held)) > 0:
                self.entries["advance", f"{kind}:{reference}"] = missing
            self.entries[key] = -characters
        else:
            self.entries[key] = characters
            self.entries["usage", reference] = -characters
        return "done"

    def _apply_to_hold(self, verb: str, reference: str, characters: int) -> Result:
        size, ended = self.holds.get(reference, (0, None))
        if verb == "hold":
            if size:
                return "again"
            if characters > self.posted - self.held:
                return "short"
            self.holds[reference] = (characters, None)
            return "done"
        if ended is not None or (verb == "extend" and characters <= size):
            return "again"
        if verb == "extend":
            if characters - size > self.posted - self.held:
                return "short"
            self.holds[reference] = (characters, None)
        else:
            self.holds[reference] = (size, characters if verb == "settle" else -1)
            if verb == "settle" and characters:
                self.entries["usage", f"hold {reference}"] = -characters
        return "done"


async def execute(db: Database, user: int, operation: Operation) -> Result:
    """The same operation by the service, in a transaction of its own."""
    verb, reference, characters, kind = operation
    try:
        async with db.transaction() as session:
            if verb in ("post", "credit", "take_back"):
                book = {"post": ledger.post, "credit": ledger.credit, "take_back": ledger.take_back}[verb]
                done = await book(
                    session, user_id=user, kind=kind, characters=characters, reference=reference, params={}
                )
                return "done" if done else "again"
            if verb == "record_usage":
                done = await ledger.record_usage(
                    session, user_id=user, characters=characters, reference=reference, params={}
                )
                return "done" if done else "again"
            before = await session.scalar(select(Hold.id).where(Hold.reference == reference))
            if verb == "hold":
                await ledger.hold(
                    session, user_id=user, characters=characters, reference=reference, purpose="generation"
                )
                return "done" if before is None else "again"
            assert before is not None, "only what was held is ended"
            if verb == "extend":
                size = await session.scalar(select(Hold.characters).where(Hold.id == before))
                now = (await ledger.extend(session, before, characters)).characters
                return "done" if now != size else "again"
            if verb == "settle":
                return "done" if await ledger.settle(session, before, characters) else "again"
            return "done" if await ledger.release(session, before) else "again"
    except InsufficientCharacters:
        return "short"


async def read(db: Database, user: int) -> ledger.Balance:
    async with db.transaction() as session:
        return await ledger.balance(session, user)


async def check_history(db: Database, user: int, books: Books) -> None:
    """Every entry is one of the model's, their balances chain, and the last of them is the account's."""
    async with db.transaction() as session:
        rows = (
            await session.execute(
                text(
                    "SELECT e.kind, coalesce('hold ' || h.reference, e.reference) AS reference, e.characters,"
                    " e.balance_after FROM ledger_entries e"
                    " LEFT JOIN holds h ON e.kind = 'usage' AND e.reference = 'hold:' || h.public_id"
                    " WHERE e.user_id = :user ORDER BY e.id"
                ),
                {"user": user},
            )
        ).all()
        holds = (await session.scalars(select(Hold).where(Hold.user_id == user))).all()
    assert {(row.kind, row.reference): row.characters for row in rows} == books.entries
    assert len(rows) == len(books.entries)
    after = 0
    for row in rows:
        after += row.characters
        assert row.balance_after == after
    ends = {hold.reference: {"held": None, "released": -1, "settled": hold.settled}[hold.state] for hold in holds}
    assert {hold.reference: (hold.characters, ends[hold.reference]) for hold in holds} == books.holds
