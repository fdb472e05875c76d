"""The contract's POST /checkout/create-onboarding-session: free and paid, and which contents it is about."""

from typing import Any

import httpx
import pytest

from tests.contracts.shapes import matches
from tests.launches.conftest import Yard, make_yard, prices, stripe, stripe_server, yard
from tests.launches.stripe_server import StripeServer

__all__ = ["make_yard", "prices", "stripe", "stripe_server", "yard"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


async def onboard(yard: Yard, *pending: int, **fields: Any) -> httpx.Response:
    body = {
        "character_count": 15_000,
        "pending_transcriptions": [{"id": number} for number in pending],
        "dataset_name": "Mon Dataset Onboarding",
        "system_content": "Tu es un assistant utile.",
        "provider": "local",
        "model": yard.base,
        "method": "lora",
        **fields,
    }
    return await yard.tenant.client.post("/api/checkout/create-onboarding-session", json=body)


async def test_free(yard: Yard) -> None:
    video, page = await yard.add_content(0, status="processing"), await yard.add_content(0, status="pending")
    assert (await yard.tenant.client.get("/api/users/me")).json()["has_completed_onboarding"] is False
    answer = await onboard(yard, video, page)
    assert answer.status_code == 201, answer.text
    matches(
        answer.json(),
        {
            "status": "success",
            "free_processing": True,
            "redirect_url": "https://app.example.com/dashboard?onboarding_completed=true",
            "order_id": int,
            "dataset_id": int,
            "fine_tuning_id": int,
        },
    )
    assert (await yard.tenant.client.get("/api/users/me")).json()["has_completed_onboarding"] is True
    dataset = (await yard.tenant.client.get(f"/api/datasets/{answer.json()['dataset_id']}")).json()
    assert (dataset["name"], dataset["status"]) == ("Mon Dataset Onboarding", "processing")
    order = answer.json()["order_id"]
    for content in (video, page):
        await yard.advance(order)
        assert await yard.jobs() == []
        await yard.read(content, 4000)
    await yard.advance(order)
    assert await yard.live_holds() == [8000]
    assert (await yard.make_dataset())["state"] == "success"


async def test_to_be_paid_by_the_count_of_the_server(yard: Yard, stripe: StripeServer) -> None:
    await yard.add_content(1_000_000)
    answer = await onboard(yard, character_count=1)
    assert answer.status_code == 201, answer.text
    [session] = stripe.sessions.values()
    matches(answer.json(), {"checkout_url": session["url"], "status": "pending_payment", "free_processing": False})
    assert session["form"]["line_items[0][price_data][unit_amount]"] == "36135"
    assert session["form"]["metadata[payment_type]"] == "onboarding_characters"
    assert (await yard.tenant.client.get("/api/users/me")).json()["has_completed_onboarding"] is False
    order = answer.json()["order_id"]
    await yard.pay(order)
    await yard.advance(order)
    me = (await yard.tenant.client.get("/api/users/me")).json()
    assert (me["has_completed_onboarding"], me["has_received_free_credits"]) == (True, True)
    assert (await yard.order(order))["held"] == 1_000_000


async def test_which_contents(yard: Yard, make_yard: Any) -> None:
    other = await make_yard()
    foreign = await other.add_content(100)

    async def refused(*pending: int, **fields: Any) -> tuple[int, str]:
        answer = await onboard(yard, *pending, **fields)
        return answer.status_code, answer.json()["error_code"]

    assert await refused() == (400, "NO_CONTENTS_CHOSEN")
    first, second = await yard.add_content(700), await yard.add_content(300)
    broken = await yard.add_content(0, status="error")
    assert await refused(foreign) == (404, "CONTENT_NOT_FOUND")
    assert await refused(first, foreign) == (404, "CONTENT_NOT_FOUND")
    assert await refused(first, project_id=other.project) == (404, "PROJECT_NOT_FOUND")
    assert await refused(broken) == (400, "CONTENT_NOT_READY")
    assert await refused(content_ids=[]) == (400, "NO_CONTENTS_CHOSEN")
    # All that the project has; or just what is named.
    for answer, characters in (
        (await onboard(yard), 1000),
        (await onboard(yard, first), 1000),
        (await onboard(yard, content_ids=[second]), 300),
        (await onboard(yard, first, content_ids=[second]), 1000),
        (await onboard(yard, project_id=yard.project), 1000),
    ):
        assert answer.json()["quote"]["characters"] == characters, answer.text
    elsewhere = (await yard.tenant.client.post("/api/projects", json={"name": "Other"})).json()["id"]
    apart = await yard.add_content(100, project=elsewhere)
    assert await refused(first, apart) == (400, "CONTENTS_OF_SEVERAL_PROJECTS")
    assert await refused() == (400, "CONTENTS_OF_SEVERAL_PROJECTS")
    assert (await onboard(yard, apart)).json()["quote"]["characters"] == 100
