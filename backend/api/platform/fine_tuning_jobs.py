"""Whole launches: dataset and fine-tuning from chosen contents in one request, free or after a payment."""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.auth import ClaimsDep
from backend.api.errors import error_responses
from backend.api.idempotency import KEY_DOCUMENTED, REPLAYED, place_once
from backend.api.language import PlatformLanguage
from backend.api.platform.deps import LARGEST_ID
from backend.api.services import Services, ServicesDep
from backend.billing import checkout, orders
from backend.billing.models import Order
from backend.kit.language import Language
from backend.kit.owner import Owner
from backend.launches import service
from backend.launches.tools import Tools
from backend.launches.wishes import Wish
from backend.training.sizing import Method

router = APIRouter(prefix="/fine-tuning-jobs", tags=["launches"])

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
ProviderName = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=30)]
ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
Prompt = Annotated[str, StringConstraints(strip_whitespace=True, max_length=8000)]
RowNumber = Annotated[int, Field(ge=1, le=LARGEST_ID)]

_MESSAGES: Final[dict[str, dict[Language, str]]] = {
    "pending_payment": {
        "fr": "Paiement requis pour lancer le fine-tuning.",
        "en": "A payment is required to start the fine-tuning.",
    },
    "processing_started": {
        "fr": "Le processus de fine-tuning a été lancé.",
        "en": "The fine-tuning has been started.",
    },
}


class LaunchConfigIn(BaseModel):
    """`system_prompt` stands before every example that is trained on. `method` matters for provider `local` only.

    There `dpo` is refused: the dataset is made anew, and nobody has rated its answers yet.
    """

    provider: ProviderName
    model: ModelName
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    system_prompt: Prompt | None = None
    job_name: Name | None = None
    dataset_name: Name | None = None
    method: Method = "qlora"


class CreateFineTuningJobRequest(BaseModel):
    project_id: RowNumber
    content_ids: list[RowNumber] = Field(min_length=1, max_length=1000)
    config: LaunchConfigIn


class FineTuningJobResponse(BaseModel):
    """`quote`: what the launch costs, with every line of its reasoning; `warnings`: what ends soon at the provider."""

    status: Literal["pending_payment", "processing_started"]
    message: str
    checkout_url: str | None
    redirect_url: str | None
    fine_tuning_id: int | None
    dataset_id: int | None
    order_id: int
    quote: dict[str, Any]
    warnings: list[str]


@router.post(
    "", status_code=201, dependencies=[KEY_DOCUMENTED], responses=error_responses(400, 401, 403, 404, 409, 502, 503)
)
async def create_fine_tuning_job(
    body: CreateFineTuningJobRequest,
    request: Request,
    response: Response,
    claims: ClaimsDep,
    services: ServicesDep,
    language: PlatformLanguage,
) -> FineTuningJobResponse:
    """Free: the ids of dataset and fine-tuning, which are on their way. To be paid: the address of the payment page.

    The contents need not be read yet, unless the launch has to be paid. The message is French, or English by
    Accept-Language.
    """
    config = body.config
    wish = Wish(
        content_ids=sorted(set(body.content_ids)),
        dataset_name=config.dataset_name or config.job_name or f"Dataset {config.model}"[:200],
        job_name=config.job_name or config.dataset_name or f"Fine-tuning {config.model}"[:200],
        provider=config.provider,
        model=config.model,
        method=config.method,
        hyperparameters=config.hyperparameters,
        system_prompt=config.system_prompt or None,
    )

    async def place(session: AsyncSession, owner: Owner) -> int:
        return (await service.launch(session, tools_of(services), owner, body.project_id, wish, orders.LAUNCH)).id

    number, replayed = await place_once(request, claims, place)
    if replayed:
        response.headers[REPLAYED] = "true"
    order = await placed(services, number)
    to_pay = order.amount_cents > 0
    status: Literal["pending_payment", "processing_started"] = "pending_payment" if to_pay else "processing_started"
    page = services.post.page(f"dashboard/projects/{body.project_id}", tab="finetune")
    return FineTuningJobResponse(
        status=status,
        message=_MESSAGES[status][language],
        checkout_url=order.checkout_url,
        redirect_url=None if to_pay else page,
        fine_tuning_id=None if to_pay else order.fine_tuning_id,
        dataset_id=None if to_pay else order.dataset_id,
        order_id=order.id,
        quote=order.quote,
        warnings=order.params["warnings"],
    )


async def placed(services: Services, number: int) -> Order:
    """An order of a launch; one that is to be paid with its page, for which Stripe is asked outside of a transaction.

    Raises PaymentsUnavailable, PaymentsRefused, CheckoutExpired.
    """
    async with services.db.transaction() as session:
        order = await session.get_one(Order, number)
    if order.amount_cents == 0 or order.checkout_url is not None:
        return order
    return await checkout.open_checkout(services.db, services.stripe, services.settings, number)


def tools_of(services: Services) -> Tools:
    """What launches need of the process's services."""
    return Tools(
        db=services.db,
        settings=services.settings,
        broker=services.broker,
        events=services.events,
        library=services.library,
        post=services.post,
    )
