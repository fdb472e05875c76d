"""GET /api/models: the catalogue of today, for whoever has a login."""

from datetime import UTC, date, datetime
from typing import Any

import httpx
import pytest

from tests.conftest import Tenant


async def test_the_list_has_each_base_with_its_state_of_today(tenant: Tenant) -> None:
    answer = await tenant.client.get("/api/models")
    assert answer.status_code == 200
    models: list[dict[str, Any]] = answer.json()
    assert answer.headers["X-Total-Count"] == str(len(models))
    today = datetime.now(UTC).date()
    for model in models:
        ends = [date.fromisoformat(model[name]) for name in ("closes_on", "retired_on") if model[name]]
        assert (model["availability"] == "closed") is any(day <= today for day in ends)
    by_name = {(model["provider"], model["model"]): model for model in models}
    bundled = by_name["local", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert (bundled["availability"], bundled["warnings"]) == ("open", [])
    mini = by_name["openai", "gpt-4.1-mini-2025-04-14"]
    assert (mini["closes_on"], mini["retired_on"]) == ("2027-01-06", "2027-01-14")
    assert mini["limits"]["min_examples"] == 10


@pytest.mark.parametrize(
    ("query", "expected"), [({"provider": "mistral"}, "mistral"), ({"provider": "local"}, "local")]
)
async def test_the_list_can_be_of_one_provider(tenant: Tenant, query: dict[str, str], expected: str) -> None:
    models = (await tenant.client.get("/api/models", params=query)).json()
    assert {model["provider"] for model in models} == {expected}


@pytest.mark.parametrize("path", ["/api/models", "/api/models/providers"])
async def test_the_lists_have_windows(tenant: Tenant, path: str) -> None:
    whole = (await tenant.client.get(path)).json()
    part = await tenant.client.get(path, params={"limit": 2, "offset": 1})
    assert (part.json(), part.headers["X-Total-Count"]) == (whole[1:3], str(len(whole)))
    assert (await tenant.client.get(path, params={"limit": 0})).status_code == 422


async def test_the_list_can_be_of_one_state(tenant: Tenant) -> None:
    models = (await tenant.client.get("/api/models", params={"availability": "closed"})).json()
    assert models
    assert {model["availability"] for model in models} == {"closed"}


async def test_providers_say_what_they_take(tenant: Tenant) -> None:
    providers = {one["provider"]: one for one in (await tenant.client.get("/api/models/providers")).json()}
    assert providers["openai"]["hyperparameters"] == ["n_epochs", "batch_size", "learning_rate_multiplier"]
    assert providers["openai"]["closed_to_new_on"] == "2026-05-07"
    assert providers["anthropic"]["fine_tuning"] is False
    assert "bedrock" in providers["anthropic"]["instead"]
    assert providers["local"]["any_model"] is True


async def test_what_is_refused(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    unknown = await tenant.client.get("/api/models", params={"provider": "nobody"})
    assert (unknown.status_code, unknown.json()["error_code"]) == (400, "UNKNOWN_PROVIDER")
    assert "fireworks" in unknown.json()["detail"]
    assert (await tenant.client.get("/api/models", params={"availability": "soon"})).status_code == 422
    for path in ("/api/models", "/api/models/providers"):
        assert (await anonymous.get(path)).status_code == 401
