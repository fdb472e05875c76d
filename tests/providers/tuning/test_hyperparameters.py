"""Hyperparameters are checked by the rules of the provider that gets them."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.kit.config import Settings
from backend.providers.answers import quoted, retry_after_seconds, words_of
from backend.providers.catalogue import ProviderHasNoFineTuning
from backend.providers.tuning.hyperparameters import RULES, BadHyperparameter, checked, on_the_wire
from backend.providers.tuning.registry import HOSTED, open_provider
from tests.providers.tuning.conftest import BEDROCK_KEY, SECRET
from tests.providers.tuning.outside import spec

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("openai", {"n_epochs": "auto", "batch_size": 256, "learning_rate_multiplier": 0.05}),
    ("mistral", {"training_steps": 10, "learning_rate": 1e-8, "n_epochs": 0.5}),
    ("together", {"n_epochs": 1, "batch_size": "max", "learning_rate": 1e-5, "lora_r": 8}),
    ("fireworks", {"n_epochs": 2, "lora_rank": 16, "learning_rate": 1e-4}),
    ("bedrock", {"n_epochs": 5, "learning_rate": 1e-5, "batch_size": 1}),
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("openai", {"learning_rate": 0.1}, r"'learning_rate'.*Use learning_rate_multiplier.*n_epochs, batch_size"),
    ("openai", {"epochs": 3}, r"'epochs'.*Use n_epochs"),
    ("openai", {"n_epochs": 0}, "n_epochs must be at least 1 and at most 50 or 'auto'"),
    ("openai", {"n_epochs": 51}, "n_epochs"),
    ("openai", {"n_epochs": 1.5}, "whole number"),
    ("openai", {"n_epochs": True}, "number"),
    ("openai", {"n_epochs": "many"}, "number or 'auto'"),
    ("openai", {"learning_rate_multiplier": 0}, "more than 0"),
    ("openai", {"learning_rate_multiplier": math.nan}, "more than 0"),
    ("openai", {"learning_rate_multiplier": math.inf}, "more than 0"),
    ("openai", {"n_epochs": math.inf}, "n_epochs must be"),
    ("openai", {"n_epochs": [3]}, "number"),
    ("mistral", {"learning_rate": 5}, "at most 1"),
    ("mistral", {"learning_rate_multiplier": 1}, "Use learning_rate"),
    ("together", {"n_epochs": "auto"}, "number"),
    ("fireworks", {"temperature": 1}, "takes no hyperparameter 'temperature'"),
    ("bedrock", {"epochCount": 2}, "Use n_epochs"),
]


@pytest.mark.parametrize(("provider", "given"), GOOD)
def test_what_a_provider_takes(provider: str, given: dict[str, Any]) -> None:
    assert checked(provider, {**given, next(iter(RULES[provider])): given.get("n_epochs", 1)})
    assert checked(provider, dict.fromkeys(given)) == {}
    assert len(on_the_wire(provider, given)) == len(given)


@pytest.mark.parametrize(("provider", "given", "words"), BAD)
def test_what_a_provider_refuses(provider: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadHyperparameter, match=words) as caught:
        checked(provider, given)
    assert (caught.value.status, caught.value.code) == (400, "BAD_HYPERPARAMETER")
    assert caught.value.detail.endswith(f"Accepted hyperparameters: {', '.join(RULES[provider])}.")


def test_mistral_rules_are_those_of_its_description() -> None:
    description = yaml.safe_load(spec("mistral.openapi.yaml").read_text())
    known = description["components"]["schemas"]["CompletionTrainingParametersIn"]["properties"]
    assert {rule.wire for rule in RULES["mistral"].values()} <= set(known)
    for rule in RULES["mistral"].values():
        shape = next((one for one in known[rule.wire].get("anyOf", ()) if one["type"] != "null"), known[rule.wire])
        assert rule.whole is (shape["type"] == "integer")
        least = shape.get("exclusiveMinimum", shape.get("minimum"))
        assert float(least) == rule.least
        if "maximum" in shape:
            assert shape["maximum"] == rule.most


@pytest.mark.parametrize("name", HOSTED)
async def test_the_registry_opens_each_provider(name: str) -> None:
    provider = open_provider(Settings(), name, BEDROCK_KEY if name == "bedrock" else SECRET)
    assert provider.name == name
    assert SECRET not in repr(provider)
    await provider.aclose()


def test_the_registry_has_no_other() -> None:
    with pytest.raises(ProviderHasNoFineTuning):
        open_provider(Settings(), "anthropic", SECRET)
    with pytest.raises(ValueError, match="local"):
        open_provider(Settings(), "local", SECRET)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7),
        ("-3", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("soon", None),
        ("nan", None),
        ("9e9", 86400),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header) == seconds


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "A"}}', "A"),
        (b'{"error": "B"}', "B"),
        (b'{"message": "C", "code": 3}', "C"),
        (b'{"detail": [{"loc": ["body"], "msg": "D"}, {"msg": "E"}]}', "D; E"),
        (b"<html>F</html>", "<html>F</html>"),
        (b"{}", ""),
        (b"", ""),
    ],
)
def test_the_words_in_an_error(body: bytes, words: str) -> None:
    assert words_of(body) == words


def test_quoting_hides_whole_and_partial_keys() -> None:
    assert quoted("Incorrect API key provided: sk-proj-****abcd.", "x") == "Incorrect API key provided: [key]"
    assert quoted(f" {SECRET}\n twice {SECRET}. ", SECRET) == "[key] twice [key]"
    assert quoted("plain", "") == "plain"
    assert len(quoted("a" * 10_000)) == 500


def test_every_page_that_is_cited_stands_in_the_documentation(tmp_path: Path) -> None:
    """docs/providers.md names each provider and each of its dates."""
    from backend.providers.catalogue import providers

    text = (Path(__file__).resolve().parents[3] / "docs" / "providers.md").read_text()
    for provider in providers().values():
        assert f"`{provider.id}`" in text
        for day in (provider.closed_to_new_on, provider.closed_to_inactive_on, provider.closes_on):
            assert day is None or day.isoformat() in text
