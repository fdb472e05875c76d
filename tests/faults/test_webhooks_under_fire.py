"""API and worker are killed while Stripe delivers: no event is lost, none counts twice, every balance is exact."""

import secrets
from pathlib import Path

import pytest

from backend.embedded import processes
from tests.conftest import clone_database
from tests.faults.webhook_storm import webhook_storm

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(not processes.LINUX, reason="finds a worker's processes in /proc"),
]


async def test_no_event_is_lost_and_none_counts_twice(tmp_path: Path) -> None:
    database = await clone_database(f"faults_{secrets.token_hex(4)}")
    outcome = await webhook_storm(database, tmp_path / "plant", deliveries=400, kills=6)
    print(outcome)
    assert (outcome.lost, outcome.doubled) == ([], [])
    assert (outcome.unlike, outcome.unhandled, outcome.differences) == ([], [], 0)
    assert outcome.kills >= 4, "a fast machine is through before the last kills"
    assert outcome.refused, "nothing was hit: the test proves nothing"
