"""Stripe, behind the few calls that the service makes; its SDK is loaded by the first of them."""

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from backend.kit.config import Settings
from backend.kit.errors import DomainError, Unavailable

log = logging.getLogger(__name__)

# What the answers and events are written in; the webhook endpoint is made with the same (docs/billing.md).
API_VERSION: Final = "2026-10-28.endive"
# A signature that is older was recorded by somebody and is played again.
TOLERANCE_SECONDS: Final = 300
# Somebody waits for a checkout: three attempts fit into the whole.
_ATTEMPT_SECONDS, _CALL_SECONDS, _RETRIES = 8.0, 25.0, 2
_PAGE: Final = 100

T = TypeVar("T")


class PaymentsNotConfigured(DomainError):
    status = 503
    code = "PAYMENTS_NOT_CONFIGURED"
    template = (
        "This installation takes no payments: STRIPE_SECRET_KEY is not set. What is free works; ask its operator for "
        "the rest."
    )


class PaymentsUnavailable(Unavailable):
    code = "PAYMENTS_UNAVAILABLE"
    template = "Stripe does not answer, so nothing was charged. Try again in a minute with the same Idempotency-Key."


class PaymentsRefused(DomainError):
    """`words` are Stripe's own."""

    status = 502
    code = "PAYMENTS_REFUSED"
    template = "Stripe refuses the request, so nothing was charged: {words} Tell the operator of this service."


class PaymentsKeyReused(PaymentsRefused):
    """Stripe knows the idempotency key from another request."""


class BadStripeSignature(DomainError):
    code = "BAD_SIGNATURE"
    template = (
        "The Stripe-Signature header does not fit the body, or is older than {tolerance_seconds} seconds. Check that "
        "STRIPE_WEBHOOK_SECRETS has this endpoint's secret, and that the body arrives unchanged."
    )


@dataclass(frozen=True, slots=True)
class CheckoutSession:
    """A page at which somebody pays."""

    id: str
    url: str


class Stripe:
    """The account that STRIPE_SECRET_KEY opens. One object for each event loop.

    Every method raises PaymentsNotConfigured without a key, PaymentsUnavailable in an outage, and PaymentsRefused.
    """

    def __init__(self, settings: Settings) -> None:
        self._key = settings.stripe_secret_key.get_secret_value()
        self._base = settings.stripe_api_base.rstrip("/")
        self._made: Any = None
        self._http: Any = None

    @property
    def configured(self) -> bool:
        return bool(self._key)

    async def create_customer(self, *, email: str, name: str, user_id: int, idempotency_key: str) -> str:
        params = {"email": email, "name": name, "metadata": {"user_id": str(user_id)}}
        made = await _told(self._v1.customers.create_async(params, {"idempotency_key": idempotency_key}))
        return str(made.id)

    async def delete_customer(self, customer: str) -> None:
        """Ends its subscriptions too. One that is gone already is no error."""
        try:
            await _told(self._v1.customers.delete_async(customer))
        except PaymentsRefused as error:
            if error.context.get("stripe_code") != "resource_missing":
                raise

    async def create_checkout(self, params: Mapping[str, Any], *, idempotency_key: str) -> CheckoutSession:
        """The same key gives the same session. Raises PaymentsKeyReused when it came with other parameters."""
        options = {"idempotency_key": idempotency_key}
        made = await _told(self._v1.checkout.sessions.create_async(dict(params), options))
        url = getattr(made, "url", None)
        if not url:  # it is not to be paid at a page of Stripe's, or not any more
            raise PaymentsRefused(words=f"Session {str(made.id)[:80]} has no address.", stripe_code=None)
        return CheckoutSession(str(made.id), str(url))

    async def close_checkout(self, session_id: str) -> bool:
        """Sees to it that nobody pays at a page any more; False when somebody has."""
        try:
            closed = await _told(self._v1.checkout.sessions.expire_async(session_id))
        except PaymentsRefused:
            # It is not open any more.
            closed = await _told(self._v1.checkout.sessions.retrieve_async(session_id))
        return str(closed.status) == "expired"

    async def open_portal(self, customer: str, *, return_url: str) -> str:
        """The address of a page at which a customer changes or ends the subscription."""
        params = {"customer": customer, "return_url": return_url}
        made = await _told(self._v1.billing_portal.sessions.create_async(params))
        return str(made.url)

    async def list_invoices(
        self, customer: str, *, limit: int, starting_after: str | None = None
    ) -> list[dict[str, Any]]:
        """As Stripe writes them, the newest first."""
        params: dict[str, Any] = {"customer": customer, "limit": limit}
        if starting_after is not None:
            params["starting_after"] = starting_after
        return [dict(row) for row in (await self._get("/v1/invoices", **params))["data"]]

    async def refund(self, payment_intent: str, *, amount_cents: int, idempotency_key: str) -> str:
        """Returns the refund's id. What comes of it is told by events."""
        params = {"payment_intent": payment_intent, "amount": amount_cents}
        made = await _told(self._v1.refunds.create_async(params, {"idempotency_key": idempotency_key}))
        return str(made.id)

    async def events_since(self, since: int, types: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
        """Events of these types from `since` (seconds since 1970) on, as they are sent to the webhook; newest first."""
        async for event in self._pages("/v1/events", created={"gte": since}, types=list(types)):
            yield event

    async def payment_intents_since(self, since: int) -> AsyncIterator[dict[str, Any]]:
        """Payment intents that were made from `since` on, newest first."""
        async for intent in self._pages("/v1/payment_intents", created={"gte": since}):
            yield intent

    async def _pages(self, path: str, **params: Any) -> AsyncIterator[dict[str, Any]]:
        after: dict[str, Any] = {}
        while True:
            page = await self._get(path, **params, **after, limit=_PAGE)
            for row in page["data"]:
                yield row
            if not page.get("has_more") or not page["data"]:
                return
            after = {"starting_after": page["data"][-1]["id"]}

    async def _get(self, path: str, **params: Any) -> Any:
        """The answer's JSON as it came: what is kept of it must be what a webhook would have brought."""
        answer = await _told(self._client.raw_request_async("get", path, **params))
        return answer.data

    @property
    def _v1(self) -> Any:
        return self._client.v1

    @property
    def _client(self) -> Any:
        if not self._key:
            raise PaymentsNotConfigured()
        if self._made is None:
            stripe = load_sdk()
            self._http = stripe.HTTPXClient(timeout=_ATTEMPT_SECONDS)
            self._made = stripe.StripeClient(
                self._key,
                stripe_version=API_VERSION,
                base_addresses={"api": self._base},
                max_network_retries=_RETRIES,
                http_client=self._http,
            )
        return self._made

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close_async()
            self._made = self._http = None


def require_signature(body: bytes, header: str | None, secrets: Sequence[str]) -> None:
    """That the body was sent by who knows one of the secrets, a moment ago. Raises BadStripeSignature."""
    stripe = load_sdk()
    for secret in secrets:
        try:
            stripe.WebhookSignature.verify_header(body, header, secret, TOLERANCE_SECONDS)
        except (stripe.SignatureVerificationError, ValueError, TypeError):
            # ValueError and TypeError: bytes that are no UTF-8, a signature that is no ASCII.
            continue
        return
    raise BadStripeSignature(tolerance_seconds=TOLERANCE_SECONDS)


@lru_cache(maxsize=1)
def load_sdk() -> Any:
    """Half a second and 30 MB, which a service without payments does not spend.

    Untyped, because to check its types takes longer than to check all of ours.
    """
    stripe: Any = importlib.import_module("stripe")
    stripe.enable_telemetry = False
    return stripe


async def _told(call: Awaitable[T]) -> T:
    """What the call returns; the SDK's failures as ours."""
    stripe = load_sdk()
    try:
        async with asyncio.timeout(_CALL_SECONDS):
            return await call
    except (stripe.APIConnectionError, stripe.RateLimitError, TimeoutError) as error:
        log.warning("Stripe does not answer: %s", type(error).__name__)
        raise PaymentsUnavailable() from None
    except stripe.StripeError as error:
        if (error.http_status or 500) >= 500:
            log.warning("Stripe fails with %s (%s)", error.http_status, error.request_id)
            raise PaymentsUnavailable() from None
        kind = PaymentsKeyReused if isinstance(error, stripe.IdempotencyError) else PaymentsRefused
        log.error("Stripe refuses a request (%s, %s): %s", error.http_status, error.request_id, error.user_message)
        raise kind(words=_sentence(error.user_message), stripe_code=error.code) from None
    except (AttributeError, KeyError, TypeError, ValueError):
        log.exception("an answer at STRIPE_API_BASE is none of Stripe's")
        raise PaymentsUnavailable() from None


def _sentence(words: str | None) -> str:
    words = " ".join((words or "no reason was given").split())[:500]
    return words if words.endswith(".") else f"{words}."
