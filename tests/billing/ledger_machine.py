"""Random histories of one account, by Hypothesis: every operation, repeated ones, and two at the same time."""

import asyncio
import secrets
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from backend.kit.db import Database
from tests.billing.books import Books, Operation, check_history, execute, read

_SIZES = st.integers(1, 40) | st.integers(1, 5_000) | st.just(10**12)
# Few enough that most are met again.
_NAMES = st.integers(0, 9)
_HOLDS = st.integers(0, 49)
# Just what is available, or one more: where a wrong comparison shows.
_EDGE = st.sampled_from([None, None, 0, 1])
_GIVEN = st.sampled_from(["purchase", "complimentary", "reinstatement"])


class LedgerMachine(RuleBasedStateMachine):
    """`run` sets where it works. Each history has an account of its own; the rules are the auditor's operations."""

    runner: ClassVar[asyncio.Runner]
    db: ClassVar[Database]
    histories: ClassVar[int] = 0
    operations: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.user = secrets.randbits(60)
        self.books = Books()

    def name(self, number: int) -> str:
        return f"{self.user}:{number}"

    def size(self, characters: int, edge: int | None) -> int:
        return characters if edge is None else max(self.books.posted - self.books.held + edge, 1)

    @rule()
    def claim_the_free_quota(self) -> None:
        self.do(Operation("post", f"free:{self.user}", 10_000, "grant"))

    @rule(kind=_GIVEN, number=_NAMES, characters=_SIZES)
    def receive(self, kind: str, number: int, characters: int) -> None:
        self.do(Operation("credit", self.name(number), characters, kind))

    @rule(number=_NAMES, characters=_SIZES, sign=st.sampled_from([1, -1]))
    def adjust(self, number: int, characters: int, sign: int) -> None:
        self.do(Operation("post", self.name(number), sign * characters, "adjustment"))

    @rule(kind=st.sampled_from(["refund", "chargeback"]), number=_NAMES, characters=_SIZES, edge=_EDGE)
    def take_back(self, kind: str, number: int, characters: int, edge: int | None) -> None:
        self.do(Operation("take_back", self.name(number), self.size(characters, edge), kind))

    @rule(number=_NAMES, characters=_SIZES)
    def use_unbilled(self, number: int, characters: int) -> None:
        self.do(Operation("record_usage", self.name(number + 100), characters))

    @rule(number=_HOLDS, characters=_SIZES, edge=_EDGE)
    def hold(self, number: int, characters: int, edge: int | None) -> None:
        self.do(Operation("hold", self.name(number), self.size(characters, edge)))

    @precondition(lambda self: self.books.holds)
    @rule(data=st.data())
    def end_or_extend(self, data: st.DataObject) -> None:
        self.do(self.of_a_hold(data))

    @precondition(lambda self: self.books.holds)
    @rule(data=st.data(), number=_HOLDS, characters=_SIZES)
    def two_at_once(self, data: st.DataObject, number: int, characters: int) -> None:
        """What both do is what one of their two orders does."""
        other = data.draw(
            st.sampled_from(
                [
                    Operation("hold", self.name(number), characters),
                    Operation("take_back", self.name(number), characters, "refund"),
                    Operation("credit", self.name(number), characters, "purchase"),
                    Operation("post", self.name(number), -characters, "adjustment"),
                ]
            )
        )
        pair = (self.of_a_hold(data), data.draw(st.sampled_from([other, self.of_a_hold(data)])))
        self.do_both(*pair)

    def of_a_hold(self, data: st.DataObject) -> Operation:
        live = sorted(reference for reference, (_, ended) in self.books.holds.items() if ended is None)
        every = sorted(self.books.holds)
        reference = data.draw(st.sampled_from(data.draw(st.sampled_from([live or every, live or every, every]))))
        size = self.books.holds[reference][0]
        verb = data.draw(st.sampled_from(["settle", "release", "extend", "extend"]))
        if verb == "settle":
            return Operation("settle", reference, size * data.draw(st.integers(0, 4)) // 4)
        if verb == "extend":
            more = data.draw(st.integers(-1, 3_000))
            return Operation("extend", reference, size + self.size(more, data.draw(_EDGE)))
        return Operation("release", reference)

    def do(self, operation: Operation) -> None:
        expected = self.books.apply(operation)
        found = self.runner.run(execute(self.db, self.user, operation))
        assert found == expected, operation
        self.check()

    def do_both(self, first: Operation, second: Operation) -> None:
        async def both() -> tuple[Any, Any]:
            one, two = await asyncio.gather(execute(self.db, self.user, first), execute(self.db, self.user, second))
            return one, two

        results = self.runner.run(both())
        balance = self.runner.run(read(self.db, self.user))
        for order in ((first, second), (second, first)):
            books = self.books.copy()
            outcome = {id(operation): books.apply(operation) for operation in order}
            if (outcome[id(first)], outcome[id(second)]) == results and books.as_balance() == balance:
                self.books = books
                break
        else:
            raise AssertionError(f"{first} and {second} at once: {results}, {balance}")
        type(self).operations += 1
        self.check()

    def check(self) -> None:
        type(self).operations += 1
        found = self.runner.run(read(self.db, self.user))
        assert found == self.books.as_balance()
        assert 0 <= found.held <= found.posted
        assert found.owed >= 0

    def teardown(self) -> None:
        type(self).histories += 1
        self.runner.run(check_history(self.db, self.user, self.books))


def run(url: str, *, first_seed: int, seeds: int, histories: int, steps: int) -> tuple[int, int]:
    """Runs histories of `steps` rules each, `histories` for each seed; returns how many histories and operations."""
    import backend.models  # noqa: F401

    with asyncio.Runner() as runner:
        LedgerMachine.runner, LedgerMachine.db = runner, Database(url, pool_size=2)
        LedgerMachine.histories = LedgerMachine.operations = 0
        try:
            for number in range(first_seed, first_seed + seeds):
                machine = seed(number)(type("SeededLedgerMachine", (LedgerMachine,), {}))
                options = settings(
                    max_examples=histories,
                    stateful_step_count=steps,
                    deadline=None,
                    database=None,
                    # A seed finds its history again; to shrink one takes minutes.
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                run_state_machine_as_test(machine, settings=options, _min_steps=steps)
                LedgerMachine.histories += machine.histories
                LedgerMachine.operations += machine.operations
        finally:
            runner.run(LedgerMachine.db.close())
        return LedgerMachine.histories, LedgerMachine.operations
