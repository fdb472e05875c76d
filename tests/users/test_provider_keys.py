"""Provider keys through the platform face: masked, sealed, verified, rotated, deleted."""

import json
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import select, text, update

from backend.kit.crypto import CannotUnseal, Sealer
from backend.kit.db import Database
from backend.users import provider_keys
from backend.users.models import ProviderKey
from tests.conftest import Tenant

URL = "/api/users/me/api-keys"


class Provider(ThreadingHTTPServer):
    """An outside provider: knows some keys, refuses the others in its own words."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.known: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        key = self.headers.get("x-api-key") or self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.asked.append((self.path, key))
        status = self.server.status if key in self.server.known or self.server.status != 200 else 401
        body = {"data": []} if status == 200 else {"error": {"message": f"Incorrect API key provided: {key}."}}
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def provider(app: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    server = Provider()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in ("openai", "anthropic", "mistral", "together", "fireworks"):
        monkeypatch.setattr(app.state.services.settings, f"{name}_base_url", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def new_key(provider: str) -> str:
    tail = secrets.token_hex(16)
    return {
        "openai": f"sk-proj-{tail}",
        "anthropic": f"sk-ant-api03-{tail}",
        "mistral": tail,
        "together": f"tgp_v1_{tail}",
        "fireworks": f"fw_{tail}",
    }[provider]


@pytest.mark.parametrize("name", ["anthropic", "fireworks", "mistral", "openai", "together"])
async def test_a_key_is_verified_kept_masked_replaced_and_deleted(
    tenant: Tenant, provider: Provider, name: str
) -> None:
    first, second = new_key(name), new_key(name)
    provider.known |= {first, second}
    answer = await tenant.client.post(URL, json={"provider": name, "key": f" {first} "})
    assert answer.status_code == 201, answer.text
    assert answer.json()["verified_at"] is not None
    assert answer.json()["user_id"] == tenant.login["user"]["id"]
    assert provider.asked[-1][1] == first
    assert first not in answer.text
    assert answer.json()["key"].endswith(f"...{first[-4:]}")

    replaced = await tenant.client.post(URL, json={"provider": name.upper(), "key": second})
    assert replaced.status_code == 200
    assert replaced.json()["id"] == answer.json()["id"]
    listed = (await tenant.client.get(URL)).json()
    assert [(one["provider"], one["key"][-4:]) for one in listed] == [(name, second[-4:])]

    assert (await tenant.client.delete(f"{URL}/{name}")).status_code == 204
    assert (await tenant.client.get(URL)).json() == []
    gone = await tenant.client.delete(f"{URL}/{name}")
    assert (gone.status_code, gone.json()["error_code"]) == (404, "PROVIDER_KEY_NOT_FOUND")


async def test_the_contracts_example_is_taken(tenant: Tenant, provider: Provider) -> None:
    provider.known.add("sk_xxxxxxxxxxxxxxxx")
    answer = await tenant.client.post(URL, json={"provider": "openai", "key": "sk_xxxxxxxxxxxxxxxx"})
    assert answer.status_code == 201
    assert set(answer.json()) >= {"id", "user_id", "provider", "key", "created_at"}


async def test_a_wrong_key_is_refused_in_the_providers_words_without_the_key(
    tenant: Tenant, provider: Provider
) -> None:
    key = new_key("openai")
    answer = await tenant.client.post(URL, json={"provider": "openai", "key": key})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "API_KEY_REFUSED")
    assert "Incorrect API key provided: [key]." in answer.json()["detail"]
    assert key not in answer.text
    assert (await tenant.client.get(URL)).json() == []


@pytest.mark.parametrize("status", [429, 500])
async def test_a_provider_in_trouble_is_no_error(tenant: Tenant, provider: Provider, status: int) -> None:
    provider.status = status
    answer = await tenant.client.post(URL, json={"provider": "mistral", "key": new_key("mistral")})
    assert (answer.status_code, answer.json()["verified_at"]) == (201, None)


async def test_no_network_is_no_error(tenant: Tenant, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.state.services.settings, "openai_base_url", "http://127.0.0.1:9")
    answer = await tenant.client.post(URL, json={"provider": "openai", "key": new_key("openai")})
    assert (answer.status_code, answer.json()["verified_at"]) == (201, None)


@pytest.mark.parametrize(
    ("name", "key", "code"),
    [
        ("openai", "sk-ant-api03-0123456789abcdef", "BAD_API_KEY_FORMAT"),
        ("openai", "pk-0123456789abcdef", "BAD_API_KEY_FORMAT"),
        ("anthropic", "sk-0123456789abcdef", "BAD_API_KEY_FORMAT"),
        ("mistral", "sk-0123456789", "BAD_API_KEY_FORMAT"),
        ("openai", "sk-0123\n456789abcdef", "BAD_API_KEY_FORMAT"),
        ("bedrock", '{"access_key_id": "AKIA0123456789ABCDEF"}', "BAD_API_KEY_FORMAT"),
        ("bedrock", "{no json at all}", "BAD_API_KEY_FORMAT"),
        ("acme", "sk-0123456789abcdef", "UNKNOWN_PROVIDER"),
    ],
)
async def test_what_is_no_key_is_refused_and_not_repeated(tenant: Tenant, name: str, key: str, code: str) -> None:
    answer = await tenant.client.post(URL, json={"provider": name, "key": key})
    assert (answer.status_code, answer.json()["error_code"]) == (400, code)
    assert key not in answer.text


async def test_bedrock_takes_its_credentials_and_shows_none(tenant: Tenant) -> None:
    fields = {
        "access_key_id": "AKIA0123456789ABCDEF",
        "secret_access_key": secrets.token_hex(20),
        "region": "us-east-1",
        "role_arn": "arn:aws:iam::123456789012:role/tuning",
        "bucket": "data",
    }
    answer = await tenant.client.post(URL, json={"provider": "bedrock", "key": json.dumps(fields)})
    assert (answer.status_code, answer.json()["key"]) == (201, "AKIA...CDEF")
    assert fields["secret_access_key"] not in answer.text


async def test_a_row_of_another_tenant_does_not_open(
    make_tenant: Callable[[], Awaitable[Tenant]], app: Any, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.services.settings, "openai_base_url", "")
    sealer: Sealer = app.state.services.sealer
    one, other = await make_tenant(), await make_tenant()
    key = new_key("openai")
    for tenant, value in ((one, key), (other, new_key("openai"))):
        assert (await tenant.client.post(URL, json={"provider": "openai", "key": value})).status_code == 201
    ids = [tenant.login["user"]["id"] for tenant in (one, other)]
    async with db.transaction() as session:
        assert await provider_keys.reveal(session, sealer, ids[0], "openai") == key
        stolen = await session.scalar(select(ProviderKey.ciphertext).where(ProviderKey.user_id == ids[0]))
        await session.execute(update(ProviderKey).where(ProviderKey.user_id == ids[1]).values(ciphertext=stolen))
    async with db.transaction() as session:
        with pytest.raises(CannotUnseal):
            await provider_keys.reveal(session, sealer, ids[1], "openai")
    assert len((await other.client.get(URL)).json()) == 1
    assert key not in (await other.client.get(URL)).text
    # What cannot be opened is counted, and holds nothing up.
    newer = Sealer(["another secret of more than 32 bytes", *app.state.services.settings.sealing_keys])
    rotated, lost = await provider_keys.rotate(db, newer)
    assert (rotated >= 1, lost) == (True, 1)
    assert (await other.client.delete(f"{URL}/openai")).status_code == 204
    back = Sealer([*app.state.services.settings.sealing_keys, "another secret of more than 32 bytes"])
    assert (await provider_keys.rotate(db, back))[0] == rotated


async def test_keys_rotate_while_both_are_listed(tenant: Tenant, app: Any, db: Database) -> None:
    key = new_key("mistral")
    old: Sealer = app.state.services.sealer
    app.state.services.settings.mistral_base_url, before = "", app.state.services.settings.mistral_base_url
    try:
        assert (await tenant.client.post(URL, json={"provider": "mistral", "key": key})).status_code == 201
    finally:
        app.state.services.settings.mistral_base_url = before
    user = tenant.login["user"]["id"]
    settings = app.state.services.settings
    both = Sealer(["a newer secret of more than 32 bytes", *settings.sealing_keys])
    try:
        assert (await provider_keys.rotate(db, both))[0] >= 1
        assert await provider_keys.rotate(db, both) == (0, 0)
        async with db.transaction() as session:
            assert await provider_keys.reveal(session, both, user, "mistral") == key
            with pytest.raises(CannotUnseal):
                await provider_keys.reveal(session, old, user, "mistral")
    finally:
        # Other tests of this process go on with the old key.
        await provider_keys.rotate(db, Sealer([*settings.sealing_keys, "a newer secret of more than 32 bytes"]))


async def test_the_key_stands_in_no_column(tenant: Tenant, app: Any, db: Database, caplog: Any) -> None:
    key = new_key("openai")
    app.state.services.settings.openai_base_url, before = (
        "http://127.0.0.1:9",
        app.state.services.settings.openai_base_url,
    )
    try:
        with caplog.at_level("DEBUG"):
            assert (await tenant.client.post(URL, json={"provider": "openai", "key": key})).status_code == 201
    finally:
        app.state.services.settings.openai_base_url = before
    assert key not in caplog.text
    async with db.transaction() as session:
        tables = (
            await session.scalars(
                text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
            )
        ).all()
        for table in tables:
            found = await session.scalar(
                text(f'SELECT count(*) FROM "{table}" t WHERE strpos(t::text, :key) > 0'), {"key": key}
            )
            assert found == 0, table
    keys = [one async for one in app.state.services.redis.scan_iter()]
    for name in keys:
        dumped = await app.state.services.redis.dump(name)
        assert key.encode() not in (dumped or b"")
