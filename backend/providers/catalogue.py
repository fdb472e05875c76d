"""The dated catalogue of providers and base models: what can be trained where, within which limits, and until when."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from backend.kit.errors import DomainError

Availability = Literal["open", "restricted", "deprecated", "closing", "closed"]
WARNING_DAYS: Final = 30
_FILE: Final = Path(__file__).with_name("catalogue.toml")
_NAMES_IN_A_SENTENCE: Final = 12


class UnknownProvider(DomainError):
    code = "UNKNOWN_PROVIDER"
    template = "There is no provider '{provider}'. Providers: {accepted}."


class ProviderHasNoFineTuning(DomainError):
    code = "PROVIDER_HAS_NO_FINE_TUNING"
    template = "{name} has no fine-tuning of its own. {instead}"


class ModelNotTrainable(DomainError):
    code = "MODEL_NOT_TRAINABLE"
    template = "'{model}' cannot be fine-tuned at {provider}: {reason} Bases that work now: {working}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a training file must keep to; None where the provider documents no bound. Sizes in bytes."""

    min_examples: int = 1
    max_examples: int | None = None
    max_file_bytes: int | None = None
    roles: tuple[str, ...] = ("system", "user", "assistant")
    suffix_characters: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Cents of `currency` for a million tokens of training, as the vendor's page said on a day."""

    cents_per_million_tokens: int
    currency: str
    page: str
    seen_on: date


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """`closes_on` is the first day on which it can no longer be trained; `retired_on` that of asking it."""

    id: str
    name: str
    context_tokens: int | None = None
    closes_on: date | None = None
    retired_on: date | None = None
    regions: tuple[str, ...] = ()
    limits: Limits
    price: Price | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """`any_model`: names beyond the listed ones are taken, and checked where they are resolved."""

    id: str
    name: str
    fine_tuning: bool
    needs_key: bool
    any_model: bool = False
    capabilities: tuple[str, ...] = ()
    closed_to_new_on: date | None = None
    closed_to_inactive_on: date | None = None
    closes_on: date | None = None
    deprecated: bool = False
    instead: str = ""
    note: str = ""
    pages: tuple[str, ...] = ()
    price_page: str = ""
    models: tuple[BaseModel, ...] = ()

    def find(self, model: str) -> BaseModel | None:
        return next((known for known in self.models if known.id == model), None)


@dataclass(frozen=True, slots=True)
class Trainable:
    """A base that may be trained, with its limits and what the user should know beforehand."""

    provider: Provider
    model: str
    limits: Limits
    warnings: list[str] = field(default_factory=list)


def require_fine_tuning(provider: str) -> Provider:
    """Raises UnknownProvider, ProviderHasNoFineTuning."""
    found = providers().get(provider)
    if found is None:
        raise UnknownProvider(provider=provider[:100], accepted=", ".join(providers()))
    if not found.fine_tuning:
        raise ProviderHasNoFineTuning(provider=found.id, name=found.name, instead=found.instead)
    return found


def require_trainable(provider: str, model: str, on: date) -> Trainable:
    """The base model, with warnings of what ends soon. Raises UnknownProvider, ProviderHasNoFineTuning,
    ModelNotTrainable (unknown, or closed on that day) with the bases that work."""
    found = require_fine_tuning(provider)
    base = found.find(model)
    if base is None and not found.any_model:
        raise _not_trainable(found, model, "it is not in the catalogue.", on)
    ends = _end_of(found, base)
    if ends is not None and ends <= on:
        raise _not_trainable(found, model, f"fine-tuning it ended on {ends.isoformat()}.", on, ended=ends)
    limits = base.limits if base else Limits()
    return Trainable(found, model, limits, _warnings(found, base, on))


def availability(provider: Provider, base: BaseModel | None, on: date) -> Availability:
    """How a base stands on a day, for the list of models."""
    ends = _end_of(provider, base)
    if ends is not None and ends <= on:
        return "closed"
    if ends is not None and ends <= on + timedelta(days=WARNING_DAYS):
        return "closing"
    if provider.deprecated:
        return "deprecated"
    if provider.closed_to_new_on is not None and provider.closed_to_new_on <= on:
        return "restricted"
    return "open"


def warnings_of(provider: Provider, base: BaseModel | None, on: date) -> list[str]:
    """What a user should know before training it on that day; empty for what is closed."""
    return [] if availability(provider, base, on) == "closed" else _warnings(provider, base, on)


def working_bases(on: date, provider: Provider | None = None) -> list[str]:
    """'provider/model' of what can be trained on a day, those of the given provider first; 'local' always can."""
    order = sorted(providers().values(), key=lambda one: (provider is None or one.id != provider.id, one.id != "local"))
    return [
        f"{one.id}: {base.id}"
        for one in order
        if one.fine_tuning
        for base in one.models
        if availability(one, base, on) in ("open", "restricted", "closing")
    ]


@lru_cache
def providers() -> dict[str, Provider]:
    """The providers by id, in the catalogue's order."""
    with _FILE.open("rb") as file:
        content = tomllib.load(file)
    return {name: _read_provider(name, table) for name, table in content["providers"].items()}


def _not_trainable(provider: Provider, model: str, reason: str, on: date, *, ended: date | None = None) -> DomainError:
    bases = working_bases(on, provider)
    return ModelNotTrainable(
        provider=provider.id,
        model=model[:300],
        reason=reason,
        working=", ".join(bases[:_NAMES_IN_A_SENTENCE]),
        closed_on=None if ended is None else ended.isoformat(),
        bases=bases,
    )


def _end_of(provider: Provider, base: BaseModel | None) -> date | None:
    """The first day on which training is over: the provider's, the model's, or the end of the model itself."""
    days = [provider.closes_on, *((base.closes_on, base.retired_on) if base else ())]
    return min((day for day in days if day is not None), default=None)


def _warnings(provider: Provider, base: BaseModel | None, on: date) -> list[str]:
    found = []
    soon = on + timedelta(days=WARNING_DAYS)
    ends = _end_of(provider, base)
    if ends is not None and on < ends <= soon:
        found.append(f"{provider.name} ends fine-tuning of this model on {ends.isoformat()}.")
    if base and base.retired_on is not None and on < base.retired_on:
        days = (base.retired_on - on).days
        found.append(
            f"The model and what is trained from it can be asked until {base.retired_on.isoformat()}, {days} days more."
        )
    if provider.deprecated:
        found.append(f"{provider.name} documents its fine-tuning as deprecated and no longer supported.")
    if provider.closed_to_new_on is not None and provider.closed_to_new_on <= on:
        since = f"organisations new since {provider.closed_to_new_on.isoformat()}"
        if provider.closed_to_inactive_on is not None and provider.closed_to_inactive_on <= on:
            since += f", and inactive ones since {provider.closed_to_inactive_on.isoformat()}"
        found.append(f"{provider.name} refuses {since}; whether yours may train, only {provider.name} knows.")
    return found


def _read_provider(name: str, table: dict[str, Any]) -> Provider:
    limits = table.pop("limits", {})
    models = tuple(_read_model(entry, limits) for entry in table.pop("models", ()))
    return Provider(id=name, models=models, **_tuples(table))


def _read_model(entry: dict[str, Any], limits: dict[str, Any]) -> BaseModel:
    own = entry.pop("limits", {})
    price = entry.pop("price", None)
    return BaseModel(
        limits=Limits(**_tuples({**limits, **own})), price=Price(**price) if price else None, **_tuples(entry)
    )


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in table.items()
    }
