"""The contract's examples of provider keys; what providers say of them: tests/users/test_provider_keys.py."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.conftest import Tenant
from tests.contracts.shapes import matches

URL = "/api/users/me/api-keys"
# Of the contract's own forms; nobody is asked for them.
KEYS = {"openai": "sk_xxxxxxxxxxxxxxxx", "anthropic": "sk-ant-xxxxxxxxxxxxxxxx", "mistral": "x" * 32}


@pytest.fixture(autouse=True)
def out_of_reach(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No provider answers, which is no error."""
    for name in KEYS:
        monkeypatch.setattr(app.state.services.settings, f"{name}_base_url", "http://127.0.0.1:9")


async def test_add_list_replace_delete(tenant: Tenant) -> None:
    for provider, key in KEYS.items():
        shape = {"id": int, "user_id": tenant.login["user"]["id"], "provider": provider, "created_at": datetime}
        added = await tenant.client.post(URL, json={"provider": provider, "key": key})
        assert added.status_code == 201, added.text
        matches(added.json(), {**shape, "key": str})
        assert key not in added.text
        assert (await tenant.client.post(URL, json={"provider": provider, "key": key})).status_code == 200
    listed = await tenant.client.get(URL)
    matches(listed.json(), [{"id": int, "user_id": int, "provider": str, "key": str, "created_at": datetime}])
    assert ([row["provider"] for row in listed.json()], listed.headers["X-Total-Count"]) == (list(KEYS), "3")
    assert not any(key in listed.text for key in KEYS.values())
    window = await tenant.client.get(URL, params={"limit": 1, "offset": 1})
    assert (window.json(), window.headers["X-Total-Count"]) == ([listed.json()[1]], "3")
    for provider in KEYS:
        gone = await tenant.client.delete(f"{URL}/{provider}")
        assert (gone.status_code, gone.content) == (204, b"")
        again = await tenant.client.delete(f"{URL}/{provider}", headers={"Accept-Language": "fr"})
        assert (again.status_code, again.json()["error_code"]) == (404, "PROVIDER_KEY_NOT_FOUND")
        assert again.json()["detail"].startswith("Aucune clé n'est enregistrée")
    assert (await tenant.client.get(URL)).json() == []


async def test_anothers_key_is_not_found(
    tenant: Tenant, make_tenant: Callable[[], Awaitable[Tenant]], anonymous: httpx.AsyncClient
) -> None:
    await tenant.client.post(URL, json={"provider": "openai", "key": KEYS["openai"]})
    other = await make_tenant()
    assert (await other.client.get(URL)).json() == []
    assert (await other.client.delete(f"{URL}/openai")).status_code == 404
    for method, path in (("GET", URL), ("POST", URL), ("DELETE", f"{URL}/openai")):
        assert (await anonymous.request(method, path)).status_code == 401
    assert len((await tenant.client.get(URL)).json()) == 1
