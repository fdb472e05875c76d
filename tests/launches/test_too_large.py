"""A launch whose training would fit on no worker is refused before anything is held, ordered or made."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import delete, func, select

from backend.billing.models import Hold, Order
from backend.datasets.models import Dataset
from backend.training import hardware
from backend.training.models import FineTuning, HardwareReport
from tests.launches.conftest import Yard


@pytest.fixture
async def small_worker(yard: Yard) -> AsyncIterator[None]:
    """The only worker has less memory than any training takes."""
    report = {"cuda_available": False, "gpus": [], "bf16_supported": True, "memory_usable_gb": 0.5}
    async with yard.db.transaction() as session:
        await hardware.save(session, "small", report)
    yield
    async with yard.db.transaction() as session:
        await session.execute(delete(HardwareReport))


@pytest.mark.usefixtures("small_worker")
@pytest.mark.parametrize("characters", [4000, 50_000])
async def test_nothing_is_held_for_a_run_that_fits_nowhere(yard: Yard, characters: int) -> None:
    """Neither of a free launch nor of one that would have to be paid."""
    content = await yard.add_content(characters)
    before = await yard.entries()
    answer = await yard.post(content)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DOES_NOT_FIT"), answer.text
    onboarding = {
        "character_count": characters,
        "dataset_name": "Lamps",
        "provider": "local",
        "model": yard.base,
        "method": "lora",
        "project_id": yard.project,
        "content_ids": [content],
    }
    answer = await yard.tenant.client.post("/api/checkout/create-onboarding-session", json=onboarding)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DOES_NOT_FIT"), answer.text
    assert await yard.entries() == before
    async with yard.db.transaction() as session:
        for model, owner in (
            (Hold, Hold.user_id == yard.user),
            (Order, Order.user_id == yard.user),
            (Dataset, Dataset.project_id == yard.project),
            (FineTuning, FineTuning.project_id == yard.project),
        ):
            assert await session.scalar(select(func.count()).select_from(model).where(owner)) == 0, model
