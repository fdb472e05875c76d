"""The end of the onboarding: a first launch from what the newcomer has brought, free or after a payment."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.auth import ClaimsDep
from backend.api.errors import error_responses
from backend.api.idempotency import KEY_DOCUMENTED, REPLAYED, place_once
from backend.api.platform.deps import LARGEST_ID
from backend.api.platform.fine_tuning_jobs import (
    ModelName,
    Name,
    Prompt,
    ProviderName,
    RowNumber,
    placed,
    tools_of,
)
from backend.api.services import ServicesDep
from backend.billing import orders
from backend.kit.owner import Owner
from backend.launches import choosing, service
from backend.launches.wishes import Wish
from backend.training.sizing import Method

router = APIRouter(prefix="/checkout", tags=["launches"])

Numbers = Annotated[list[RowNumber], Field(max_length=1000)]


class PendingTranscription(BaseModel):
    """A content, by its id, whose text may still be on its way."""

    id: RowNumber


class OnboardingIn(BaseModel):
    """`character_count` is the client's estimate and decides nothing: the server counts.

    Without `content_ids`, the launch takes all documents of the project. Without `project_id`, that is the project of
    the contents which are named, or the caller's only one.
    """

    character_count: int = Field(ge=0, le=LARGEST_ID)
    pending_transcriptions: list[PendingTranscription] = Field(default=[], max_length=1000)
    dataset_name: Name
    system_content: Prompt | None = None
    provider: ProviderName
    model: ModelName
    project_id: RowNumber | None = None
    content_ids: Numbers | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    method: Method = "qlora"


class OnboardingOut(BaseModel):
    """`status` is `success` when the work has begun, and `pending_payment` with a `checkout_url` otherwise."""

    status: Literal["success", "pending_payment"]
    free_processing: bool
    redirect_url: str | None
    checkout_url: str | None
    order_id: int
    dataset_id: int | None
    fine_tuning_id: int | None
    quote: dict[str, Any]
    warnings: list[str]


@router.post(
    "/create-onboarding-session",
    status_code=201,
    dependencies=[KEY_DOCUMENTED],
    responses=error_responses(400, 401, 403, 404, 409, 502, 503),
)
async def create_onboarding_session(
    body: OnboardingIn, request: Request, response: Response, claims: ClaimsDep, services: ServicesDep
) -> OnboardingOut:
    """As POST /api/fine-tuning-jobs; the onboarding counts as completed once the work begins."""

    async def place(session: AsyncSession, owner: Owner) -> int:
        project_id, wish = await _wish(session, owner, body)
        return (await service.launch(session, tools_of(services), owner, project_id, wish, orders.ONBOARDING)).id

    number, replayed = await place_once(request, claims, place)
    if replayed:
        response.headers[REPLAYED] = "true"
    order = await placed(services, number)
    to_pay = order.amount_cents > 0
    return OnboardingOut(
        status="pending_payment" if to_pay else "success",
        free_processing=not to_pay,
        redirect_url=None if to_pay else services.post.page("dashboard", onboarding_completed="true"),
        checkout_url=order.checkout_url,
        order_id=order.id,
        dataset_id=None if to_pay else order.dataset_id,
        fine_tuning_id=None if to_pay else order.fine_tuning_id,
        quote=order.quote,
        warnings=order.params["warnings"],
    )


async def _wish(session: AsyncSession, owner: Owner, body: OnboardingIn) -> tuple[int, Wish]:
    named = {content.id for content in body.pending_transcriptions} | set(body.content_ids or ())
    project_id, content_ids = await choosing.choose(
        session, owner, project_id=body.project_id, named=sorted(named), only_named=body.content_ids is not None
    )
    return project_id, Wish(
        content_ids=content_ids,
        dataset_name=body.dataset_name,
        job_name=body.dataset_name,
        provider=body.provider,
        model=body.model,
        method=body.method,
        hyperparameters=body.hyperparameters,
        system_prompt=body.system_content or None,
    )
