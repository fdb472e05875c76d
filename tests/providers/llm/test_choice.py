"""Which model a name means, and whose key it is asked with."""

import pytest
from pydantic import SecretStr

from backend.kit.config import Settings
from backend.providers.llm.anthropic import AnthropicModel
from backend.providers.llm.choice import ASKABLE, ModelChoice, choose, choose_judge, open_model
from backend.providers.llm.mistral import MistralModel
from backend.providers.llm.openai_compatible import OpenAICompatibleModel

SERVER = "http://127.0.0.1:1/v1"
OF_THE_SERVICE = "KeyOfTheService"
OF_THE_USER = "KeyOfTheUser"


def configured(url: str, model: str, key: str = OF_THE_SERVICE, judge: str = "") -> Settings:
    values = {"llm_base_url": url, "llm_model": model, "llm_judge_model": judge, "llm_api_key": SecretStr(key)}
    return Settings(_env_file=None, **values)  # type: ignore[arg-type,call-arg]


@pytest.mark.parametrize(
    ("url", "model", "key", "name", "expected"),
    [
        # A server: its own names, whatever they look like, and everybody's own providers.
        (SERVER, "qwen3:8b", "", None, ModelChoice("", "qwen3:8b")),
        (SERVER, "qwen3:8b", "", "llama3", ModelChoice("", "llama3")),
        (SERVER, "qwen3:8b", "", "Qwen/Qwen3-8B", ModelChoice("", "Qwen/Qwen3-8B")),
        (SERVER, "openai/gpt-oss-20b", "", None, ModelChoice("", "openai/gpt-oss-20b")),
        (SERVER, "openai/gpt-oss-20b", "", "openai/gpt-oss-20b", ModelChoice("", "openai/gpt-oss-20b")),
        (SERVER, "qwen3:8b", OF_THE_SERVICE, "openai/gpt-5", ModelChoice("openai", "gpt-5", own_key=True)),
        (SERVER, "", "", "anthropic/claude", ModelChoice("anthropic", "claude", own_key=True)),
        (SERVER, "", "", "together/Qwen/Qwen3-8B", ModelChoice("together", "Qwen/Qwen3-8B", own_key=True)),
        (SERVER, "", "", None, None),
        # No server: LLM_MODEL is a provider's, with the service's key where there is one.
        ("", "anthropic/claude", OF_THE_SERVICE, None, ModelChoice("anthropic", "claude")),
        ("", "anthropic/claude", "", None, ModelChoice("anthropic", "claude", own_key=True)),
        ("", "anthropic/claude", OF_THE_SERVICE, "anthropic/o", ModelChoice("anthropic", "o", own_key=True)),
        ("", "anthropic/claude", OF_THE_SERVICE, "llama3", None),
        ("", "qwen3:8b", "", None, None),
        ("", "bedrock/nova", "", None, None),
        ("", "anthropic/", "", None, None),
        ("", "", "", "mistral/small", ModelChoice("mistral", "small", own_key=True)),
    ],
)
def test_choose(url: str, model: str, key: str, name: str | None, expected: ModelChoice | None) -> None:
    found = choose(configured(url, model, key), name)
    assert found == expected
    if found is not None:
        assert found.name == (name or model)


def test_the_judge_is_named_configured_or_the_writer() -> None:
    writer = ModelChoice("anthropic", "claude", own_key=True)
    plain = configured(SERVER, "qwen3:8b")
    assert choose_judge(plain, writer) == writer
    assert choose_judge(plain, writer, "mistral/large") == ModelChoice("mistral", "large", own_key=True)
    assert choose_judge(configured(SERVER, "qwen3:8b", judge="strict"), writer) == ModelChoice("", "strict")
    assert choose_judge(configured("", "anthropic/claude"), writer, "strict") is None


def test_the_key_of_the_service_goes_to_its_provider_only() -> None:
    settings = configured("", "anthropic/claude", judge="mistral/large")
    assert choose(settings, "anthropic/claude") == ModelChoice("anthropic", "claude")
    assert choose(settings, "mistral/large") == ModelChoice("mistral", "large", own_key=True)


@pytest.mark.parametrize("provider", ASKABLE)
def test_each_provider_opens_with_the_right_key(provider: str) -> None:
    settings = configured(SERVER, "qwen3:8b")
    kind = {"anthropic": AnthropicModel, "mistral": MistralModel}.get(provider, OpenAICompatibleModel)
    own = open_model(settings, ModelChoice(provider, "m", own_key=True), OF_THE_USER)
    assert type(own) is kind
    assert own.model == f"{provider}/m"
    assert own._api_key == OF_THE_USER
    assert open_model(settings, ModelChoice(provider, "m"), OF_THE_USER)._api_key == OF_THE_SERVICE
    with pytest.raises(ValueError, match="user's key") as caught:
        open_model(settings, ModelChoice(provider, "m", own_key=True))
    assert OF_THE_SERVICE not in str(caught.value)


def test_a_users_key_never_goes_to_the_server_of_the_service() -> None:
    assert open_model(configured(SERVER, "m"), ModelChoice("", "m"), OF_THE_USER)._api_key == OF_THE_SERVICE
    assert open_model(configured(SERVER, "m", key=""), ModelChoice("", "m"), OF_THE_USER)._api_key == ""
