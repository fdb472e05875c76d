"""The catalogue on fixed days: what may be trained, what is refused with its date, and what is warned about."""

from datetime import date, timedelta

import pytest

from backend.providers import bundled, keys
from backend.providers.catalogue import (
    ModelNotTrainable,
    ProviderHasNoFineTuning,
    UnknownProvider,
    availability,
    providers,
    require_fine_tuning,
    require_trainable,
    warnings_of,
    working_bases,
)
from backend.providers.tuning.hyperparameters import RULES
from backend.providers.tuning.registry import HOSTED

MINI = "gpt-4.1-mini-2025-04-14"
CLOSES = date(2027, 1, 6)
TODAY = date(2026, 11, 22)


def test_an_open_base_is_taken_without_a_word() -> None:
    found = require_trainable("together", "Qwen/Qwen3-8B", TODAY)
    assert (found.model, found.warnings) == ("Qwen/Qwen3-8B", [])


@pytest.mark.parametrize("model", ["gpt-3.5-turbo", "gpt-4.1-nano-2025-04-14"])
def test_a_retired_base_is_refused_with_its_date_and_bases_that_work(model: str) -> None:
    before = require_trainable("openai", model, date(2026, 10, 22))
    assert "ends fine-tuning of this model on 2026-10-23" in before.warnings[0]
    with pytest.raises(ModelNotTrainable) as caught:
        require_trainable("openai", model, date(2026, 10, 23))
    error = caught.value
    assert (error.status, error.code) == (400, "MODEL_NOT_TRAINABLE")
    assert "2026-10-23" in error.detail
    assert error.context["closed_on"] == "2026-10-23"
    assert f"openai: {MINI}" in error.context["bases"]
    assert f"openai: {model}" not in error.context["bases"]


def test_the_warning_begins_thirty_days_before_the_end() -> None:
    def speaks_of_the_end(day: date) -> bool:
        return any("2027-01-06" in warning for warning in require_trainable("openai", MINI, day).warnings)

    assert not speaks_of_the_end(CLOSES - timedelta(days=31))
    assert speaks_of_the_end(CLOSES - timedelta(days=30))
    assert speaks_of_the_end(CLOSES - timedelta(days=1))
    with pytest.raises(ModelNotTrainable, match="2027-01-06"):
        require_trainable("openai", MINI, CLOSES)


def test_who_is_refused_by_the_provider_is_told_beforehand() -> None:
    assert not require_trainable("openai", MINI, date(2026, 5, 6)).warnings[1:]
    warnings = require_trainable("openai", MINI, date(2026, 7, 2)).warnings
    assert any("2026-05-07" in warning and "2026-07-02" in warning for warning in warnings)
    assert any("deprecated" in warning for warning in require_trainable("mistral", "open-mistral-7b", TODAY).warnings)


def test_when_a_provider_has_closed_the_others_are_named() -> None:
    with pytest.raises(ModelNotTrainable) as caught:
        require_trainable("openai", MINI, CLOSES)
    bases = caught.value.context["bases"]
    assert not any(base.startswith("openai:") for base in bases)
    assert bases[0] == f"local: {bundled.MODEL_ID}"
    for base in bases:
        provider, model = base.split(": ")
        require_trainable(provider, model, CLOSES)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelNotTrainable, match=MINI):
        require_trainable("openai", "gpt-9", TODAY)
    with pytest.raises(UnknownProvider, match="fireworks"):
        require_trainable("nobody", "x", TODAY)
    assert require_trainable("local", "any/model", TODAY).model == "any/model"


def test_anthropic_points_elsewhere() -> None:
    with pytest.raises(ProviderHasNoFineTuning, match=r"bedrock.*local") as caught:
        require_fine_tuning("anthropic")
    assert (caught.value.status, caught.value.code) == (400, "PROVIDER_HAS_NO_FINE_TUNING")


def test_limits_of_a_model_add_to_those_of_its_provider() -> None:
    assert require_trainable("openai", MINI, TODAY).limits.min_examples == 10
    haiku = providers()["bedrock"].find("anthropic.claude-3-haiku-20240307-v1:0:200k")
    assert haiku is not None
    assert (haiku.limits.min_examples, haiku.limits.suffix_characters) == (32, 24)
    assert availability(providers()["bedrock"], haiku, date(2026, 9, 9)) == "closing"
    assert availability(providers()["bedrock"], haiku, date(2026, 9, 10)) == "closed"
    assert warnings_of(providers()["bedrock"], haiku, TODAY) == []


def test_the_catalogue_and_the_code_name_the_same_providers() -> None:
    hosted = [one.id for one in providers().values() if one.fine_tuning and one.needs_key]
    assert sorted(hosted) == sorted(HOSTED) == sorted(RULES)
    assert {one.id for one in providers().values() if one.needs_key} == set(keys.PROVIDERS) - {"huggingface"}
    for provider in providers().values():
        names = [model.id for model in provider.models]
        assert len(names) == len(set(names))
        assert provider.pages or provider.id == "local"
    assert working_bases(date(2030, 1, 1))[0] == f"local: {bundled.MODEL_ID}"
