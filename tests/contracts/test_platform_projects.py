"""The contract's examples of projects, and one project behind both faces."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.conftest import Tenant
from tests.contracts.shapes import matches

URL = "/api/projects"
PROJECT = {
    "id": int,
    "user_id": int,
    "name": "Mon nouveau projet",
    "description": "Description du nouveau projet",
    "status": "active",
    "created_at": datetime,
    "updated_at": datetime,
}
BODY = {key: PROJECT[key] for key in ("name", "description")}
RENAMED = {"name": "Projet renommé", "description": "Description mise à jour"}
FRENCH = {"Accept-Language": "fr"}


@pytest.fixture
async def made(tenant: Tenant) -> dict[str, Any]:
    answer = await tenant.client.post(URL, json=BODY)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_make_list_look_rename_delete(tenant: Tenant, made: dict[str, Any]) -> None:
    matches(made, {**PROJECT, "user_id": tenant.login["user"]["id"]})
    assert set(made) == set(PROJECT)
    listed = await tenant.client.get(URL)
    assert (listed.status_code, listed.json(), listed.headers["X-Total-Count"]) == (200, [made], "1")
    assert (await tenant.client.get(f"{URL}/{made['id']}")).json() == made
    changed = await tenant.client.put(f"{URL}/{made['id']}", json=RENAMED)
    assert changed.status_code == 200
    matches(changed.json(), {**PROJECT, **RENAMED, "id": made["id"], "created_at": made["created_at"]})
    assert changed.json()["updated_at"] > made["updated_at"]
    gone = await tenant.client.delete(f"{URL}/{made['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    for method in ("GET", "PUT", "DELETE"):
        missing = await tenant.client.request(method, f"{URL}/{made['id']}", json={}, headers=FRENCH)
        assert (missing.status_code, missing.json()["error_code"]) == (404, "PROJECT_NOT_FOUND")
        assert missing.json()["detail"].startswith("Ce projet n'existe pas.")
    assert (await tenant.client.get(URL)).json() == []


async def test_the_list_in_windows_and_by_status(tenant: Tenant, made: dict[str, Any]) -> None:
    others = [(await tenant.client.post(URL, json={"name": f"Projet {number}"})).json() for number in range(2)]
    assert others[0]["description"] is None
    await tenant.client.put(f"{URL}/{made['id']}", json={"status": "archived"})
    for params, ids, total in (
        ({}, [others[1]["id"], others[0]["id"], made["id"]], "3"),
        ({"limit": 1, "offset": 1}, [others[0]["id"]], "3"),
        ({"offset": 3}, [], "3"),
        ({"status": "archived"}, [made["id"]], "1"),
    ):
        found = await tenant.client.get(URL, params=params)
        assert ([row["id"] for row in found.json()], found.headers["X-Total-Count"]) == (ids, total)
    for bad in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"offset": -1}, {"status": "gone"}):
        assert (await tenant.client.get(URL, params=bad)).status_code == 422


@pytest.mark.parametrize(
    "body", [{}, {"name": " "}, {"name": None}, {"name": 5}, {"name": "x" * 201}, {"name": "x", "description": []}, []]
)
async def test_bodies_that_are_not_valid(tenant: Tenant, made: dict[str, Any], body: Any) -> None:
    refused = await tenant.client.post(URL, json=body, headers=FRENCH)
    assert (refused.status_code, refused.json()["error_code"]) == (422, "VALIDATION_ERROR")
    assert refused.json()["detail"].startswith("La requête n'est pas valable.")
    assert refused.json()["context"]["errors"][0]["field"].startswith("body")
    if body:
        assert (await tenant.client.put(f"{URL}/{made['id']}", json=body)).status_code == 422
    assert (await tenant.client.get(URL)).json() == [made]


async def test_the_same_key_makes_one(tenant: Tenant) -> None:
    headers = {"Idempotency-Key": "once"}
    answers = [await tenant.client.post(URL, json=BODY, headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert len((await tenant.client.get(URL)).json()) == 1


async def test_both_faces_show_it(tenant: Tenant, made: dict[str, Any]) -> None:
    [studio] = (await tenant.client.get("/projects")).json()["items"]
    assert studio["name"] == made["name"]
    await tenant.client.patch(f"/projects/{studio['id']}", json={"name": "Renamed there"})
    assert (await tenant.client.get(f"{URL}/{made['id']}")).json()["name"] == "Renamed there"
    assert (await tenant.client.delete(f"{URL}/{made['id']}")).status_code == 204
    assert (await tenant.client.get(f"/projects/{studio['id']}")).status_code == 404


async def test_anothers_project_is_not_found(
    tenant: Tenant, make_tenant: Callable[[], Awaitable[Tenant]], anonymous: httpx.AsyncClient, made: dict[str, Any]
) -> None:
    other = await make_tenant()
    for method in ("GET", "PUT", "DELETE"):
        path = f"{URL}/{made['id']}"
        body = {"name": "Taken"} if method == "PUT" else None
        assert (await other.client.request(method, path, json=body)).status_code == 404
        assert (await anonymous.request(method, path, json=body)).status_code == 401
    assert (await other.client.get(URL)).json() == []
    assert (await tenant.client.get(f"{URL}/{made['id']}")).json() == made


async def test_a_wrong_method_is_told_the_right_ones(tenant: Tenant, made: dict[str, Any]) -> None:
    refused = await tenant.client.patch(f"{URL}/{made['id']}", json={})
    assert (refused.status_code, refused.headers["Allow"]) == (405, "DELETE, GET, PUT")
