"""The catalogue as it stands today: which base models can be fine-tuned where, and what each provider takes."""

from datetime import UTC, date, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, StringConstraints

from backend.api.auth import ClaimsDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.platform.deps import WindowDep, shown
from backend.api.services import ServicesDep
from backend.providers.catalogue import (
    Availability,
    Provider,
    UnknownProvider,
    availability,
    providers,
    warnings_of,
)
from backend.providers.catalogue import BaseModel as CatalogueModel
from backend.providers.llm.base import ChatMessage, ChatRequest
from backend.providers.llm.choice import ASKABLE, ModelChoice, open_model
from backend.providers.tuning import hyperparameters
from backend.users import provider_keys

router = APIRouter(prefix="/models", tags=["models"])


class LimitsOut(BaseModel):
    """Null where the provider documents no bound."""

    min_examples: int
    max_examples: int | None
    max_file_bytes: int | None
    roles: list[str]
    suffix_characters: int | None


class PriceOut(BaseModel):
    cents_per_million_tokens: int
    currency: str
    page: str
    seen_on: date


class ModelOut(BaseModel):
    """`closes_on` is the first day on which it can no longer be trained, `retired_on` that of asking it."""

    provider: str
    model: str
    name: str
    availability: Availability
    warnings: list[str]
    closes_on: date | None
    retired_on: date | None
    context_tokens: int | None
    regions: list[str]
    limits: LimitsOut
    price: PriceOut | None


class ProviderOut(BaseModel):
    """`any_model`: takes more models than the list has. `hyperparameters` are the names that it accepts."""

    provider: str
    name: str
    fine_tuning: bool
    needs_key: bool
    any_model: bool
    capabilities: list[str]
    hyperparameters: list[str]
    closed_to_new_on: date | None
    closed_to_inactive_on: date | None
    closes_on: date | None
    deprecated: bool
    instead: str
    note: str
    pages: list[str]
    price_page: str


class QuestionIn(BaseModel):
    """A question to a provider's base model, asked with the caller's own key and at the caller's cost there."""

    provider: Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=30)]
    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=8000)]
    system_prompt: Annotated[str, StringConstraints(max_length=8000)] | None = None
    max_tokens: int = Field(default=256, ge=1, le=2048)
    # Left out where the model takes none.
    temperature: float = Field(default=0.0, ge=0, le=2)


class AnswerOut(BaseModel):
    """Tokens as the provider counts them."""

    response: str
    prompt_tokens: int
    completion_tokens: int


@router.get("", responses=error_responses(400, 401))
async def list_models(
    owner: OwnerDep,
    response: Response,
    window: WindowDep,
    provider: Annotated[str | None, Query(max_length=30)] = None,
    availability: Annotated[Availability | None, Query()] = None,
) -> list[ModelOut]:
    """Every base model of the catalogue; also those that are closed, with their dates."""
    if provider is not None and provider not in providers():
        raise UnknownProvider(provider=provider, accepted=", ".join(providers()))
    today = datetime.now(UTC).date()
    found = [
        model_out(one, base, today) for one in providers().values() if provider in (None, one.id) for base in one.models
    ]
    return list(shown(response, window, [model for model in found if availability in (None, model.availability)]))


@router.get("/providers", responses=error_responses(401))
async def list_providers(owner: OwnerDep, response: Response, window: WindowDep) -> list[ProviderOut]:
    return [provider_out(one) for one in shown(response, window, list(providers().values()))]


@router.post("/ask", responses=error_responses(400, 401, 502, 503))
async def ask_base_model(body: QuestionIn, claims: ClaimsDep, services: ServicesDep) -> AnswerOut:
    """Tries a base model before it is fine-tuned. No transaction is open while it thinks."""
    if body.provider not in ASKABLE:
        raise UnknownProvider(provider=body.provider, accepted=", ".join(ASKABLE))
    messages = [ChatMessage("user", body.prompt)]
    if body.system_prompt:
        messages.insert(0, ChatMessage("system", body.system_prompt))
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        model = open_model(
            services.settings,
            ModelChoice(body.provider, body.model, own_key=True),
            await provider_keys.reveal(session, services.sealer, owner.id, body.provider),
            total_seconds=services.settings.playground_timeout_seconds,
        )
    async with model:
        found = await model.complete(
            ChatRequest(messages=tuple(messages), max_tokens=body.max_tokens, temperature=body.temperature)
        )
    return AnswerOut(response=found.text, prompt_tokens=found.prompt_tokens, completion_tokens=found.completion_tokens)


def model_out(provider: Provider, base: CatalogueModel, today: date) -> ModelOut:
    limits, price = base.limits, base.price
    return ModelOut(
        provider=provider.id,
        model=base.id,
        name=base.name,
        availability=availability(provider, base, today),
        warnings=warnings_of(provider, base, today),
        closes_on=min((day for day in (provider.closes_on, base.closes_on) if day is not None), default=None),
        retired_on=base.retired_on,
        context_tokens=base.context_tokens,
        regions=list(base.regions),
        limits=LimitsOut(
            min_examples=limits.min_examples,
            max_examples=limits.max_examples,
            max_file_bytes=limits.max_file_bytes,
            roles=list(limits.roles),
            suffix_characters=limits.suffix_characters,
        ),
        price=None
        if price is None
        else PriceOut(
            cents_per_million_tokens=price.cents_per_million_tokens,
            currency=price.currency,
            page=price.page,
            seen_on=price.seen_on,
        ),
    )


def provider_out(provider: Provider) -> ProviderOut:
    return ProviderOut(
        provider=provider.id,
        name=provider.name,
        fine_tuning=provider.fine_tuning,
        needs_key=provider.needs_key,
        any_model=provider.any_model,
        capabilities=list(provider.capabilities),
        hyperparameters=list(hyperparameters.accepted(provider.id)),
        closed_to_new_on=provider.closed_to_new_on,
        closed_to_inactive_on=provider.closed_to_inactive_on,
        closes_on=provider.closes_on,
        deprecated=provider.deprecated,
        instead=provider.instead,
        note=provider.note,
        pages=list(provider.pages),
        price_page=provider.price_page,
    )
