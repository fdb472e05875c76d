"""Characters: what is left, what was booked, what work would cost before it starts, and what contents are good for."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field, model_validator
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.auth import ClaimsDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.language import PlatformLanguage
from backend.api.platform import character_words as words
from backend.api.platform.deps import LARGEST_ID, WindowDep, count_all
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.billing import charging, ledger
from backend.billing import queries as entries
from backend.billing.models import LedgerEntry
from backend.contents import queries as content_queries
from backend.contents.models import Content
from backend.datasets import content_quality
from backend.datasets import queries as dataset_queries
from backend.datasets.content_quality import UsageType
from backend.kit.owner import Owner
from backend.projects import queries as project_queries

router = APIRouter(prefix="/characters", tags=["characters"])

MOST_CHARACTERS = 10**12
_PENDING = ("pending", "processing")
# What was given cost nothing.
_UNPRICED = frozenset({ledger.GRANT, ledger.COMPLIMENTARY, ledger.ADJUSTMENT})

CharacterCount = Annotated[int, Field(ge=0, le=MOST_CHARACTERS, strict=True)]
RowNumber = Annotated[int, Field(ge=1, le=LARGEST_ID)]
ContentIds = Annotated[list[RowNumber], Field(min_length=1, max_length=1000)]


class UsageStatsOut(BaseModel):
    free_characters_remaining: int
    total_characters_used: int
    total_characters_purchased: int = Field(description="Without those that were refunded")
    available_characters: int = Field(description="Without those that are held")
    held_characters: int = Field(description="Reserved for work that is under way")
    owed_characters: int = Field(description="Used before their money went back; the next purchase pays them")


class PricingOut(BaseModel):
    """Prices in units of the currency."""

    price_per_character: float
    free_characters: int
    currency: str
    checkout_minimum_cents: int
    complimentary_characters_per_month: int


class TransactionOut(BaseModel):
    """Positive amounts were added, negative ones used or taken. `description` is French, or English on request."""

    id: int
    user_id: int
    kind: str
    amount: int
    balance_after: int
    description: str
    dataset_id: int | None = Field(description="While there is such a dataset")
    payment_id: int | None
    price_per_character: float = Field(description="At that time; 0 for what was given")
    total_price: float = Field(description="In units of the currency")
    created_at: datetime


class QualityIn(BaseModel):
    """With `content_ids` the texts themselves are judged, and `character_count` is the server's own."""

    character_count: CharacterCount | None = None
    usage_type: UsageType
    content_ids: ContentIds | None = None

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.character_count is None and self.content_ids is None:
            raise ValueError("give character_count or content_ids")
        return self


class QualityDetailsOut(BaseModel):
    """What was found in the texts. The score is the product of `factors`, each from 0 to 1."""

    factors: dict[str, float]
    characters_read: int
    passages: int
    variety: float = Field(description="Distinct word trigrams over all, in windows of 2,000 words")
    exact_duplicates: int
    near_duplicates: int
    duplicate_share: float = Field(description="Share of the characters")
    languages: dict[str, float] = Field(description="Shares of the passages")


class QualityOut(BaseModel):
    character_count: int
    usage_type: UsageType
    score: float
    suggestions: list[str]
    details: QualityDetailsOut | None = Field(description="With `content_ids`")


class QuoteIn(BaseModel):
    """Work on the named contents, or on all documents of a project, or an estimate of so many characters.

    Where contents are named, the server counts them, and `character_count` says nothing.
    """

    project_id: RowNumber | None = None
    content_ids: ContentIds | None = None
    character_count: CharacterCount | None = None

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.project_id is None and self.content_ids is None and self.character_count is None:
            raise ValueError("give content_ids, project_id or character_count")
        return self


class QuoteLineOut(BaseModel):
    kind: str
    characters: int
    amount_cents: int
    sentence: str


class QuoteOut(BaseModel):
    """`total_price` and `price_per_character` are in units of the currency."""

    character_count: int
    from_free: int
    from_balance: int
    complimentary: int
    to_pay: int
    owed: int = Field(description="Bought besides: used before its money went back")
    is_free: bool
    amount_cents: int
    total_price: float
    characters_bought: int = Field(description="What is beyond the work stays on the balance")
    price_per_character: float
    currency: str
    lines: list[QuoteLineOut] = Field(description="The reasoning; amounts add up to amount_cents")
    pending_content_ids: list[int] = Field(description="Contents whose characters are not known yet")


@router.get("/usage-stats", responses=error_responses(401))
async def get_usage_stats(owner: OwnerDep, session: SessionDep, services: ServicesDep) -> UsageStatsOut:
    found = await ledger.balance(session, owner.id)
    return UsageStatsOut(
        free_characters_remaining=found.free_remaining(services.settings.free_characters),
        total_characters_used=found.used,
        total_characters_purchased=max(found.purchased, 0),
        available_characters=found.available,
        held_characters=found.held,
        owed_characters=found.owed,
    )


@router.get("/pricing", responses=error_responses(401))
async def get_pricing(_: OwnerDep, services: ServicesDep) -> PricingOut:
    settings = services.settings
    return PricingOut(
        price_per_character=float(settings.price_per_character),
        free_characters=settings.free_characters,
        currency=settings.currency,
        checkout_minimum_cents=settings.checkout_minimum_cents,
        complimentary_characters_per_month=settings.complimentary_characters_per_month,
    )


@router.get("/transactions", responses=error_responses(401))
async def list_transactions(
    owner: OwnerDep,
    session: SessionDep,
    services: ServicesDep,
    window: WindowDep,
    response: Response,
    language: PlatformLanguage,
) -> list[TransactionOut]:
    """What was booked, newest first. A purchase stands here once it is paid."""
    page = await entries.page_of_entries(session, owner.id, window)
    count_all(response, page.total)
    named = {UUID(entry.params["dataset"]) for entry in page.items if "dataset" in entry.params}
    datasets = await dataset_queries.names_of(session, owner, named)
    price = services.settings.price_per_character
    found = []
    for entry in page.items:
        number, name = (
            datasets.get(UUID(entry.params["dataset"]), (None, None)) if "dataset" in entry.params else (None, None)
        )
        each, total = _prices(entry, price)
        found.append(
            TransactionOut(
                id=entry.id,
                user_id=entry.user_id,
                kind=entry.kind,
                amount=entry.characters,
                balance_after=entry.balance_after,
                description=words.describe_entry(entry, name, language),
                dataset_id=number,
                payment_id=entry.params.get("payment_id"),
                price_per_character=float(each),
                total_price=float(total),
                created_at=entry.created_at,
            )
        )
    return found


@router.post("/quality-assessment", responses=error_responses(401, 404))
async def assess_quality(
    body: QualityIn, claims: ClaimsDep, services: ServicesDep, language: PlatformLanguage
) -> QualityOut:
    """A score from 0 to 1, from the number of characters, or with `content_ids` from the texts themselves.

    No transaction is open while they are read.
    """
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        contents = await content_queries.list_of_owner(session, owner, body.content_ids or [])
    if body.content_ids is None:
        count = body.character_count or 0
        score = content_quality.score(count, body.usage_type)
        said = words.suggestions(score, None, language)
        return QualityOut(
            character_count=count, usage_type=body.usage_type, score=score, suggestions=said, details=None
        )
    passages = await content_quality.passages_of(services.storage, contents)
    found = await asyncio.to_thread(content_quality.judge, passages)
    count = sum(content.character_count for content in contents)
    score = content_quality.score(count, body.usage_type, found)
    return QualityOut(
        character_count=count,
        usage_type=body.usage_type,
        score=score,
        suggestions=words.suggestions(score, found, language),
        details=QualityDetailsOut(factors=words.factors(count, body.usage_type, found), **asdict(found)),
    )


@router.post("/quote", responses=error_responses(401, 404))
async def quote_work(
    body: QuoteIn, owner: OwnerDep, session: SessionDep, services: ServicesDep, language: PlatformLanguage
) -> QuoteOut:
    """What work would cost now, with every step of the reasoning. Nothing is reserved."""
    settings = services.settings
    contents = await _contents(session, owner, body)
    count = body.character_count or 0
    if contents is not None:
        count = sum(content.character_count for content in contents)
    pending = [content.id for content in contents or () if content.status in _PENDING]
    quote = await charging.quote(session, settings, owner.id, count)
    lines = [
        QuoteLineOut(
            **asdict(line),
            sentence=words.explain_line(
                line,
                quote,
                minimum_cents=settings.checkout_minimum_cents,
                cap=settings.complimentary_characters_per_month,
                language=language,
            ),
        )
        for line in quote.lines
    ]
    if services.local_owner is not None:
        lines = [QuoteLineOut(kind="not_billed", characters=count, amount_cents=0, sentence=words.LOCAL[language])]
    elif not count:
        lines = [QuoteLineOut(kind="nothing", characters=0, amount_cents=0, sentence=words.NOTHING[language])]
    if pending:
        sentence = words.PENDING[language].format(n=len(pending))
        lines.append(QuoteLineOut(kind="pending", characters=0, amount_cents=0, sentence=sentence))
    return QuoteOut(
        character_count=count,
        from_free=quote.from_free,
        from_balance=quote.from_balance,
        complimentary=quote.complimentary,
        to_pay=quote.to_pay,
        owed=quote.owed,
        is_free=quote.is_free,
        amount_cents=quote.amount_cents,
        total_price=float(Decimal(quote.amount_cents) / 100),
        characters_bought=quote.characters_bought,
        price_per_character=float(quote.price_per_character),
        currency=quote.currency,
        lines=lines,
        pending_content_ids=pending,
    )


async def _contents(session: AsyncSession, owner: Owner, body: QuoteIn) -> Sequence[Content] | None:
    """Those that are named; all documents of a project that is named alone; None for an estimate."""
    project = None
    if body.project_id is not None:
        project = await project_queries.get_by_number(session, owner, body.project_id)
    if body.content_ids is not None:
        if project is not None:
            return await content_queries.list_by_number(session, project.id, body.content_ids)
        return await content_queries.list_of_owner(session, owner, body.content_ids)
    if project is not None and body.character_count is None:
        return await content_queries.list_documents(session, project.id)
    return None


def _prices(entry: LedgerEntry, price_now: Decimal) -> tuple[Decimal, Decimal]:
    """Of one character and of the whole entry; a purchase cost what was paid for it."""
    params: dict[str, Any] = entry.params
    if entry.kind in _UNPRICED or "unbilled" in params:
        return Decimal(0), Decimal(0)
    each = Decimal(params.get("price_per_character", price_now))
    if entry.kind == ledger.PURCHASE and "amount_cents" in params:
        return each, Decimal(params["amount_cents"]) / 100
    return each, each * abs(entry.characters)
