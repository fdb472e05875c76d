"""Fine-tunings at every provider, from the request to the end: what each fault leaves, and that nothing is doubled."""

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from backend.jobs.models import Job
from backend.kit.db import Database
from backend.training import polling
from backend.training.models import FineTuning
from backend.users.models import ProviderKey
from tests.providers.tuning.conftest import SECRET
from tests.training.conftest import Hosted


async def test_from_request_to_model(hosted: Hosted) -> None:
    created = await hosted.create()
    assert (created["status"], created["external_id"], created["progress"]) == ("queued", None, 0)
    assert (await hosted.submit())["state"] == "success"
    run = await hosted.show()
    assert run["status"] == "preparing"
    assert run["external_id"]
    assert len(hosted.imitation.jobs) == 1
    sent = b"".join(content for _, content in hosted.imitation.files.values())
    assert sent.count(b"lumens") == 44
    hosted.imitation.job.stage, hosted.imitation.job.step = "training", 4
    run = await hosted.poll()
    assert (run["status"], run["completed_at"], run["result_model"]) == ("training", None, None)
    stage = (await hosted.tenant.client.get(f"/projects/{hosted.project}")).json()["status"]
    assert stage == "training"
    status = (await hosted.tenant.client.get(f"/projects/{hosted.project}/train/status")).json()
    assert (status["status"], status["progress_pct"]) == ("running", round(run["progress"]))
    hosted.imitation.job.stage, hosted.imitation.job.step = "completed", 10
    run = await hosted.poll()
    assert (run["status"], run["progress"], run["error_message"]) == ("completed", 100, None)
    assert run["result_model"] == hosted.imitation.result
    assert run["completed_at"]
    row = await hosted.row()
    assert row.next_poll_at is None
    assert not hosted.imitation.files, "what was sent is deleted at the provider"
    assert (await hosted.tenant.client.get(f"/projects/{hosted.project}")).json()["status"] == "trained"


async def test_a_failure_reaches_the_row_in_the_words_of_the_provider(hosted: Hosted) -> None:
    await hosted.started()
    hosted.imitation.job.stage, hosted.imitation.job.words = "error", f"Line 3 is empty, says {SECRET}"
    run = await hosted.poll()
    assert (run["status"], run["error_message"]) == ("error", "Line 3 is empty, says [key]")
    assert run["error_code"] == "PROVIDER_JOB_FAILED"
    assert run["completed_at"]
    path = f"/api/fine-tunings/{hosted.ids[-1]}"
    french = (await hosted.tenant.client.get(path, headers={"Accept-Language": "fr"})).json()
    assert french["error_message"].startswith("Le fine-tuning a échoué chez")
    assert "Line 3 is empty, says [key]" in french["error_message"]
    status = f"/projects/{hosted.project}/train/status"
    shown = (await hosted.tenant.client.get(status, headers={"Accept-Language": "fr"})).json()
    assert shown["error_message"] == french["error_message"]


async def test_a_cancel_reaches_the_provider_and_keeps_its_reason(hosted: Hosted) -> None:
    await hosted.started()
    hosted.imitation.job.stage = "training"
    await hosted.poll()
    path = f"/api/fine-tunings/{hosted.ids[-1]}/cancel"
    answer = (await hosted.tenant.client.post(path, json={"reason": "Too dear"})).json()
    assert (answer["status"], answer["error_message"], answer["is_settled"]) == ("cancelled", "Too dear", False)
    run = await hosted.poll()
    assert hosted.imitation.job.stage == "cancelled"
    assert (run["status"], run["error_message"], run["is_settled"]) == ("cancelled", "Too dear", True)
    assert run["completed_at"]
    again = await hosted.tenant.client.post(path, json={})
    assert (again.status_code, again.json()["error_message"]) == (200, "Too dear")


@pytest.mark.parametrize("face", ["studio", "platform"])
async def test_a_project_that_is_deleted_takes_its_jobs_at_providers_along(hosted: Hosted, app: Any, face: str) -> None:
    await hosted.started()
    hosted.imitation.job.stage = "training"
    path = f"/projects/{hosted.project}"
    if face == "platform":
        path = f"/api/projects/{(await hosted.row()).project_id}"
    assert (await hosted.tenant.client.delete(path)).status_code == 204
    await app.state.services.background.idle()
    assert hosted.imitation.job.stage == "cancelled"
    assert not hosted.imitation.files


async def test_what_completed_before_the_cancel_arrived_is_completed(hosted: Hosted) -> None:
    await hosted.started()
    hosted.imitation.job.stage = "completed"
    await hosted.tenant.client.post(f"/api/fine-tunings/{hosted.ids[-1]}/cancel", json={"reason": "Too late"})
    run = await hosted.poll()
    assert (run["status"], run["error_message"]) == ("completed", None)
    answer = await hosted.tenant.client.post(f"/api/fine-tunings/{hosted.ids[-1]}/cancel")
    assert (answer.status_code, answer.json()["error_code"]) == (409, "FINE_TUNING_ENDED")


async def test_a_cancel_before_the_submission_asks_nobody(hosted: Hosted) -> None:
    await hosted.create()
    answer = await hosted.tenant.client.post(f"/api/fine-tunings/{hosted.ids[-1]}/cancel", json={"reason": "No"})
    assert (answer.json()["status"], answer.json()["error_message"]) == ("cancelled", "No")
    await hosted.submit()
    assert hosted.imitation.served == []


async def test_a_job_that_was_accepted_unseen_is_found_and_not_made_twice(hosted: Hosted) -> None:
    await hosted.create()
    hosted.imitation.faults["create"] = "accepted then silent"
    assert (await hosted.submit())["state"] == "success"
    assert hosted.imitation.served.count("create") == 1
    hosted.imitation.job.stage = "completed"
    assert (await hosted.poll())["result_model"] == hosted.imitation.result


async def test_a_worker_that_dies_between_acceptance_and_its_writing_down_doubles_nothing(
    hosted: Hosted, db: Database
) -> None:
    await hosted.started()
    # As if the transaction that writes the provider's id had never been.
    async with db.transaction() as session:
        values: dict[str, Any] = {"external_id": None, "next_poll_at": None, "provider_state": {"sent": True}}
        await session.execute(update(FineTuning).where(FineTuning.id == hosted.ids[-1]).values(**values))
        run = await session.get_one(FineTuning, hosted.ids[-1])
        await session.execute(update(Job).where(Job.id == run.job_id).values(state="queued", finished_at=None))
    assert (await hosted.submit())["state"] == "success"
    assert hosted.imitation.served.count("create") == 1
    assert (await hosted.show())["external_id"]


async def test_a_cancel_while_acceptance_is_unknown_finds_the_job_and_stops_it(hosted: Hosted, db: Database) -> None:
    await hosted.started()
    async with db.transaction() as session:
        values: dict[str, Any] = {"external_id": None, "next_poll_at": None, "provider_state": {"sent": True}}
        await session.execute(update(FineTuning).where(FineTuning.id == hosted.ids[-1]).values(**values))
        run = await session.get_one(FineTuning, hosted.ids[-1])
        await session.execute(update(Job).where(Job.id == run.job_id).values(state="queued", finished_at=None))
    answer = await hosted.tenant.client.post(f"/api/fine-tunings/{hosted.ids[-1]}/cancel", json={"reason": "Stop"})
    assert answer.json()["is_settled"] is False
    run_shown = await hosted.poll()
    assert hosted.imitation.job.stage == "cancelled"
    assert (run_shown["status"], run_shown["error_message"], run_shown["is_settled"]) == ("cancelled", "Stop", True)


REFUSALS = [400, 401, 403, 404]


@pytest.mark.parametrize("fault", REFUSALS)
async def test_a_refused_submission_ends_in_error(hosted: Hosted, fault: int) -> None:
    hosted.imitation.words = f"Not you, {SECRET}"
    hosted.imitation.faults["create"] = fault
    await hosted.create()
    job = await hosted.submit()
    assert (job["state"], job["error_code"]) == ("failed", "PROVIDER_REFUSED")
    run = await hosted.show()
    assert run["status"] == "error"
    assert "Not you, [key]" in run["error_message"]
    assert hosted.imitation.served.count("create") == 1
    assert (await hosted.row()).next_poll_at is None


@pytest.mark.parametrize("fault", [429, 500, "cut", "malformed"])
async def test_a_submission_that_met_trouble_is_tried_again(
    hosted: Hosted, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.training.remote._LONGEST_WAIT_SECONDS", 0.1)
    hosted.imitation.faults["create"] = fault
    await hosted.create()
    assert (await hosted.submit())["state"] == "queued"
    hosted.imitation.faults.clear()
    assert (await hosted.submit())["state"] == "success"
    assert len(hosted.imitation.jobs) == 1
    hosted.imitation.job.stage = "completed"
    assert (await hosted.poll())["status"] == "completed"


async def test_a_submission_that_never_got_through_ends_in_error_once_the_provider_knows_of_none(
    hosted: Hosted, db: Database
) -> None:
    hosted.imitation.faults["create"] = 500
    await hosted.create()
    async with db.transaction() as session:
        run = await session.get_one(FineTuning, hosted.ids[-1])
        await session.execute(update(Job).where(Job.id == run.job_id).values(max_attempts=1))
    assert (await hosted.submit())["state"] == "failed"
    assert (await hosted.show())["status"] == "preparing"
    for _ in range(polling.LOOKUPS):
        shown = await hosted.poll()
    assert shown["status"] == "error"
    assert "no such job" in shown["error_message"]
    assert shown["error_code"] == "PROVIDER_JOB_LOST"


@pytest.mark.parametrize("fault", [401, 403, 404, 429, 500, "cut", "malformed", "strange"])
async def test_trouble_while_polling_is_waited_out(hosted: Hosted, fault: Any) -> None:
    await hosted.started()
    hosted.imitation.job.stage, hosted.imitation.job.step = "training", 4
    assert (await hosted.poll())["status"] == "training"
    if fault == "strange":
        hosted.imitation.job.stage = "strange"
    else:
        hosted.imitation.faults["poll"] = fault
    run = await hosted.poll()
    assert (run["status"], run["error_message"]) == ("training", None)
    assert (await hosted.row()).poll_failures == 1
    hosted.imitation.faults.clear()
    hosted.imitation.job.stage = "completed"
    assert (await hosted.poll())["status"] == "completed"
    assert hosted.imitation.served.count("create") == 1


async def test_an_endless_refusal_ends_in_error_that_names_the_job(hosted: Hosted) -> None:
    await hosted.started()
    external_id = (await hosted.show())["external_id"]
    hosted.imitation.faults["poll"] = 403
    for _ in range(polling.GIVE_UP["refused"]):
        run = await hosted.poll()
    assert run["status"] == "error"
    assert external_id in run["error_message"]
    assert run["error_code"] == "PROVIDER_JOB_UNFOLLOWED"


async def test_a_key_that_was_deleted_meanwhile_ends_in_error_that_says_what_to_do(
    hosted: Hosted, db: Database
) -> None:
    await hosted.started()
    async with db.transaction() as session:
        await session.execute(delete(ProviderKey).where(ProviderKey.provider == hosted.name))
    run = await hosted.poll()
    assert run["status"] == "error"
    assert "add a key" in run["error_message"]
    assert run["error_code"] == "PROVIDER_KEY_DELETED"


async def test_two_pollers_ask_once(hosted: Hosted) -> None:
    await hosted.started()
    hosted.imitation.job.stage = "training"
    await hosted.due()
    before = hosted.imitation.served.count("poll")
    services = hosted.app.state.services
    given = (hosted.db, services.settings, services.sealer, services.events)
    await asyncio.gather(*(polling.poll_due(*given) for _ in range(4)))
    assert hosted.imitation.served.count("poll") == before + 1


async def test_a_poller_that_lost_its_lease_writes_nothing(hosted: Hosted, db: Database) -> None:
    await hosted.started()
    await hosted.due()
    services = hosted.app.state.services
    async with db.transaction() as session:
        (claim,) = await polling._claim(session)
    hosted.imitation.job.stage = "training"
    late = await polling._ask(db, services.settings, services.sealer, claim.run)
    hosted.imitation.job.stage = "completed"
    assert (await hosted.poll())["status"] == "completed"
    await polling._apply(db, claim, late)
    assert (await hosted.show())["status"] == "completed"


async def test_no_key_stands_anywhere(hosted: Hosted, db: Database) -> None:
    hosted.imitation.words = f"I saw {SECRET}"
    await hosted.started()
    hosted.imitation.faults["poll"] = 500
    await hosted.poll()
    async with db.transaction() as session:
        for table in (Job, FineTuning):
            for row in (await session.scalars(select(table))).all():
                assert SECRET not in json.dumps({name: str(value) for name, value in vars(row).items()})


async def test_a_finished_model_answers(hosted: Hosted) -> None:
    await hosted.started()
    path = f"/api/fine-tunings/{hosted.ids[-1]}/test"
    refused = await hosted.tenant.client.post(path, json={"prompt": "Hello?"})
    assert (refused.status_code, refused.json()["error_code"]) == (400, "FINE_TUNING_NOT_FINISHED")
    hosted.imitation.job.stage = "completed"
    await hosted.poll()
    hosted.imitation.models.add(hosted.imitation.result)
    answer = await hosted.tenant.client.post(path, json={"prompt": "Hello?"})
    assert (answer.status_code, answer.json()) == (200, {"response": "You said: Hello?"}), answer.text
    hosted.imitation.faults["chat"] = 500
    answer = await hosted.tenant.client.post(path, json={"prompt": "Hello?"})
    assert (answer.status_code, answer.json()["error_code"]) == (503, "PROVIDER_UNAVAILABLE")


async def test_a_deletion_cancels_first(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.api.platform.fine_tunings._ENDING_SECONDS", 0.3)
    await hosted.started()
    path = f"/api/fine-tunings/{hosted.ids[-1]}"
    waiting = await hosted.tenant.client.delete(path)
    assert (waiting.status_code, waiting.json()["error_code"]) == (409, "FINE_TUNING_STILL_ENDING")
    assert (await hosted.poll())["status"] == "cancelled"
    assert hosted.imitation.job.stage == "cancelled"
    assert (await hosted.tenant.client.delete(path)).status_code == 204
    assert (await hosted.tenant.client.get(path)).status_code == 404
