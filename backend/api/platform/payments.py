"""Money: characters that are bought, plans, what was paid, and the door at which Stripe tells what happened."""

import logging
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.auth import ClaimsDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.idempotency import HEADER, KEY_DOCUMENTED, REPLAYED, place_once
from backend.api.platform.deps import WindowDep, count_all
from backend.api.services import Services, ServicesDep
from backend.api.session import SessionDep
from backend.billing import checkout, inbox, payments, subscriptions
from backend.billing.models import Order
from backend.kit import language
from backend.kit.language import Language
from backend.kit.owner import Owner
from backend.providers.stripe import PaymentsNotConfigured, require_signature

log = logging.getLogger(__name__)

router = APIRouter(tags=["payments"])
# Without a login and without a rate limit: what comes here is known by its signature.
signed_router = APIRouter(tags=["payments"])

MOST_CHARACTERS = 100_000_000
_WAITING: dict[Language, str] = {
    "fr": "Achat en attente de {count} caractères",
    "en": "Pending purchase of {count} characters",
}


class WebhookOut(BaseModel):
    status: str = "success"


class PurchaseIn(BaseModel):
    character_count: Annotated[int, Field(ge=1, le=MOST_CHARACTERS, strict=True)]


class PurchaseOut(BaseModel):
    """`id` is the order's. `price_per_character` and `total_price` are in units of the currency."""

    id: int
    user_id: int
    amount: int
    description: str
    dataset_id: None = None
    payment_id: int
    price_per_character: float
    total_price: float
    currency: str
    checkout_url: str
    created_at: datetime


class SubscribeIn(BaseModel):
    plan: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=30)]


class CheckoutOut(BaseModel):
    checkout_url: str


class PortalOut(BaseModel):
    portal_url: str


class InvoiceOut(BaseModel):
    """As Stripe has it; amounts in cents."""

    id: str
    number: str | None
    status: str | None
    amount_due_cents: int
    amount_paid_cents: int
    currency: str
    created_at: datetime
    hosted_invoice_url: str | None
    invoice_pdf: str | None


class PaymentOut(BaseModel):
    """`type` is the order's payment_type, or `subscription`. What is back at the payer is in `refunded_...`."""

    id: int
    order_id: int | None
    type: str
    status: str
    amount_cents: int
    currency: str
    character_count: int
    refunded_cents: int
    refunded_characters: int
    dispute_status: str | None
    created_at: datetime
    paid_at: datetime | None


@signed_router.post("/checkout/webhook", responses=error_responses(400, 503))
async def receive_stripe_event(
    request: Request,
    services: ServicesDep,
    signature: Annotated[str | None, Header(alias="Stripe-Signature")] = None,
) -> WebhookOut:
    """Keeps an event of Stripe's and answers; what it means is worked out afterwards, from the kept row.

    400 when the signature does not fit; 503 when no secret is set, or the event could not be kept and must come again.
    """
    secrets = [secret.get_secret_value() for secret in services.settings.stripe_webhook_secrets]
    if not secrets:
        raise PaymentsNotConfigured()
    body = await request.body()
    require_signature(body, signature, secrets)
    event = _event_of(body)
    if event is None:
        log.warning("a signed body is no event of Stripe's: subscribe the endpoint to snapshot events")
        return WebhookOut()
    async with services.db.transaction() as session:
        number = await inbox.keep(session, event)
    if number is not None:
        # Beside the answer: Stripe must not wait for a broker that is slow.
        services.background.start(_kick(services, number))
    return WebhookOut()


@router.post(
    "/characters/purchase",
    status_code=201,
    dependencies=[KEY_DOCUMENTED],
    responses=error_responses(400, 401, 409, 502, 503),
)
async def purchase_characters(
    body: PurchaseIn, request: Request, claims: ClaimsDep, services: ServicesDep, response: Response
) -> PurchaseOut:
    """Opens a checkout; once it is paid, the characters are on the balance."""

    async def place(session: AsyncSession, owner: Owner) -> int:
        return (await checkout.order_characters(session, services.settings, owner, body.character_count)).id

    number, replayed = await place_once(request, claims, place)
    # No transaction is open while Stripe is asked. A repeated request goes on with the same order.
    order = await checkout.open_checkout(services.db, services.stripe, services.settings, number)
    async with services.db.transaction() as session:
        payment = await payments.expect(session, order)
    if replayed:
        response.headers[REPLAYED] = "true"
    return _purchase_out(request, order, payment.id)


@router.post("/billing/subscribe", dependencies=[KEY_DOCUMENTED], responses=error_responses(400, 401, 409, 502, 503))
async def subscribe(body: SubscribeIn, request: Request, claims: ClaimsDep, services: ServicesDep) -> CheckoutOut:
    """Opens a checkout for a plan of PLANS that has a price."""
    owner = await _authenticated(services, claims)
    url = await subscriptions.subscribe(
        services.db, services.stripe, services.settings, owner, plan=body.plan, key=request.headers.get(HEADER)
    )
    return CheckoutOut(checkout_url=url)


@router.post("/billing/portal", responses=error_responses(401, 502, 503))
async def open_portal(claims: ClaimsDep, services: ServicesDep) -> PortalOut:
    """Opens Stripe's page for the plan, the card and the receipts."""
    owner = await _authenticated(services, claims)
    return PortalOut(portal_url=await subscriptions.open_portal(services.db, services.stripe, services.settings, owner))


@router.get("/billing/invoices", responses=error_responses(401, 502, 503))
async def list_invoices(
    claims: ClaimsDep,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    starting_after: Annotated[str | None, Query(pattern="^in_[A-Za-z0-9_]{1,80}$")] = None,
) -> list[InvoiceOut]:
    """The invoices of the caller's plan, newest first. The id of the last one, as `starting_after`, asks for more."""
    owner = await _authenticated(services, claims)
    async with services.db.transaction() as session:
        customer = await checkout.find_customer(session, owner.id)
    if customer is None:
        return []
    rows = await services.stripe.list_invoices(customer, limit=limit, starting_after=starting_after)
    return [_invoice_out(row) for row in rows]


@router.get("/billing/payments", responses=error_responses(401))
async def list_payments(
    owner: OwnerDep, session: SessionDep, window: WindowDep, response: Response
) -> list[PaymentOut]:
    """What the caller paid or is to pay, newest first."""
    page = await payments.page(session, owner, window)
    count_all(response, page.total)
    return [
        PaymentOut(
            id=row.id,
            order_id=row.order_id,
            type=row.kind,
            status=row.state,
            amount_cents=row.amount_cents,
            currency=row.currency,
            character_count=row.characters,
            refunded_cents=row.refunded_cents,
            refunded_characters=row.refunded_characters,
            dispute_status=row.dispute_state,
            created_at=row.created_at,
            paid_at=row.paid_at,
        )
        for row in page.items
    ]


async def _authenticated(services: Services, claims: ClaimsDep) -> Owner:
    async with services.db.transaction() as session:
        return await authenticate(services, session, claims)


async def _kick(services: Services, number: int) -> None:
    await services.broker.send(inbox.HANDLE_TASK, inbox.QUEUE, number)


def _event_of(body: bytes) -> dict[str, Any] | None:
    """The event in a body, or None for what is none."""
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("created"), int):
        return None
    named = all(isinstance(event.get(name), str) for name in ("id", "type"))
    data = event.get("data")
    return event if named and isinstance(data, dict) and isinstance(data.get("object"), dict) else None


def _purchase_out(request: Request, order: Order, payment_id: int) -> PurchaseOut:
    reader = language.choose(",".join(request.headers.getlist("accept-language")), default="fr")
    assert order.checkout_url is not None, "an opened checkout has an address"
    return PurchaseOut(
        id=order.id,
        user_id=order.user_id,
        amount=order.characters_bought,
        description=_WAITING[reader].format(count=order.characters_bought),
        payment_id=payment_id,
        price_per_character=float(order.quote["price_per_character"]),
        total_price=order.amount_cents / 100,
        currency=order.currency,
        checkout_url=order.checkout_url,
        created_at=order.created_at,
    )


def _invoice_out(row: dict[str, Any]) -> InvoiceOut:
    return InvoiceOut(
        id=row["id"],
        number=row.get("number"),
        status=row.get("status"),
        amount_due_cents=row.get("amount_due") or 0,
        amount_paid_cents=row.get("amount_paid") or 0,
        currency=row.get("currency") or "",
        created_at=datetime.fromtimestamp(row["created"], UTC),
        hosted_invoice_url=row.get("hosted_invoice_url"),
        invoice_pdf=row.get("invoice_pdf"),
    )
