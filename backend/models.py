"""Every mapped class of every domain, imported once: for Alembic, and for processes that query across domains."""

from backend.billing.models import Account, Hold, LedgerEntry, Order, Payment, StripeEvent
from backend.contents.models import Chunk, Content
from backend.datasets.models import ChunkMark, Dataset, DatasetVersion, Example, RetiredExample
from backend.jobs.models import Job, Tick
from backend.kit.models import Base
from backend.projects.models import Project
from backend.training.models import Artifact, FineTuning, HardwareReport
from backend.users.models import (
    IdempotencyKey,
    OneUseToken,
    PersonalAccessToken,
    ProviderKey,
    Subscription,
    User,
    UserSession,
)

__all__ = [
    "Account",
    "Artifact",
    "Base",
    "Chunk",
    "ChunkMark",
    "Content",
    "Dataset",
    "DatasetVersion",
    "Example",
    "FineTuning",
    "HardwareReport",
    "Hold",
    "IdempotencyKey",
    "Job",
    "LedgerEntry",
    "OneUseToken",
    "Order",
    "Payment",
    "PersonalAccessToken",
    "Project",
    "ProviderKey",
    "RetiredExample",
    "StripeEvent",
    "Subscription",
    "Tick",
    "User",
    "UserSession",
]
