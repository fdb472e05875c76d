"""Which model a name means, where it is asked, and with whose key."""

from dataclasses import dataclass
from typing import Final

from backend.kit.config import Settings
from backend.providers.llm.advice import of_account
from backend.providers.llm.anthropic import AnthropicModel
from backend.providers.llm.asking import Bounds, RetryingModel
from backend.providers.llm.mistral import MistralModel
from backend.providers.llm.openai_compatible import OpenAICompatibleModel

# Providers whose base models can be asked; a name of one of theirs is "provider/model".
ASKABLE: Final = ("openai", "anthropic", "mistral", "together", "fireworks")


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model and who has it: a provider, or, where that is empty, the server at LLM_BASE_URL.

    With `own_key` it is asked with the key that the user keeps for the provider, else with LLM_API_KEY.
    """

    provider: str
    model: str
    own_key: bool = False

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.model}" if self.provider else self.model


def choose(settings: Settings, name: str | None = None) -> ModelChoice | None:
    """The model of this name, LLM_MODEL without one; None when there is nobody to ask for it.

    The names in LLM_MODEL and LLM_JUDGE_MODEL are always the service's own: at LLM_BASE_URL, or, while that is empty,
    at the provider that they name, with LLM_API_KEY. That key belongs to LLM_MODEL's provider and goes to no other.
    """
    wanted = name or settings.llm_model
    is_configured = wanted in (settings.llm_model, settings.llm_judge_model)
    provider, model = parted(wanted)
    if settings.llm_base_url and wanted and (is_configured or not provider):
        return ModelChoice("", wanted)
    if not provider:
        return None
    is_paid_for = (
        is_configured and bool(settings.llm_api_key.get_secret_value()) and provider == parted(settings.llm_model)[0]
    )
    return ModelChoice(provider, model, own_key=not is_paid_for)


def choose_judge(settings: Settings, writer: ModelChoice, name: str | None = None) -> ModelChoice | None:
    """The model that scores examples: the named one, LLM_JUDGE_MODEL, or the one that wrote them."""
    wanted = name or settings.llm_judge_model
    return choose(settings, wanted) if wanted else writer


def open_model(
    settings: Settings, choice: ModelChoice, key: str | None = None, *, total_seconds: float | None = None
) -> RetryingModel:
    """The model, to be closed by `aclose`. `key` is the user's for a choice with `own_key`, and ignored otherwise.

    `total_seconds` bounds one answer with all its retries.
    """
    if choice.own_key and not key:
        raise ValueError(f"{choice.name} is asked with the user's key, and none was given")
    api_key = (key if choice.own_key else settings.llm_api_key.get_secret_value()) or ""
    bounds: Bounds = {
        "timeout_seconds": settings.llm_timeout_seconds,
        "max_concurrency": settings.llm_max_concurrency,
        "max_attempts": settings.llm_max_attempts,
    }
    if total_seconds is not None:
        bounds["total_seconds"] = total_seconds
    if not choice.provider:
        return OpenAICompatibleModel(base_url=settings.llm_base_url, model=choice.model, api_key=api_key, **bounds)
    url, advice = settings.provider_url(choice.provider), of_account(choice.provider, own_key=choice.own_key)
    match choice.provider:
        case "anthropic":
            return AnthropicModel(base_url=url, model=choice.model, api_key=api_key, advice=advice, **bounds)
        case "mistral":
            return MistralModel(base_url=url, model=choice.model, api_key=api_key, advice=advice, **bounds)
    return OpenAICompatibleModel(
        base_url=url,
        model=choice.model,
        api_key=api_key,
        advice=advice,
        prefix=f"{choice.provider}/",
        **bounds,
    )


def parted(name: str) -> tuple[str, str]:
    """Provider and model of a name; no provider when it names none."""
    provider, _, model = name.partition("/")
    return (provider, model) if provider in ASKABLE and model else ("", name)
