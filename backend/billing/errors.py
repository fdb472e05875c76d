"""What can go wrong with characters and money."""

from backend.kit.errors import Conflict, DomainError, NotFound


class InsufficientCharacters(DomainError):
    """`context` has the quote: what is needed, what is there, and what the rest would cost."""

    status = 402
    code = "INSUFFICIENT_CHARACTERS"
    template = (
        "This needs {needed} characters and {available} are available. Buy the rest with "
        "POST /api/characters/purchase, or choose fewer documents."
    )


class OrderNotFound(NotFound):
    code = "ORDER_NOT_FOUND"
    template = "There is no such order. GET /api/orders lists yours."


class PurchaseTooSmall(DomainError):
    code = "PURCHASE_TOO_SMALL"
    template = (
        "{character_count} characters cost {amount_cents} cents, and the smallest payment is {minimum_cents} cents. "
        "Buy at least {minimum_characters} characters."
    )


class CheckoutExpired(Conflict):
    code = "CHECKOUT_EXPIRED"
    template = "This order was not paid in time. Order again, with another Idempotency-Key if you send one."


class PlanNotForSale(DomainError):
    code = "PLAN_NOT_FOR_SALE"
    template = "The plan '{plan}' cannot be bought here. Plans that can: {plans}."

    def __init__(self, *, plan: str, plans: list[str]) -> None:
        super().__init__(plan=plan, plans=", ".join(plans) or "none")
        self.context["plans"] = plans


class AlreadySubscribed(Conflict):
    code = "ALREADY_SUBSCRIBED"
    template = "You have the plan '{plan}' already. Change or end it with POST /api/billing/portal."


class PaymentNotFound(NotFound):
    code = "PAYMENT_NOT_FOUND"
    template = "There is no such payment. GET /api/billing/payments lists yours."


class NotRefundable(Conflict):
    code = "NOT_REFUNDABLE"
    template = (
        "Of this payment {refundable_cents} cents can be given back: it has {amount_cents} cents in the state "
        "'{state}', of which {refunded_cents} are back already. Ask for at most that much."
    )


class PaymentFailed(DomainError):
    """Kept with the order; a payment that takes days (a debit, a transfer) did not come."""

    code = "PAYMENT_FAILED"
    template = "The payment was not made: the bank refused it or it was given up. Order again."
