"""Accounts, the entries that only ever grow, holds, orders, payments, and the inbox of Stripe's events."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.kit.models import Record

_ZERO = text("0")
_EMPTY = text("'{}'")


class Account(Record):
    """What a user has, in characters. Whoever changes it locks the row first; the entries say how it came about.

    It names its user without a foreign key, because the books outlive the login.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("0 <= held AND held <= posted", name="held_within_posted"),
        CheckConstraint("owed >= 0", name="owed_not_negative"),
    )

    user_id: Mapped[int] = mapped_column(BigInteger, unique=True)
    # The sum of all entries; of it, what running work has reserved; available is the difference.
    posted: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    held: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    # Characters whose money went back after they had been used; the next purchase pays them first.
    owed: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    # Sums of entries by kind, so that reading them does not grow with the history. All non-negative.
    granted: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    purchased: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    complimentary: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    used: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    # Counts the changes, so that a reader can tell whether two reads saw the same account.
    version: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    stripe_customer_id: Mapped[str | None] = mapped_column(String(100), unique=True)

    @property
    def available(self) -> int:
        return self.posted - self.held


class LedgerEntry(Record):
    """One fact: `characters` is negative for what was used. A trigger refuses UPDATE and DELETE.

    It names its user without a foreign key, because it outlives the account.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (
        UniqueConstraint("kind", "reference"),
        CheckConstraint("characters <> 0", name="not_nothing"),
        Index("ix_ledger_entries_user_id_id", "user_id", "id"),
        Index("ix_ledger_entries_user_id_kind_created_at", "user_id", "kind", "created_at"),
    )

    user_id: Mapped[int] = mapped_column(BigInteger)
    # grant, purchase, complimentary, usage, refund, chargeback, repayment, adjustment
    kind: Mapped[str] = mapped_column(String(30))
    reference: Mapped[str] = mapped_column(String(200))
    characters: Mapped[int] = mapped_column(BigInteger)
    # `accounts.posted` right after this entry.
    balance_after: Mapped[int] = mapped_column(BigInteger)
    params: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)


class Hold(Record):
    """Characters that are reserved for work; it ends once, settled or released."""

    __tablename__ = "holds"
    __table_args__ = (
        CheckConstraint("characters > 0", name="something"),
        CheckConstraint("settled BETWEEN 0 AND characters", name="settled_within_hold"),
        Index("ix_holds_user_id_id", "user_id", "id"),
        Index("ix_holds_live", "id", postgresql_where=text("state = 'held'")),
    )

    user_id: Mapped[int] = mapped_column(BigInteger)
    reference: Mapped[str] = mapped_column(String(200), unique=True)
    # generation, launch, dispute
    purpose: Mapped[str] = mapped_column(String(20))
    characters: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(10), default="held", server_default="held")  # held, settled, released
    # What was really processed, once it ended; the rest of the hold went back.
    settled: Mapped[int | None] = mapped_column(BigInteger)
    # Whose end ends it; without foreign keys, because a hold must be found when they are gone.
    job_id: Mapped[int | None] = mapped_column(BigInteger)
    order_id: Mapped[int | None] = mapped_column(BigInteger)
    params: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default=_EMPTY)
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Order(Record):
    """What a user asked for, from the quote to the end of its work; Stripe is told its `public_id` alone."""

    __tablename__ = "orders"
    __table_args__ = (
        Index("ix_orders_user_id_id", "user_id", "id"),
        Index(
            "ix_orders_live",
            "next_step_at",
            postgresql_where=text("state IN ('pending_payment', 'paid', 'running')"),
        ),
    )

    user_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id", ondelete="CASCADE"))
    # onboarding_characters, fine_tuning_job, character_credits: the contract's `payment_type`
    kind: Mapped[str] = mapped_column(String(30))
    # pending_payment, paid, running, completed, failed, expired, credited
    state: Mapped[str] = mapped_column(String(20))
    # Characters of the work (0 for a purchase alone), and those that the checkout adds to the balance.
    characters: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    characters_bought: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    amount_cents: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    currency: Mapped[str] = mapped_column(String(3))
    quote: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default=_EMPTY)
    # The request: project, contents, provider, model, prompt, names.
    params: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default=_EMPTY)

    stripe_session_id: Mapped[str | None] = mapped_column(String(200), unique=True)
    checkout_url: Mapped[str | None] = mapped_column(Text)
    hold_id: Mapped[int | None] = mapped_column(BigInteger)
    project_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("projects.id", ondelete="SET NULL"))
    dataset_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("datasets.id", ondelete="SET NULL"))
    fine_tuning_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("fine_tunings.id", ondelete="SET NULL"))
    error_code: Mapped[str | None] = mapped_column(String(60))
    error_message: Mapped[str | None] = mapped_column(Text)
    # When its next step is due, and how often that step failed.
    next_step_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    step_failures: Mapped[int] = mapped_column(Integer, default=0, server_default=_ZERO)
    paid_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Payment(Record):
    """Money that Stripe took, or is to take: one row for each payment intent. It outlives the account."""

    __tablename__ = "payments"
    __table_args__ = (
        CheckConstraint("amount_cents >= 0 AND characters >= 0", name="not_negative"),
        CheckConstraint("refunded_cents BETWEEN 0 AND amount_cents", name="refunded_within_amount"),
        Index("ix_payments_user_id_id", "user_id", "id"),
    )

    user_id: Mapped[int] = mapped_column(BigInteger)
    order_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    kind: Mapped[str] = mapped_column(String(30))  # as the order's, or subscription
    state: Mapped[str] = mapped_column(String(20))  # pending, paid, failed, expired
    characters: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    amount_cents: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    stripe_session_id: Mapped[str | None] = mapped_column(String(200), unique=True)
    stripe_payment_intent: Mapped[str | None] = mapped_column(String(100), unique=True)
    stripe_invoice_id: Mapped[str | None] = mapped_column(String(100), unique=True)
    # In all, by Stripe's own count; and what the ledger took back for it.
    refunded_cents: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    refunded_characters: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_ZERO)
    # needs_response, under_review, won, lost ...: Stripe's words; with the hold that freezes what is disputed.
    dispute_id: Mapped[str | None] = mapped_column(String(100))
    dispute_state: Mapped[str | None] = mapped_column(String(30))
    hold_id: Mapped[int | None] = mapped_column(BigInteger)
    paid_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class StripeEvent(Record):
    """One event as Stripe sent it, kept before it is handled, and handled from here."""

    __tablename__ = "stripe_events"
    __table_args__ = (
        Index("ix_stripe_events_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
        Index("ix_stripe_events_waits_for", "waits_for", postgresql_where=text("state = 'parked'")),
    )

    event_id: Mapped[str] = mapped_column(String(100), unique=True)
    type: Mapped[str] = mapped_column(String(80))
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    # When it happened at Stripe: events come in any order.
    occurred_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    # pending, done, ignored, parked (until `waits_for` is known), dead
    state: Mapped[str] = mapped_column(String(10), default="pending", server_default="pending")
    attempts: Mapped[int] = mapped_column(Integer, default=0, server_default=_ZERO)
    next_attempt_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    waits_for: Mapped[str | None] = mapped_column(String(200))
    error: Mapped[str | None] = mapped_column(Text)
    handled_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # Whom it is about, once known: deleting the account empties the payload.
    user_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
