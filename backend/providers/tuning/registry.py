"""The adapter of each provider, by its name in the catalogue."""

from typing import Final

from backend.kit.config import Settings
from backend.providers.catalogue import require_fine_tuning
from backend.providers.tuning.base import TuningProvider
from backend.providers.tuning.bedrock import BedrockTuning
from backend.providers.tuning.fireworks import FireworksTuning
from backend.providers.tuning.mistral import MistralTuning
from backend.providers.tuning.openai import OpenAITuning
from backend.providers.tuning.together import TogetherTuning

HOSTED: Final = ("openai", "mistral", "together", "fireworks", "bedrock")


def open_provider(settings: Settings, name: str, key: str) -> TuningProvider:
    """A provider to be used with one user's key, and closed after it with `aclose`.

    Raises UnknownProvider and ProviderHasNoFineTuning; 'local' is no outside provider and a ValueError.
    """
    require_fine_tuning(name)
    url = settings.provider_url(name)
    match name:
        case "openai":
            return OpenAITuning(key, url)
        case "mistral":
            return MistralTuning(key, url)
        case "together":
            return TogetherTuning(key, url)
        case "fireworks":
            return FireworksTuning(key, url)
        case "bedrock":
            return BedrockTuning(key, settings.bedrock_endpoint_url)
    raise ValueError(f"{name} is not reached through an adapter")
