"""Stripe's events as its documentation shows them, and their delivery: signed by the SDK's own signer."""

import json
import secrets
import time
from typing import Any

import httpx
import stripe

from backend.billing.models import Order
from backend.providers.stripe import API_VERSION

SECRET = "whsec_of_the_tests"
URL = "/api/checkout/webhook"


def event(kind: str, found: dict[str, Any], *, at: int | None = None, event_id: str | None = None) -> dict[str, Any]:
    return {
        "id": event_id or f"evt_{secrets.token_hex(12)}",
        "object": "event",
        "api_version": API_VERSION,
        "created": int(time.time()) if at is None else at,
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": kind,
        "data": {"object": found},
    }


def session_of(order: Order, **changes: Any) -> dict[str, Any]:
    """The checkout session of an order, paid unless `changes` says otherwise."""
    metadata = {"order_id": str(order.public_id), "payment_type": order.kind, "user_id": str(order.user_id)}
    return {
        "id": order.stripe_session_id or f"cs_test_{order.public_id.hex}",
        "object": "checkout.session",
        "amount_total": order.amount_cents,
        "client_reference_id": str(order.public_id),
        "currency": order.currency,
        "customer": "cus_1",
        "customer_details": {"email": "payer@example.com", "name": "Jeanne Payer"},
        "metadata": metadata,
        "mode": "payment",
        "payment_intent": intent_of(order),
        "payment_status": "paid",
        "status": "complete",
        **changes,
    }


def intent_of(order: Order) -> str:
    return f"pi_{order.public_id.hex}"


def completed(order: Order, **options: Any) -> dict[str, Any]:
    return event("checkout.session.completed", session_of(order), **options)


def expired(order: Order, **options: Any) -> dict[str, Any]:
    found = session_of(order, payment_intent=None, payment_status="unpaid", status="expired")
    return event("checkout.session.expired", found, **options)


def refunded(order: Order, cents: int, **options: Any) -> dict[str, Any]:
    """`cents` in all, as Stripe counts on the charge."""
    charge = {
        "id": f"ch_{order.public_id.hex}",
        "object": "charge",
        "amount": order.amount_cents,
        "amount_refunded": cents,
        "currency": order.currency,
        "metadata": {"order_id": str(order.public_id), "user_id": str(order.user_id)},
        "payment_intent": intent_of(order),
        "refunded": cents == order.amount_cents,
    }
    return event("charge.refunded", charge, **options)


def refund(
    kind: str, order: Order, cents: int, status: str, *, refund_id: str, made_at: int, **options: Any
) -> dict[str, Any]:
    found = {
        "id": refund_id,
        "object": "refund",
        "amount": cents,
        "charge": f"ch_{order.public_id.hex}",
        "created": made_at,
        "currency": order.currency,
        "metadata": {},
        "payment_intent": intent_of(order),
        "status": status,
    }
    return event(kind, found, **options)


def dispute(kind: str, order: Order, *, status: str, cents: int | None = None, **options: Any) -> dict[str, Any]:
    found = {
        "id": f"du_{order.public_id.hex}",
        "object": "dispute",
        "amount": order.amount_cents if cents is None else cents,
        "charge": f"ch_{order.public_id.hex}",
        "currency": order.currency,
        "metadata": {},
        "payment_intent": intent_of(order),
        "reason": "fraudulent",
        "status": status,
    }
    return event(kind, found, **options)


def subscription(
    kind: str, *, user_id: int | None, price: str = "price_pro", status: str = "active", **changes: Any
) -> dict[str, Any]:
    """`at`, `event_id` and fields of the subscription may be given."""
    options = {name: changes.pop(name) for name in ("at", "event_id") if name in changes}
    found = {
        "id": "sub_1",
        "object": "subscription",
        "cancel_at": None,
        "cancel_at_period_end": False,
        "customer": "cus_unknown",
        "items": {
            "object": "list",
            "data": [
                {
                    "id": "si_1",
                    "object": "subscription_item",
                    "current_period_start": 1_800_000_000,
                    "current_period_end": 1_802_592_000,
                    "price": {"id": price, "object": "price"},
                }
            ],
        },
        "metadata": {} if user_id is None else {"user_id": str(user_id)},
        "status": status,
        **changes,
    }
    return event(f"customer.subscription.{kind}", found, **options)


def invoice(kind: str, *, subscription_id: str, user_id: int, cents: int = 2000, **changes: Any) -> dict[str, Any]:
    options = {name: changes.pop(name) for name in ("at", "event_id") if name in changes}
    found = {
        "id": "in_1",
        "object": "invoice",
        "amount_due": cents,
        "amount_paid": cents if kind == "paid" else 0,
        "currency": "eur",
        "customer": "cus_unknown",
        "parent": {
            "type": "subscription_details",
            "subscription_details": {"subscription": subscription_id, "metadata": {"user_id": str(user_id)}},
        },
        "status": "paid" if kind == "paid" else "open",
        **changes,
    }
    return event(f"invoice.{kind}", found, **options)


def signed(body: bytes, secret: str = SECRET, at: int | None = None) -> dict[str, str]:
    signature = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, at)
    return {"Stripe-Signature": signature, "Content-Type": "application/json; charset=utf-8"}


async def deliver(client: httpx.AsyncClient, sent: dict[str, Any], *, url: str = URL) -> httpx.Response:
    body = json.dumps(sent, indent=2).encode()
    return await client.post(url, content=body, headers=signed(body))
