"""Files for providers and Parquet: their shapes, their limits, and that a file is whole or not begun."""

import asyncio
import io
import json
import tempfile
from datetime import date
from typing import Any

import httpx
import pytest
from pyarrow import parquet  # type: ignore[import-untyped]

from backend.datasets import provider_formats
from backend.datasets.errors import ExportLimits
from backend.datasets.formats import Message, Row
from backend.datasets.parquet import ParquetFile
from backend.datasets.provider_formats import PROVIDERS, ProviderName, TrainingFile
from backend.kit.db import Database
from backend.providers import catalogue
from tests.conftest import Tenant
from tests.datasets.planting import Planted, plant

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"role": "user", "content": "Hé?"}, {"role": "assistant", "content": "Ho."}]


def row(number: int = 0, *, history: list[Message] | None = None, given: str = "", output: str = "An answer.") -> Row:
    return Row(str(number), "train", f"Question {number}?", given, output, history, True, None, "{}")


def lines(shaped: TrainingFile, *rows: Row) -> list[Any]:
    return [json.loads(line) for line in shaped.encode(rows).splitlines()]


@pytest.mark.parametrize("provider", ["openai", "mistral", "together", "fireworks"])
def test_messages(provider: ProviderName) -> None:
    made = lines(TrainingFile(provider), row(1, given="Of this."), row(2, history=[SYSTEM, *TURNS]))
    assert made[0] == {
        "messages": [
            {"role": "user", "content": "Question 1?\n\nOf this."},
            {"role": "assistant", "content": "An answer."},
        ]
    }
    assert [turn["role"] for turn in made[1]["messages"]] == ["system", "user", "assistant", "user", "assistant"]


def test_an_answer_that_was_rated_several_times_is_trained_on_once() -> None:
    ratings = [row(1)._replace(rejected="Worse."), row(1)._replace(rejected="Bad."), row(2)._replace(rejected="Bad.")]
    shaped = TrainingFile("openai")
    assert len(lines(shaped, *ratings[:1])) + len(lines(shaped, *ratings[1:])) == shaped.lines == 2
    assert len(lines(TrainingFile("openai", is_training=False), *ratings)) == 3


def test_bedrock_as_its_schema_says() -> None:
    made = lines(TrainingFile("bedrock"), row(1), row(2, history=[SYSTEM, *TURNS]))
    assert made[0] == {
        "schemaVersion": "bedrock-conversation-2024",
        "messages": [
            {"role": "user", "content": [{"text": "Question 1?"}]},
            {"role": "assistant", "content": [{"text": "An answer."}]},
        ],
    }
    assert made[1]["system"] == [{"text": "Be brief."}]
    assert [turn["role"] for turn in made[1]["messages"]] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("provider", "model"), [("anthropic", None), ("bedrock", "anthropic.claude-3-haiku-20240307-v1:0:200k")]
)
def test_claude(provider: ProviderName, model: str | None) -> None:
    made = lines(TrainingFile(provider, model), row(1), row(2, history=[SYSTEM]))
    assert set(made[0]) == {"messages"}
    assert made[1] == {
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Question 2?"}, {"role": "assistant", "content": "An answer."}],
    }


def broken(shaped: TrainingFile, rows: list[Row]) -> dict[str, int | None]:
    shaped.encode(rows)
    return {one.rule: one.line for one in shaped.broken}


@pytest.mark.parametrize(("provider", "least"), [("openai", 10), ("fireworks", 3), ("anthropic", 32), ("mistral", 1)])
def test_the_least_number_of_examples(provider: ProviderName, least: int) -> None:
    assert broken(TrainingFile(provider), [row(n) for n in range(least)]) == {}
    short = TrainingFile(provider)
    assert broken(short, [row(n) for n in range(least - 1)]) == {"too_few_examples": None}
    with pytest.raises(ExportLimits, match=f"{least:,} examples or more"):
        short.require_fit()
    # One file to validate with may be shorter, and never empty.
    assert broken(TrainingFile(provider, is_training=False), [row()]) == {}
    assert broken(TrainingFile(provider, is_training=False), []) == {"too_few_examples": None}


def test_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    small = catalogue.Limits(min_examples=1, max_examples=2, max_file_bytes=100)
    monkeypatch.setattr(provider_formats, "limits_of", lambda *_: small)
    assert set(broken(TrainingFile("openai"), [row(n) for n in range(3)])) == {"too_many_examples", "file_too_large"}


def test_what_is_wrong_with_examples() -> None:
    tool = {"role": "tool", "content": "42"}
    rows = [row(n) for n in range(40)]
    rows[7] = row(history=[TURNS[0], tool])
    rows[9] = row(output=" ")
    rows[11] = row(history=[*TURNS, SYSTEM])
    rows[12] = row(output="")
    found = broken(TrainingFile("openai"), rows)
    assert found == {"role": 8, "empty_content": 10, "system_first": 12}
    rows[3] = row(history=[TURNS[0]])
    assert "alternation" not in broken(TrainingFile("openai"), rows)
    assert broken(TrainingFile("bedrock"), rows)["alternation"] == 4
    shaped = TrainingFile("openai")
    shaped.encode(rows)
    with pytest.raises(ExportLimits) as caught:
        shaped.require_fit()
    assert "In 2 examples, the first of them in line 10." in caught.value.detail
    assert {rule["rule"] for rule in caught.value.context["rules"]} == {"role", "empty_content", "system_first"}


def test_limits_are_the_catalogues() -> None:
    for name, provider in catalogue.providers().items():
        for model in provider.models if name in PROVIDERS else ():
            assert provider_formats.limits_of(name, model.id) == model.limits  # type: ignore[arg-type]
    claude = catalogue.providers()["bedrock"].find("anthropic.claude-3-haiku-20240307-v1:0:200k")
    assert claude is not None
    ours = provider_formats.limits_of("anthropic")
    assert (ours.min_examples, ours.max_examples) == (claude.limits.min_examples, claude.limits.max_examples)
    trained = {name for name, one in catalogue.providers().items() if one.fine_tuning and name != "local"}
    assert trained <= set(PROVIDERS), f"no shape for {trained - set(PROVIDERS)} (on {date.today()})"


def test_parquet_in_row_groups() -> None:
    with tempfile.TemporaryFile() as file:
        with ParquetFile(file) as written:
            for start in range(0, 25_000, 1000):
                written.add([row(n, history=[SYSTEM] if n == 3 else None) for n in range(start, start + 1000)])
        found = parquet.ParquetFile(file)
        assert [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)] == [10_000, 10_000, 5_000]
        table = found.read()
    assert table["id"].to_pylist() == [str(n) for n in range(25_000)]
    assert table["history"][3].as_py() == [SYSTEM]
    assert table["history"][4].as_py() is None


@pytest.fixture
async def planted(db: Database, tenant: Tenant) -> Planted:
    rows: list[dict[str, Any]] = [{"split": "eval" if n % 4 == 0 else "train"} for n in range(16)]
    rows[5]["history"] = [SYSTEM, *TURNS]
    return await plant(db, tenant, [*rows, {"is_valid": False}, {"split": "preview"}])


async def export(planted: Planted, status: int = 200, **params: Any) -> httpx.Response:
    answer = await planted.tenant.client.get(f"/api/datasets/{planted.dataset_id}/export", params=params)
    assert answer.status_code == status, answer.text
    return answer


async def test_every_format(planted: Planted) -> None:
    for kind, count in (("jsonl", 16), ("messages", 16), ("sharegpt", 16), ("alpaca", 16), ("prompt_completion", 16)):
        answer = await export(planted, format=kind)
        assert answer.headers["content-type"] == "application/jsonl"
        assert len(answer.content.splitlines()) == count
    bare = (await export(planted)).content
    assert bare == (await export(planted, format="jsonl")).content
    # The contract's defaults.
    assert bare == (await export(planted, format="jsonl", provider="openai")).content
    assert (await export(planted, format="csv")).headers["content-type"] == "text/csv; charset=utf-8"
    answer = await export(planted, format="parquet", split="eval")
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    assert (
        f'filename="dataset-{planted.dataset_id}-current-eval-parquet.parquet"' in answer.headers["content-disposition"]
    )
    table = parquet.read_table(io.BytesIO(answer.content))
    assert table["id"].to_pylist() == [planted.ids[n] for n in (0, 4, 8, 12)]


async def test_for_providers(planted: Planted) -> None:
    answer = await export(planted, provider="openai", split="train")
    assert (
        f'filename="dataset-{planted.dataset_id}-current-train-openai.jsonl"' in answer.headers["content-disposition"]
    )
    made = [json.loads(line) for line in answer.content.splitlines()]
    assert len(made) == 12
    assert made[3]["messages"][0] == SYSTEM
    refused = (await export(planted, 400, provider="anthropic")).json()
    assert refused["error_code"] == "EXPORT_LIMITS"
    assert [rule["rule"] for rule in refused["context"]["rules"]] == ["too_few_examples"]
    assert "32" in refused["detail"]
    await export(planted, provider="anthropic", split="eval")
    await export(planted, provider="bedrock", model="amazon.nova-micro-v1:0:128k")


async def test_a_version_for_a_provider(planted: Planted) -> None:
    before = (await export(planted, provider="openai")).content
    version = (await planted.send("POST", "/versions", None, 201))["number"]
    await planted.patch(1, {"data": {"output": "Changed."}})
    assert (await export(planted, provider="openai")).content != before
    assert (await export(planted, provider="openai", version=version)).content == before
    assert (await export(planted, 404, version=version + 1)).json()["error_code"] == "VERSION_NOT_FOUND"


async def test_what_cannot_be_exported(planted: Planted, make_tenant: Any) -> None:
    for both in ({"format": "csv", "provider": "openai"}, {"model": "gpt-4o"}):
        assert (await export(planted, 400, **both)).json()["error_code"] == "EXPORT_SHAPE"
    for bad in ({"format": "xml"}, {"provider": "local"}, {"split": "preview"}, {"version": 0}):
        await export(planted, 422, **bad)
    thief = await make_tenant()
    for params in ({}, {"provider": "openai"}, {"version": 1}):
        answer = await thief.client.get(f"/api/datasets/{planted.dataset_id}/export", params=params)
        assert (answer.status_code, answer.json()["error_code"]) == (404, "DATASET_NOT_FOUND")


async def test_many_at_once_give_the_same_file(planted: Planted) -> None:
    answers = await asyncio.gather(*[export(planted, provider="openai") for _ in range(8)])
    assert len({answer.content for answer in answers}) == 1
