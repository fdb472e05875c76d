"""The contract's examples of characters: statistics, prices, transactions, quality; and quotes before work starts."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select

from backend.billing import ledger
from backend.contents.models import Content
from backend.datasets import content_quality
from backend.datasets.models import Dataset
from backend.kit.config import Settings
from backend.kit.db import Database
from tests.conftest import Tenant
from tests.contracts.shapes import matches

ENGLISH = {"Accept-Language": "en"}
MakeTenant = Callable[[], Awaitable[Tenant]]


@pytest.fixture
def priced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The service's own figures, in place of those that leave room for every test."""
    monkeypatch.setattr(settings, "free_characters", 10_000)
    return settings


async def call(tenant: Tenant, method: str, path: str, body: Any = None, status: int = 200, **options: Any) -> Any:
    answer = await tenant.client.request(method, f"/api/characters{path}", json=body, **options)
    assert answer.status_code == status, answer.text
    return answer.json()


async def number_of(tenant: Tenant) -> int:
    return int((await tenant.client.get("/api/users/me")).json()["id"])


async def upload(tenant: Tenant, db: Database, text: str, project: str | None = None) -> Content:
    answer = await tenant.upload(project or await tenant.make_project(), "text.md", text.encode())
    assert answer.status_code == 201, answer.text
    async with db.transaction() as session:
        return (
            await session.scalars(select(Content).where(Content.public_id == answer.json()["files"][0]["id"]))
        ).one()


async def buy_and_use(db: Database, tenant: Tenant) -> tuple[int, Dataset]:
    """The contract's two transactions: 1,000 bought, and 500 used for a dataset."""
    user = await number_of(tenant)
    made = await tenant.client.post("/api/projects", json={"name": "Mine"})
    body = {"project_id": made.json()["id"], "name": "Mon dataset", "model": "m"}
    number = (await tenant.client.post("/api/datasets", json=body)).json()["id"]
    async with db.transaction() as session:
        dataset = await session.get_one(Dataset, number)
        await ledger.credit(
            session,
            user_id=user,
            kind=ledger.PURCHASE,
            characters=1_000,
            reference=f"payment:{user}",
            params={"payment_id": 123, "price_per_character": "0.000365"},
        )
        held = await ledger.hold(
            session,
            user_id=user,
            characters=600,
            reference=f"job:{user}",
            purpose="generation",
            params={"dataset": str(dataset.public_id), "price_per_character": "0.000365"},
        )
        await ledger.settle(session, held.id, 500)
    return user, dataset


async def test_usage_stats(tenant: Tenant, db: Database, priced: Settings) -> None:
    user = await number_of(tenant)
    matches(
        await call(tenant, "GET", "/usage-stats"),
        {"free_characters_remaining": 10_000, "total_characters_used": 0, "total_characters_purchased": 0},
    )
    async with db.transaction() as session:
        for kind, characters in (("grant", 10_000), ("purchase", 1_000)):
            await ledger.post(
                session, user_id=user, kind=kind, characters=characters, reference=f"stats:{user}", params={}
            )
        held = await ledger.hold(
            session, user_id=user, characters=5_000, reference=f"stats:{user}", purpose="generation"
        )
        await ledger.settle(session, held.id, 5_000)
        await ledger.hold(session, user_id=user, characters=70, reference=f"stats:{user}:b", purpose="generation")
    # The contract's example.
    matches(
        await call(tenant, "GET", "/usage-stats"),
        {
            "free_characters_remaining": 5_000,
            "total_characters_used": 5_000,
            "total_characters_purchased": 1_000,
            "available_characters": 5_930,
            "held_characters": 70,
            "owed_characters": 0,
        },
    )


async def test_pricing(tenant: Tenant, priced: Settings) -> None:
    matches(await call(tenant, "GET", "/pricing"), {"price_per_character": 0.000365, "free_characters": 10_000})


async def test_transactions(tenant: Tenant, db: Database) -> None:
    user, dataset = await buy_and_use(db, tenant)
    answer = await tenant.client.get("/api/characters/transactions")
    assert answer.headers["X-Total-Count"] == "2"
    used, bought = answer.json()
    matches(
        bought,
        {
            "id": int,
            "user_id": user,
            "amount": 1000,
            "description": "Achat de 1000 caractères",
            "dataset_id": None,
            "payment_id": 123,
            "price_per_character": 0.000365,
            "total_price": 0.365,
            "created_at": datetime,
        },
    )
    matches(
        used,
        {
            "id": int,
            "user_id": user,
            "amount": -500,
            "description": "Utilisation de 500 caractères pour le dataset 'Mon dataset'",
            "dataset_id": dataset.id,
            "payment_id": None,
            "price_per_character": 0.000365,
            "total_price": 0.1825,
            "created_at": datetime,
        },
    )
    one = await tenant.client.get("/api/characters/transactions", params={"limit": 1, "offset": 1})
    assert one.json() == [bought]
    assert one.headers["X-Total-Count"] == "2"
    english = await call(tenant, "GET", "/transactions", headers=ENGLISH)
    assert [row["description"] for row in english] == [
        "Use of 500 characters for the dataset 'Mon dataset'",
        "Purchase of 1000 characters",
    ]
    # The entry outlives what it was for.
    assert (await tenant.client.delete(f"/api/datasets/{dataset.id}")).status_code == 204
    used, _ = await call(tenant, "GET", "/transactions")
    assert (used["dataset_id"], used["description"]) == (
        None,
        "Utilisation de 500 caractères pour un dataset supprimé",
    )


async def test_every_kind_of_entry_is_described(tenant: Tenant, db: Database) -> None:
    user = await number_of(tenant)
    taking = ("usage", "refund", "chargeback", "repayment")
    giving = [kind for kind in ledger.TOTALS if kind not in taking]
    async with db.transaction() as session:
        for kind, characters in [*((kind, 50) for kind in giving), *((kind, -3) for kind in taking)]:
            await ledger.post(session, user_id=user, kind=kind, characters=characters, reference=f"k:{user}", params={})
        await ledger.record_usage(session, user_id=user, characters=9, reference=f"r:{user}", params={})
    french = await call(tenant, "GET", "/transactions")
    english = await call(tenant, "GET", "/transactions", headers=ENGLISH)
    assert {row["kind"] for row in french} == set(ledger.TOTALS)
    said = {row["description"] for row in french} | {row["description"] for row in english}
    assert len(said) == 2 * len(french)
    assert all("{" not in sentence for sentence in said)
    given = {row["kind"]: row["total_price"] for row in french if row["kind"] in ("grant", "complimentary")}
    assert set(given.values()) == {0}


async def test_transactions_are_the_callers_own(tenant: Tenant, make_tenant: MakeTenant, db: Database) -> None:
    await buy_and_use(db, tenant)
    other = await make_tenant()
    assert await call(other, "GET", "/transactions") == []
    for bad in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"limit": "x"}):
        await call(tenant, "GET", "/transactions", status=422, params=bad)


async def test_quality_by_the_count(tenant: Tenant) -> None:
    body = {"character_count": 5000, "usage_type": "customer_support"}
    found = await call(tenant, "POST", "/quality-assessment", body)
    example = {
        "character_count": 5000,
        "usage_type": "customer_support",
        "score": 0.37,
        "suggestions": [
            "Votre jeu de données pourrait être amélioré. Ajoutez plus de contenu pour de meilleurs résultats.",
            "Incluez des exemples plus variés pour couvrir différents aspects de votre domaine.",
        ],
    }
    assert {name: found[name] for name in example} == example
    assert found["details"] is None
    english = await call(tenant, "POST", "/quality-assessment", body, headers=ENGLISH)
    assert english["suggestions"][0] == "Your data set could be improved. Add more content for better results."


@pytest.mark.parametrize("usage", content_quality.HALF_SERVED)
async def test_quality_of_every_usage_grows_with_the_count(tenant: Tenant, usage: str) -> None:
    scores = []
    for count in (0, 100, 5_000, 50_000, 10**12):
        found = await call(tenant, "POST", "/quality-assessment", {"character_count": count, "usage_type": usage})
        scores.append(found["score"])
        assert found["suggestions"]
    assert scores == sorted(scores)
    assert (scores[0], scores[-1]) == (0, 1)


@pytest.mark.parametrize(
    "body",
    [
        {"character_count": 5000, "usage_type": "poetry"},
        {"character_count": 5000},
        {"usage_type": "sales"},
        {"character_count": -1, "usage_type": "sales"},
        {"character_count": 1.5, "usage_type": "sales"},
        {"character_count": "5000", "usage_type": "sales"},
        {"character_count": 10**12 + 1, "usage_type": "sales"},
        {"content_ids": [], "usage_type": "sales"},
        {"content_ids": [0], "usage_type": "sales"},
    ],
)
async def test_what_cannot_be_judged_is_422(tenant: Tenant, body: dict[str, Any]) -> None:
    await call(tenant, "POST", "/quality-assessment", body, 422)


VARIED = "\n\n".join(
    f"The {colour} lamp number {number} of {town} was built by a {maker} and burns {number * 7} hours on {fuel}."
    for number, (colour, town, maker, fuel) in enumerate(
        (colour, town, maker, fuel)
        for colour in "red green amber violet".split()
        for town in "Osterby Wendel Karstad".split()
        for maker, fuel in (("smith", "whale oil"), ("potter", "paraffin"), ("weaver", "beeswax"))
    )
)
SAME = "\n\n".join(["The lamp of Osterby was built by an old smith, and it burns for seven hours on whale oil."] * 36)
FRENCH = "\n\n".join(
    f"La lampe numéro {number} a été fabriquée à la main par un vieux forgeron, et elle brûle pendant {number} heures."
    for number in range(30)
)


async def test_quality_by_the_texts_themselves(tenant: Tenant, db: Database) -> None:
    varied, same = await upload(tenant, db, VARIED), await upload(tenant, db, SAME)

    async def assess(*contents: Content, **fields: Any) -> Any:
        body = {"usage_type": "generic", "content_ids": [content.id for content in contents], **fields}
        return await call(tenant, "POST", "/quality-assessment", body)

    good, poor = await assess(varied), await assess(same)
    by_count = {"usage_type": "generic", "character_count": same.character_count}
    counted = await call(tenant, "POST", "/quality-assessment", by_count)
    # The client's own count says nothing.
    assert await assess(varied, character_count=10**9) == good
    assert good["character_count"] == varied.character_count
    assert good["details"]["variety"] > poor["details"]["variety"]
    assert poor["details"]["exact_duplicates"] == 35
    assert poor["score"] < counted["score"]
    assert any(said.startswith("35 passages") for said in poor["suggestions"])
    assert poor["details"]["factors"]["repeats"] < 0.1
    mixed = await assess(varied, await upload(tenant, db, FRENCH))
    assert set(mixed["details"]["languages"]) >= {"en", "fr"}
    assert any("langues" in said for said in mixed["suggestions"])
    assert mixed["details"]["factors"]["languages"] < 1
    for found in (good, poor, mixed):
        product = 1.0
        for factor in found["details"]["factors"].values():
            assert 0 <= factor <= 1
            product *= factor
        assert found["score"] == pytest.approx(product, abs=0.011)


async def test_near_duplicates_are_told_apart_from_copies() -> None:
    first = "The lamp of Osterby was built by an old smith, and it burns for seven hours on whale oil each night."
    found = content_quality.judge([first, first.replace("each night", "every night"), first])
    assert (found.exact_duplicates, found.near_duplicates) == (1, 1)
    assert found.duplicate_share == pytest.approx(2 / 3, abs=0.01)
    assert content_quality.judge([]).variety == 1


async def test_quotes_and_judgements_of_others_contents_are_404(
    tenant: Tenant, make_tenant: MakeTenant, db: Database
) -> None:
    other = await make_tenant()
    theirs, mine = await upload(other, db, VARIED), await upload(tenant, db, VARIED)
    for path, body in (
        ("/quality-assessment", {"usage_type": "sales", "content_ids": [mine.id, theirs.id]}),
        ("/quality-assessment", {"usage_type": "sales", "content_ids": [2**62]}),
        ("/quote", {"content_ids": [mine.id, theirs.id]}),
        ("/quote", {"project_id": theirs.project_id}),
        ("/quote", {"project_id": theirs.project_id, "content_ids": [mine.id]}),
        ("/quote", {"project_id": mine.project_id, "content_ids": [theirs.id]}),
    ):
        refused = await call(tenant, "POST", path, body, 404)
        assert refused["error_code"] in ("CONTENT_NOT_FOUND", "PROJECT_NOT_FOUND")


async def test_a_quote_tells_every_step(tenant: Tenant, db: Database, priced: Settings) -> None:
    user = await number_of(tenant)
    async with db.transaction() as session:
        await ledger.post(
            session, user_id=user, kind="purchase", characters=2_000, reference=f"quote:{user}", params={}
        )
        # What is left of the month's cap: 19,500 were given.
        await ledger.post(
            session, user_id=user, kind="complimentary", characters=19_500, reference=f"quote:{user}", params={}
        )
        await ledger.post(
            session, user_id=user, kind="adjustment", characters=-19_500, reference=f"quote:{user}", params={}
        )
    found = await call(tenant, "POST", "/quote", {"character_count": 13_000})
    matches(
        found,
        {
            "character_count": 13_000,
            "from_free": 10_000,
            "from_balance": 2_000,
            "complimentary": 0,
            "to_pay": 1_000,
            "is_free": False,
            "amount_cents": 60,
            "total_price": 0.6,
            "characters_bought": 1_643,
            "price_per_character": 0.000365,
            "currency": "eur",
            "pending_content_ids": [],
        },
    )
    assert [line["sentence"] for line in found["lines"]] == [
        "10000 caractères sont pris sur votre quota gratuit, accordé une seule fois.",
        "2000 caractères sont pris sur votre solde.",
        "Le reste pourrait être offert, mais il ne vous reste que 500 caractères sur les 20000 de ce mois.",
        "1000 caractères à 0,000365 EUR l'unité coûtent 0,37 EUR.",
        "Un paiement est de 0,60 EUR au moins : 0,23 EUR de plus, et 643 caractères de plus restent sur votre solde.",
    ]
    english = await call(tenant, "POST", "/quote", {"character_count": 13_000}, headers=ENGLISH)
    assert english["lines"][3]["sentence"] == "1000 characters at 0.000365 EUR each cost 0.37 EUR."
    # Nothing was reserved or granted by asking.
    assert (await call(tenant, "GET", "/usage-stats"))["available_characters"] == 2_000
    nothing = await call(tenant, "POST", "/quote", {"character_count": 0})
    assert (nothing["is_free"], nothing["lines"][0]["sentence"]) == (True, "Aucun caractère n'est à traiter.")


async def test_the_server_counts_what_is_quoted(tenant: Tenant, db: Database, priced: Settings) -> None:
    project = await tenant.make_project()
    first, second = await upload(tenant, db, VARIED, project), await upload(tenant, db, FRENCH, project)
    whole = first.character_count + second.character_count
    for body, count in (
        ({"content_ids": [first.id], "character_count": 1}, first.character_count),
        ({"project_id": first.project_id, "content_ids": [second.id, second.id]}, second.character_count),
        ({"project_id": first.project_id}, whole),
    ):
        assert (await call(tenant, "POST", "/quote", body))["character_count"] == count
    async with db.transaction() as session:
        row = await session.get_one(Content, second.id)
        row.status, row.character_count = "pending", 0
    found = await call(tenant, "POST", "/quote", {"project_id": first.project_id})
    assert (found["character_count"], found["pending_content_ids"]) == (first.character_count, [second.id])
    assert found["lines"][-1]["kind"] == "pending"
    for bad in ({}, {"content_ids": []}, {"character_count": -1}, {"character_count": 10**12 + 1}, {"project_id": 0}):
        await call(tenant, "POST", "/quote", bad, 422)
    assert (await call(tenant, "POST", "/quote", {"character_count": 10**12}))["amount_cents"] == 36_499_999_635
