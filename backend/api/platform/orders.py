"""Receipts: what was asked for, what it was to cost, what was paid, held, charged and given back."""

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.auth import ClaimsDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.language import PlatformLanguage, told
from backend.api.platform.deps import OwnedOrder, RowId, WindowDep, count_all
from backend.api.platform.fine_tuning_jobs import tools_of
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.billing import ledger, orders
from backend.billing.models import Hold, Order, Payment
from backend.kit.language import Language
from backend.launches import service
from backend.launches.errors import OrderBeingPaid

router = APIRouter(prefix="/orders", tags=["orders"])

_DESCRIPTIONS: Final[dict[str, dict[Language, str]]] = {
    orders.PENDING_PAYMENT: {"fr": "En attente du paiement.", "en": "Waits for its payment."},
    orders.PAID: {"fr": "Payée ; le lancement va commencer.", "en": "Paid; the launch is about to begin."},
    orders.RUNNING: {"fr": "En cours.", "en": "Under way."},
    orders.COMPLETED: {"fr": "Terminée.", "en": "Completed."},
    orders.FAILED: {"fr": "Arrêtée avant la fin.", "en": "Ended before it was complete."},
    orders.EXPIRED: {"fr": "Jamais payée ; rien n'a été lancé.", "en": "Never paid; nothing was started."},
    orders.CREDITED: {
        "fr": "Non exécutée ; les caractères payés sont sur votre solde.",
        "en": "Not carried out; the characters that were paid are on your balance.",
    },
}


class PaidOut(BaseModel):
    """The money that Stripe took, or is to take."""

    payment_id: int
    state: str
    amount_cents: int
    refunded_cents: int
    currency: str
    paid_at: datetime | None


class OrderOut(BaseModel):
    """All figures are characters, but for those in cents. `quote` is what was said before it began."""

    id: int
    kind: orders.Kind
    state: orders.State
    description: str = Field(description="The state as a sentence: French, or English by Accept-Language")
    project_id: int | None
    dataset_id: int | None
    fine_tuning_id: int | None
    characters: int = Field(description="Of the work; 0 for a purchase alone")
    characters_bought: int = Field(description="That its payment adds to the balance")
    amount_cents: int
    currency: str
    quote: dict[str, Any]
    held: int = Field(description="Reserved now, until the work is done")
    settled: int = Field(description="Charged for the work that was done")
    released: int = Field(description="Held once, and given back")
    payment: PaidOut | None
    checkout_url: str | None = Field(description="While it waits for its payment")
    error_code: str | None
    error_message: str | None = Field(description="Why it ended, and what to do next")
    created_at: datetime
    paid_at: datetime | None
    ended_at: datetime | None


@router.get("", responses=error_responses(401))
async def list_orders(
    owner: OwnerDep,
    session: SessionDep,
    window: WindowDep,
    response: Response,
    language: PlatformLanguage,
    state: Annotated[orders.State | None, Query()] = None,
    kind: Annotated[orders.Kind | None, Query()] = None,
) -> list[OrderOut]:
    """The caller's orders, newest first."""
    page = await orders.page_by_number(session, owner, window, state=state, kind=kind)
    count_all(response, page.total)
    holds = await orders.holds_of(session, page.items)
    payments = await orders.payments_of(session, page.items)
    return [_order_out(order, holds.get(order.id), payments.get(order.id), language) for order in page.items]


@router.get("/{order_id}", responses=error_responses(401, 404))
async def get_order(order: OwnedOrder, session: SessionDep, language: PlatformLanguage) -> OrderOut:
    return await _shown(session, order, language)


@router.post("/{order_id}/cancel", responses=error_responses(401, 404, 409, 502, 503))
async def cancel_order(
    order_id: RowId, claims: ClaimsDep, services: ServicesDep, language: PlatformLanguage
) -> OrderOut:
    """Closes the payment page, or stops what runs; what was paid stays on the balance. A second cancel is no error."""
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        order = await orders.get_by_number(session, owner, order_id)
    # No transaction is open while Stripe is asked.
    waits = order.state == orders.PENDING_PAYMENT and order.stripe_session_id is not None
    if waits and not await services.stripe.close_checkout(order.stripe_session_id or ""):
        raise OrderBeingPaid()
    async with services.db.transaction() as session:
        order = await service.cancel(session, tools_of(services), order)
        return await _shown(session, order, language)


async def _shown(session: AsyncSession, order: Order, language: Language) -> OrderOut:
    holds = await orders.holds_of(session, [order])
    payments = await orders.payments_of(session, [order])
    return _order_out(order, holds.get(order.id), payments.get(order.id), language)


def _order_out(order: Order, hold: Hold | None, payment: Payment | None, language: Language) -> OrderOut:
    live = hold is not None and hold.state == ledger.HELD
    settled = hold.settled or 0 if hold is not None else 0
    names = OrderOut.model_fields.keys() & {column.name for column in Order.__table__.columns}
    return OrderOut(
        **{name: getattr(order, name) for name in names - {"checkout_url", "error_message"}},
        description=_DESCRIPTIONS[order.state][language],
        held=hold.characters if hold is not None and live else 0,
        settled=settled,
        released=hold.characters - settled if hold is not None and not live else 0,
        payment=None if payment is None else _paid_out(payment),
        checkout_url=order.checkout_url if order.state == orders.PENDING_PAYMENT else None,
        error_message=told(language, order.error_code, order.error_message, order.params.get("error_context")),
    )


def _paid_out(payment: Payment) -> PaidOut:
    return PaidOut(
        payment_id=payment.id,
        state=payment.state,
        amount_cents=payment.amount_cents,
        refunded_cents=payment.refunded_cents,
        currency=payment.currency,
        paid_at=payment.paid_at,
    )
