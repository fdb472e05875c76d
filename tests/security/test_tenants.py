"""No tenant reaches another's objects: every operation of the OpenAPI document, with foreign ids and anonymously."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select

from backend.billing.models import Order
from backend.contents.models import Content
from backend.datasets.models import Dataset, Example
from backend.jobs.models import Job
from backend.kit.db import Database
from backend.projects.models import Project
from backend.training.models import Artifact, FineTuning
from backend.users.models import User
from tests.conftest import Tenant

# What answers without a login, and why.
OPEN = {
    ("get", "/health"),
    ("post", "/api/auth/register"),
    ("post", "/api/auth/login"),
    ("post", "/api/auth/refresh-token"),
    ("post", "/api/auth/verify-email"),
    ("post", "/api/auth/forgot-password"),
    ("post", "/api/auth/reset-password"),
    # Known by Stripe's signature.
    ("post", "/api/checkout/webhook"),
}
# Operations that name no object: they show or make only what is the caller's own.
OWN = {
    ("get", "/projects"),
    ("post", "/projects"),
    ("get", "/hardware/check"),
    ("post", "/api/auth/logout"),
    ("get", "/api/users/me"),
    ("put", "/api/users/me"),
    ("delete", "/api/users/me"),
    ("get", "/api/users/me/subscription"),
    ("get", "/api/users/me/export"),
    ("post", "/api/users/me/change-password"),
    ("post", "/api/auth/resend-verification"),
    ("get", "/api/users/me/tokens"),
    ("post", "/api/users/me/tokens"),
    ("get", "/api/users/me/sessions"),
    ("delete", "/api/users/me/sessions"),
    ("get", "/api/users/me/api-keys"),
    ("post", "/api/users/me/api-keys"),
    ("get", "/api/projects"),
    ("post", "/api/projects"),
    ("get", "/api/contents"),
    ("post", "/api/contents"),
    ("post", "/api/contents/url"),
    ("post", "/api/contents/upload"),
    ("post", "/api/helpers/video-transcript"),
    ("get", "/api/datasets"),
    ("post", "/api/datasets"),
    ("get", "/api/fine-tunings"),
    ("post", "/api/fine-tunings"),
    ("post", "/api/fine-tunings/forecast"),
    ("get", "/api/characters/usage-stats"),
    ("get", "/api/characters/pricing"),
    ("get", "/api/characters/transactions"),
    # What these name in their bodies: tests/contracts/test_platform_characters.py asks for that of others.
    ("post", "/api/characters/quality-assessment"),
    ("post", "/api/characters/quote"),
    ("post", "/api/characters/purchase"),
    ("post", "/api/billing/subscribe"),
    ("post", "/api/billing/portal"),
    ("get", "/api/billing/invoices"),
    ("get", "/api/billing/payments"),
    ("post", "/api/fine-tuning-jobs"),
    ("post", "/api/checkout/create-onboarding-session"),
    ("get", "/api/orders"),
    ("get", "/api/models"),
    ("get", "/api/models/providers"),
    ("post", "/api/models/ask"),
    # It names its model in the body: tests/api/test_openai_face.py asks for those of others.
    ("post", "/v1/chat/completions"),
    ("get", "/v1/models"),
}
# Query parameters that name no object.
HARMLESS = {"limit", "offset", "status", "kind", "split", "is_valid", "type"}
HARMLESS |= {"provider", "model", "availability", "state"}
# Stripe's own, and asked of Stripe together with the caller's customer.
HARMLESS |= {"starting_after"}
HARMLESS |= {"source", "invalid_reason", "format", "version", "include_invalid"}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("patch", "/projects/{project_id}"): {"name": "Taken over"},
    ("post", "/projects/{project_id}/model/resolve"): {"model_id": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    ("put", "/api/contents/{content_id}"): {"name": "Taken over"},
    ("post", "/projects/{project_id}/export/push"): {"repo_id": "thief/model"},
    ("post", "/projects/{project_id}/train/compare"): {"questions": ["What is the secret?"]},
    ("patch", "/projects/{project_id}/dataset/examples/{example_id}"): {
        "is_valid": False,
        "data": {"output": "Taken over"},
    },
    ("put", "/api/datasets/{dataset_id}"): {"name": "Taken over"},
    ("post", "/api/datasets/{dataset_id}/pairs"): {"question": "Taken over?", "answer": "Taken over."},
    ("post", "/api/datasets/{dataset_id}/pairs/bulk"): {"pairs": [{"question": "Taken?", "answer": "Taken over."}]},
    ("put", "/api/datasets/{dataset_id}/pairs/{pair_id}"): {"answer": "Taken over."},
    ("post", "/api/datasets/{dataset_id}/preferences"): {"prompt": "Why?", "preferred": "Taken.", "rejected": "Kept."},
    ("post", "/projects/{project_id}/dataset/preferences"): {"prompt": "Why?", "preferred": "a", "rejected": "b"},
    ("put", "/api/fine-tunings/{fine_tuning_id}"): {"name": "Taken over"},
    ("post", "/api/fine-tunings/{fine_tuning_id}/test"): {"prompt": "What is the secret?"},
    ("patch", "/projects/{project_id}/dataset/examples"): {"ids": [str(UUID(int=1))], "is_valid": False},
}


@dataclass(frozen=True)
class Victim:
    """A tenant with one object of every kind; `ids` are named as in paths and queries, for each face its own."""

    tenant: Tenant
    ids: dict[str, str]
    numbers: dict[str, str]

    def of(self, path: str) -> dict[str, str]:
        return self.numbers if path.startswith("/api/") else self.ids


@pytest.fixture
async def victim(make_tenant: Any, app: Any, db: Database, run_jobs: Any) -> Victim:
    tenant = await make_tenant()
    project = await tenant.make_project(name="Secret")
    uploaded = await tenant.upload(project, "secret.txt", b"The secret stands in this sentence of the document.")
    file = uploaded.json()["files"][0]["id"]
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate")).json()["job_id"]
    assert (await run_jobs(job))["state"] == "success"
    async with db.transaction() as session:
        row = (await session.scalars(select(Project).where(Project.public_id == UUID(project)))).one()
        training = Job(
            user_id=row.user_id, project_id=row.id, kind="training", queue="gpu", max_attempts=1, state="success"
        )
        dataset = Dataset(project_id=row.id, name="Secret", status="ready")
        session.add_all([dataset, training])
        await session.flush()
        example = Example(
            dataset_id=dataset.id, split="train", instruction="secret", output="secret", token_count=1, fingerprint="x"
        )
        run = FineTuning(
            project_id=row.id,
            dataset_id=dataset.id,
            job_id=training.id,
            name="Secret",
            method="lora",
            model="m",
            status="completed",
        )
        order = Order(
            user_id=row.user_id, project_id=row.id, kind="fine_tuning_job", state="completed", currency="eur", quote={}
        )
        session.add_all([example, run, order])
        await session.flush()
        for name in ("finetuneflow_export.zip", "metrics.json"):
            key = f"projects/{project}/exports/{name}"
            await app.state.services.storage.put_bytes(key, b"secret")
            session.add(
                Artifact(
                    fine_tuning_id=run.id, role="export", filename=name, size_bytes=6, sha256="0" * 64, file_key=key
                )
            )
        ids = {"project_id": project, "file_id": file, "source_file_id": file, "job_id": job}
        content = await session.scalar(select(Content.id).where(Content.public_id == UUID(file)))
        numbers = {
            "project_id": row.id,
            "content_id": content,
            "dataset_id": dataset.id,
            "pair_id": example.id,
            "fine_tuning_id": run.id,
            "order_id": order.id,
            "task_id": job,
            "token_id": (await tenant.client.post("/api/users/me/tokens", json={"name": "secret"})).json()["id"],
            "session_id": (await tenant.client.get("/api/users/me/sessions")).json()[0]["id"],
            "provider": "openai",  # names no row, but the caller has no key there
            "filename": "metrics.json",
        }
        return Victim(
            tenant,
            {
                **ids,
                "example_id": str(example.public_id),
                "dataset_id": str(dataset.public_id),
                "filename": "metrics.json",
                "model": f"ft-{run.public_id}",
            },
            {name: str(value) for name, value in numbers.items()},
        )


def operations(app: Any) -> list[tuple[str, str, dict[str, Any]]]:
    document = app.openapi()
    found = [(method, path, spec) for path, methods in document["paths"].items() for method, spec in methods.items()]
    assert len(found) > 25
    return found


def named(spec: dict[str, Any], where: str) -> set[str]:
    return {parameter["name"] for parameter in spec.get("parameters", []) if parameter["in"] == where}


async def call(client: httpx.AsyncClient, method: str, path: str, ids: dict[str, str], **params: str) -> httpx.Response:
    extra: dict[str, Any] = {"params": params}
    if path.endswith("/files/upload"):
        extra["files"] = [("files", ("planted.txt", b"Planted words."))]
    elif method in ("post", "patch", "put"):
        extra["json"] = BODIES.get((method, path))
    return await client.request(method.upper(), path.format(**ids), **extra)


async def test_foreign_ids_are_not_found(app: Any, victim: Victim, tenant: Tenant, db: Database) -> None:
    uuid = await tenant.make_project()
    number = str((await tenant.client.get("/api/projects")).json()[0]["id"])
    tried = 0
    for method, path, spec in operations(app):
        ids = victim.of(path)
        own = {"project_id": number if path.startswith("/api/") else uuid}
        names, queries = named(spec, "path"), named(spec, "query") - HARMLESS
        if (method, path) in OPEN | OWN:
            assert "{" not in path
            for query in queries:
                answer = await call(tenant.client, method, path, ids, **{query: ids[query]})
                assert answer.status_code == 404, f"{method} {path}?{query}: {answer.text}"
            continue
        unmapped = (names | queries) - set(ids)
        assert not unmapped, f"{method} {path}: say in this test whose {unmapped} are"
        assert names, f"{method} {path} names no object: add it to OWN or OPEN"
        answer = await call(tenant.client, method, path, ids)
        assert answer.status_code == 404, f"{method} {path}: {answer.status_code} {answer.text}"
        assert "secret" not in answer.text.lower()
        tried += 1
        # The caller's own project, with an object of another's in it: by path, then by query.
        mixed = {**ids, **own}
        if names - {"project_id"} and "project_id" in names:
            answer = await call(tenant.client, method, path, mixed)
            assert answer.status_code == 404, f"{method} {path} in an own project: {answer.text}"
        for query in queries:
            answer = await call(tenant.client, method, path, mixed, **{query: ids[query]})
            assert answer.status_code == 404, f"{method} {path}?{query}: {answer.text}"
    assert tried >= 20
    # Nothing of the victim's was touched.
    listed = (await victim.tenant.client.get(f"/projects/{victim.ids['project_id']}/files")).json()["files"]
    assert [file["filename"] for file in listed] == ["secret.txt"]
    detail = (await victim.tenant.client.get(f"/projects/{victim.ids['project_id']}")).json()
    assert (detail["name"], detail["stats"]["example_count"]) == ("Secret", 1)
    assert (await tenant.client.get("/projects")).json()["total"] == 1


async def test_the_same_requests_work_for_the_owner(app: Any, victim: Victim) -> None:
    """Else the 404s above would prove nothing."""
    for method, path, spec in operations(app):
        if method != "get" or (method, path) in OPEN:
            continue
        ids = victim.of(path)
        queries = {name: ids[name] for name in named(spec, "query") - HARMLESS}
        answer = await call(victim.tenant.client, method, path, ids, **queries)
        assert answer.status_code == 200, f"{method} {path}: {answer.text}"
    for path in ("/projects/{project_id}/dataset/examples/{example_id}", "/projects/{project_id}/files/{file_id}"):
        assert (await call(victim.tenant.client, "delete", path, victim.ids)).status_code == 204


async def test_without_a_login_everything_is_401(app: Any, anonymous: httpx.AsyncClient, victim: Victim) -> None:
    for method, path, _ in operations(app):
        if (method, path) in OPEN:
            continue
        real = victim.of(path)
        for ids in (real, dict.fromkeys(real, str(uuid4())), dict.fromkeys(real, "no-uuid")):
            for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer x.y.z"}):
                body = {"headers": headers, "json": BODIES.get((method, path))}
                answer = await anonymous.request(method.upper(), path.format(**ids), **body)
                assert answer.status_code == 401, f"{method} {path}: {answer.status_code} {answer.text}"
                assert answer.headers["www-authenticate"] == "Bearer"


EVERY_COLUMN = {
    column.name: value
    for model in (Project, User, FineTuning, Job)
    for column in model.__table__.columns
    for value in [1 if column.name.endswith("id") else True if column.name.startswith("is_") else "2000-01-01"]
    if column.name not in ("name", "description", "config", "task_type", "email")
}


async def test_extra_fields_change_nothing(tenant: Tenant, victim: Victim, anonymous: httpx.AsyncClient) -> None:
    taken = {"user_id": 1, "id": 1, "public_id": victim.ids["project_id"]}
    created = await tenant.client.post("/projects", json={"name": "Mine", **EVERY_COLUMN, **taken})
    assert created.status_code == 201
    mine = created.json()
    assert mine["id"] != victim.ids["project_id"]
    assert (mine["status"], mine["base_model_id"], mine["model_info"]) == ("draft", None, None)
    assert datetime.fromisoformat(mine["created_at"]).year > 2000
    await tenant.client.patch(f"/projects/{mine['id']}", json={**EVERY_COLUMN, **taken, "stage": "trained"})
    after = (await tenant.client.get(f"/projects/{mine['id']}")).json()
    changing = ("updated_at", "stats")
    assert {key: after[key] for key in mine if key not in changing} == {
        key: mine[key] for key in mine if key not in changing
    }
    body = {"email": f"{uuid4()}@example.com", "password": "a long password", "name": "X", **EVERY_COLUMN}
    user = await anonymous.post("/api/auth/register", json={**body, "is_active": False, "password_hash": "!"})
    assert (user.status_code, user.json()["is_active"], user.json()["has_completed_onboarding"]) == (201, True, False)
    login = await anonymous.post("/api/auth/login", json={"username": body["email"], "password": body["password"]})
    profile = await anonymous.get("/api/users/me", headers={"Authorization": f"Bearer {login.json()['access_token']}"})
    assert profile.json()["has_received_free_credits"] is False


async def test_extra_fields_of_jobs_change_nothing(victim: Victim, tenant: Tenant, db: Database) -> None:
    project = victim.ids["project_id"]
    for path in ("/chunks/generate", "/dataset/preview", "/export", "/train/compare"):
        body = {**EVERY_COLUMN, "state": "success", "questions": ["Why?"], "params": {"fine_tuning_id": 1}}
        answer = await victim.tenant.client.post(f"/projects/{project}{path}", json=body)
        assert (answer.status_code, answer.json()["status"]) == (202, "queued"), answer.text
        async with db.transaction() as session:
            job = (await session.scalars(select(Job).where(Job.public_id == UUID(answer.json()["job_id"])))).one()
        assert (job.state, job.attempts, job.fence, job.worker) == ("queued", 0, 0, None)
        await victim.tenant.client.post(f"/jobs/{answer.json()['job_id']}/cancel")


async def test_the_same_file_deleted_twice_at_once(victim: Victim) -> None:
    path = "/projects/{project_id}/files/{file_id}".format(**victim.ids)
    answers = await asyncio.gather(*[victim.tenant.client.delete(path) for _ in range(6)])
    assert {answer.status_code for answer in answers} <= {204, 404, 409}


async def test_a_project_deleted_while_it_is_changed(victim: Victim) -> None:
    path = f"/projects/{victim.ids['project_id']}"
    client = victim.tenant.client
    requests = [client.patch(path, json={"name": str(number)}) for number in range(5)]
    requests += [client.delete(path), client.post(f"{path}/chunks/generate"), client.delete(path)]
    answers = await asyncio.gather(*requests)
    assert all(answer.status_code < 500 for answer in answers), [answer.text for answer in answers]
    assert (await client.get(path)).status_code == 404
