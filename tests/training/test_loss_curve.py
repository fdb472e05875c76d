"""The loss curve: each step once, whatever attempts a run went through, under way and afterwards."""

from typing import Any

from sqlalchemy import select, update

from backend.datasets import versions
from backend.jobs.events import Event
from backend.kit.db import Database
from backend.projects.models import Project
from backend.training import fine_tunings, loss_curve
from backend.training.fine_tunings import Wanted
from backend.training.models import FineTuning
from tests.conftest import Tenant
from tests.training.conftest import plant_dataset

# Killed after step 3; the last checkpoint was that of step 1.
TOLD: list[tuple[str, dict[str, Any]]] = [
    ("log", {"message": "a warning"}),
    ("eval", {"step": 0, "eval_loss": 4.0, "perplexity": 54.6}),
    ("log", {"step": 1, "train_loss": 3.0, "learning_rate": 0.1, "epoch": 0.1}),
    ("checkpoint", {"step": 1, "path": "checkpoint-1"}),
    ("log", {"step": 2, "train_loss": 2.9, "learning_rate": 0.1}),
    ("eval", {"step": 2, "eval_loss": 3.9}),
    ("log", {"step": 3, "train_loss": 2.8, "learning_rate": 0.1}),
    ("log", {"message": "Resumed from step 1.", "resumed_from_step": 1}),
    ("log", {"step": 2, "train_loss": 2.5, "learning_rate": 0.1}),
]
UNDER_WAY = [
    {"step": 0, "eval_loss": 4.0},
    {"step": 1, "train_loss": 3.0, "learning_rate": 0.1},
    {"step": 2, "train_loss": 2.5, "learning_rate": 0.1},
]


def test_of_a_lost_attempt_only_what_was_gone_on_from_is_shown() -> None:
    events = [Event(str(number), name, data) for number, (name, data) in enumerate(TOLD)]
    assert loss_curve.of_events(events) == UNDER_WAY
    assert loss_curve.of_events(events[:7])[-1] == {"step": 3, "train_loss": 2.8, "learning_rate": 0.1}
    # An attempt that found no checkpoint begins anew, and says nothing of it.
    anew = [*events[:7], Event("7", "log", {"step": 1, "train_loss": 2.6})]
    assert loss_curve.of_events(anew) == [UNDER_WAY[0], {**UNDER_WAY[1], "train_loss": 2.6}]
    assert loss_curve.of_events([]) == []


def test_the_trainers_own_history_is_shown_without_its_summary() -> None:
    history = [
        {"step": 1, "loss": 3.0, "learning_rate": 0.1, "grad_norm": 1.0},
        {"step": 1, "eval_loss": 3.5, "epoch": 1.0},
        {"step": 2, "loss": 2.0, "learning_rate": 0.0},
        {"step": 2, "train_loss": 2.5, "train_runtime": 8.0},
    ]
    assert loss_curve.of_history(history, 4.0) == [
        {"step": 0, "eval_loss": 4.0},
        {"step": 1, "train_loss": 3.0, "learning_rate": 0.1, "eval_loss": 3.5},
        {"step": 2, "train_loss": 2.0, "learning_rate": 0.0},
    ]
    assert loss_curve.of_history([], None) == []


async def test_both_faces_show_it_under_way_and_at_the_end(app: Any, db: Database, tenant: Tenant) -> None:
    services = app.state.services
    public_id = await tenant.make_project(name="Lamps")
    assert (await tenant.client.get(f"/projects/{public_id}/train/history")).status_code == 404
    dataset = await plant_dataset(db, public_id)
    async with db.transaction() as session:
        project = (await session.scalars(select(Project).where(Project.public_id == public_id))).one()
        version, _ = await versions.freeze(session, dataset)
        wanted = Wanted(name="Lamps", description=None, provider="local", model="tiny", method="lora")
        run, job = await fine_tunings.start_local(session, services.broker, project, version, wanted)
    for name, data in TOLD:
        await services.events.publish(job.public_id, name, data)

    async def shown() -> list[dict[str, Any]]:
        answers = [
            await tenant.client.get(path)
            for path in (f"/projects/{public_id}/train/history", f"/api/fine-tunings/{run.id}/history")
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        return [
            {key: value for key, value in point.items() if value is not None} for point in answers[0].json()["points"]
        ]

    assert await shown() == UNDER_WAY
    ended = {"eval_loss_base": 4.0, "history": [{"step": 1, "loss": 3.0}]}
    async with db.transaction() as session:
        await session.execute(update(FineTuning).where(FineTuning.id == run.id).values(metrics=ended))
    assert await shown() == [{"step": 0, "eval_loss": 4.0}, {"step": 1, "train_loss": 3.0}]
    async with db.transaction() as session:
        await fine_tunings.cancel(session, services.events, await session.get_one(FineTuning, run.id))
