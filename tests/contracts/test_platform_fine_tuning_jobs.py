"""The contract's POST /fine-tuning-jobs: both answers word for word, then a real way to a trained model."""

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select

from backend.contents.models import Content
from backend.kit.config import Settings
from backend.training.models import FineTuning
from tests.contracts.conftest import SAMPLE
from tests.contracts.shapes import matches
from tests.launches.conftest import Yard, make_yard, prices, stripe, stripe_server, yard
from tests.launches.stripe_server import StripeServer

__all__ = ["make_yard", "prices", "stripe", "stripe_server", "yard"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
ENGLISH = {"Accept-Language": "en-GB,en;q=0.8"}


async def test_free(yard: Yard) -> None:
    content = await yard.add_content(9000)
    answer = await yard.post(content, hyperparameters={"n_epochs": 3}, system_prompt="Assistant spécialisé en lampes")
    assert answer.status_code == 201
    matches(
        answer.json(),
        {
            "status": "processing_started",
            "message": "Le processus de fine-tuning a été lancé.",
            "checkout_url": None,
            "redirect_url": f"https://app.example.com/dashboard/projects/{yard.project}?tab=finetune",
            "fine_tuning_id": int,
            "dataset_id": int,
            "order_id": int,
            "warnings": list,
        }
        | {"warnings": []},
    )
    assert answer.json()["quote"]["lines"] == [{"kind": "free_quota", "characters": 9000, "amount_cents": 0}]
    run = (await yard.tenant.client.get(f"/api/fine-tunings/{answer.json()['fine_tuning_id']}")).json()
    assert (run["name"], run["status"], run["hyperparameters"]["num_epochs"]) == ("Mon Job de Test", "queued", 3)
    dataset = (await yard.tenant.client.get(f"/api/datasets/{answer.json()['dataset_id']}")).json()
    assert (dataset["name"], dataset["status"]) == ("Dataset pour Job Test", "processing")
    assert (await yard.tenant.client.get("/api/users/me")).json()["has_received_free_credits"] is True
    # A repeat run of at most 10,000 characters is free as well.
    again = (await yard.post(content, headers=ENGLISH)).json()
    assert (again["status"], again["message"]) == ("processing_started", "The fine-tuning has been started.")
    assert again["quote"]["complimentary"] == 8000


async def test_to_be_paid(yard: Yard, stripe: StripeServer) -> None:
    answer = await yard.post(await yard.add_content(15_000))
    assert answer.status_code == 201
    matches(
        answer.json(),
        {
            "status": "pending_payment",
            "message": "Paiement requis pour lancer le fine-tuning.",
            "checkout_url": str,
            "redirect_url": None,
            "fine_tuning_id": None,
            "dataset_id": None,
        },
    )
    [session] = stripe.sessions.values()
    assert answer.json()["checkout_url"] == session["url"]
    # 5,000 characters at 0.000365.
    form = session["form"]
    assert form["line_items[0][price_data][unit_amount]"] == "183"
    assert form["metadata[payment_type]"] == "fine_tuning_job"
    assert (form["metadata[user_id]"], form["metadata[project_id]"]) == (str(yard.user), str(yard.project))
    english = (await yard.post(await yard.add_content(15_000), headers=ENGLISH)).json()
    assert english["message"] == "A payment is required to start the fine-tuning."
    assert english["quote"]["amount_cents"] == 183
    [_, first] = (await yard.tenant.client.get("/api/orders", params={"state": "pending_payment"})).json()
    matches(
        first,
        {
            "kind": "fine_tuning_job",
            "description": "En attente du paiement.",
            "characters": 15_000,
            "characters_bought": 5000,
            "amount_cents": 183,
            "currency": "eur",
            "payment": {"state": "pending", "amount_cents": 183, "refunded_cents": 0},
            "checkout_url": session["url"],
            "error_code": None,
            "created_at": datetime,
            "paid_at": None,
        },
    )
    assert (await yard.tenant.client.get("/api/orders", params={"kind": "character_credits"})).json() == []


async def test_small_amounts_are_no_checkout(yard: Yard, stripe: StripeServer) -> None:
    # 1,000 characters beyond the quota cost 37 cents, less than the smallest checkout.
    launched = await yard.launch(await yard.add_content(11_000))
    assert (launched["status"], launched["quote"]["complimentary"]) == ("processing_started", 1000)
    assert stripe.sessions == {}


async def test_without_payments_the_paid_way_is_closed_and_the_free_one_open(yard: Yard) -> None:
    large, small = await yard.add_content(50_000), await yard.add_content(500)
    answer = await yard.post(large)
    assert (answer.status_code, answer.json()["error_code"]) == (503, "PAYMENTS_NOT_CONFIGURED")
    assert (await yard.tenant.client.get("/api/orders")).json() == []
    assert (await yard.launch(small))["status"] == "processing_started"


async def test_an_uploaded_document_becomes_a_trained_model(
    yard: Yard, prices: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "free_characters", len(SAMPLE))
    [project] = (await yard.tenant.client.get("/projects")).json()["items"]
    uploaded = await yard.tenant.upload(project["id"], "quillon-40.md", SAMPLE.encode())
    assert uploaded.status_code == 201, uploaded.text
    async with yard.db.transaction() as session:
        content = (await session.scalars(select(Content).where(Content.project_id == yard.project))).one()
    quick = {"n_epochs": 1, "per_device_batch_size": 8, "gradient_accumulation_steps": 1, "max_seq_length": 64}
    launched = await yard.launch(content.id, hyperparameters=quick, system_prompt="You know Quillon.")
    order = launched["order_id"]
    await yard.advance(order)
    assert [job.kind for job in await yard.jobs()] == ["dataset_prepare"]
    made = await yard.make_dataset()
    assert (made["kind"], made["state"]) == ("dataset_generate", "success")
    await yard.advance(order)
    [training] = await yard.jobs("training")
    assert (await yard.run_jobs(str(training.public_id)))["state"] == "success"
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["settled"], shown["held"]) == ("completed", content.character_count, 0)
    async with yard.db.transaction() as session:
        run = await session.get_one(FineTuning, launched["fine_tuning_id"])
    assert (run.status, run.dataset_version, run.system_prompt) == ("completed", 1, "You know Quillon.")
    await yard.books_are_right()


async def test_the_body_is_checked(yard: Yard) -> None:
    good = yard.body(await yard.add_content(100))
    bad: list[dict[str, Any]] = [
        {**good, "content_ids": []},
        {**good, "project_id": 0},
        {**good, "config": {**good["config"], "provider": ""}},
        {**good, "config": {"provider": "local"}},
        {key: value for key, value in good.items() if key != "config"},
    ]
    for body in bad:
        answer = await yard.tenant.client.post("/api/fine-tuning-jobs", json=body)
        assert answer.status_code == 422, body
    answer = await yard.tenant.client.post("/api/fine-tuning-jobs", json={**good, "config": {**good["config"]}})
    assert answer.status_code == 201


async def test_nobody_can_have_rated_what_is_not_made_yet(yard: Yard) -> None:
    """dpo is refused before anything is written or charged; all weights may be trained."""
    content = await yard.add_content(9000)
    answer = await yard.post(content, method="dpo", headers=ENGLISH)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "TOO_FEW_PREFERENCES"), answer.text
    assert "/api/datasets/{dataset_id}/preferences" in answer.json()["detail"]
    french = await yard.post(content, method="dpo", headers={"Accept-Language": "fr"})
    assert "/api/datasets/{dataset_id}/preferences" in french.json()["detail"]
    assert "réponses notées" in french.json()["detail"]
    assert (await yard.tenant.client.get("/api/orders")).json() == []
    assert (await yard.tenant.client.get("/api/fine-tunings")).json() == []
    assert (await yard.post(content, method="rlhf")).status_code == 422
    started = await yard.post(content, method="full")
    assert started.status_code == 201, started.text
    run = (await yard.tenant.client.get(f"/api/fine-tunings/{started.json()['fine_tuning_id']}")).json()
    assert (run["method"], run["hyperparameters"]["learning_rate"]) == ("full", 2e-5)
