"""The steps of a launch. Each reads from the rows what is done already, so that one which is repeated changes nothing.

The caller holds the rows of user, project and order, in this order; the account's row comes last (billing.charging).
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import charging, orders, pricing
from backend.billing.models import Order
from backend.billing.pricing import Means, Prices, Quote
from backend.contents.models import Content
from backend.datasets import queries as dataset_queries
from backend.datasets import service as datasets
from backend.datasets.models import Dataset, Example
from backend.jobs import queries as job_queries
from backend.jobs.errors import JobAlreadyRunning
from backend.jobs.models import Job
from backend.jobs.states import ENDED
from backend.kit.config import Settings
from backend.kit.db import is_one_of
from backend.launches.errors import (
    LaunchDatasetFailed,
    LaunchLostContents,
    LaunchLostProject,
    LaunchRunCancelled,
    LaunchRunFailed,
    LaunchWaitedTooLong,
)
from backend.launches.tools import Tools
from backend.launches.wishes import Granted, Wish, check, unknown_of
from backend.projects.models import Project
from backend.training import planned, statuses
from backend.training.errors import TrainingAlreadyRunning
from backend.training.models import FineTuning
from backend.training.statuses import Status
from backend.users.models import User

# For contents to be transcribed, with all the retries that their jobs have.
CONTENT_HOURS = 24
# How soon what is waited for is looked at again: a twentieth of the time so far, within these bounds.
_SHORTEST_SECONDS, _LONGEST_SECONDS, _PATIENCE = 2.0, 60.0, 20.0


async def quote(session: AsyncSession, settings: Settings, user_id: int, characters: int) -> Quote:
    """What work of so many characters costs this user now; nothing for the owner of AUTH_MODE=local."""
    prices = Prices.of(settings)
    if await charging.is_local(session, user_id):
        return pricing.quote(prices, Means(available=characters), characters)
    return pricing.quote(prices, await charging.means(session, settings, user_id), characters)


async def begin(session: AsyncSession, tools: Tools, order: Order, granted: Granted, price: Quote) -> None:
    """Holds the characters that are known, and makes the rows of dataset and fine-tuning: their ids are known now.

    Raises InsufficientCharacters.
    """
    wish = granted.wish
    dataset = Dataset(
        project_id=granted.project.id,
        name=wish.dataset_name,
        model=wish.model,
        status="processing",
        report={dataset_queries.PLANNED: True},
    )
    session.add(dataset)
    await session.flush()
    run = await planned.plan(session, granted.project, dataset, wish.wanted, granted.run, wish.system_prompt)
    if order.kind == orders.ONBOARDING:
        onboarded = update(User).where(User.id == order.user_id).values(has_completed_onboarding=True)
        await session.execute(onboarded)
    order.dataset_id, order.fine_tuning_id = dataset.id, run.id
    order.state, order.next_step_at = orders.RUNNING, datetime.now(UTC)
    await session.flush()
    await charging.reserve_for_order(session, tools.settings, order, price)


async def forward(session: AsyncSession, tools: Tools, order: Order) -> None:
    """The next step of a paid or running launch. Raises the DomainError for which it has to end."""
    project = None if order.project_id is None else await session.get(Project, order.project_id)
    if project is None:
        raise LaunchLostProject()
    if order.state == orders.PAID:
        granted = await check(session, tools.settings, tools.library, project, Wish.of(order.params))
        price = await quote(session, tools.settings, order.user_id, granted.characters)
        await begin(session, tools, order, granted, price)
        return
    dataset = None if order.dataset_id is None else await session.get(Dataset, order.dataset_id)
    if dataset is None:
        raise LaunchLostProject()
    run = None if order.fine_tuning_id is None else await session.get(FineTuning, order.fine_tuning_id)
    if run is None or run.status == Status.CANCELLED:
        raise LaunchRunCancelled()
    if run.status == Status.COMPLETED:
        await orders.end(session, order, orders.COMPLETED)
    elif run.status in statuses.ENDED:
        raise LaunchRunFailed(reason=run.error_message or "the reason is not known.")
    elif run.job_id is not None or dataset.status == "ready":
        await _train(session, tools, order, run)
    else:
        await _make_dataset(session, tools, order, project, dataset)


def wait(order: Order, seconds: float | None = None) -> None:
    """Has the order looked at again later; the longer it takes, the more rarely."""
    now = datetime.now(UTC)
    if seconds is None:
        so_far = (now - (order.paid_at or order.created_at)).total_seconds()
        seconds = min(max(so_far / _PATIENCE, _SHORTEST_SECONDS), _LONGEST_SECONDS)
    order.next_step_at = now + timedelta(seconds=seconds)


async def _make_dataset(session: AsyncSession, tools: Tools, order: Order, project: Project, dataset: Dataset) -> None:
    """Starts the dataset's job once its contents have their text and it is the project's turn; else waits."""
    last = await dataset_queries.find_last_making(session, dataset)
    if last is not None:
        if last.state in ENDED and dataset.status == "error":
            raise _failure_of(last)
        wait(order)
        return
    contents = await _contents(session, project, Wish.of(order.params).content_ids)
    datasets.require_documents(contents)
    if unknown_of(contents):
        began = order.paid_at or order.created_at
        if datetime.now(UTC) - began > timedelta(hours=CONTENT_HOURS):
            raise LaunchWaitedTooLong(hours=CONTENT_HOURS)
        wait(order)
        return
    if await job_queries.is_taken(session, datasets.key_of(project)):
        wait(order)
        return
    try:
        async with session.begin_nested():
            await _start_making(session, tools, order, project, dataset, contents)
    except JobAlreadyRunning:
        await session.refresh(order)
    wait(order)


async def _start_making(
    session: AsyncSession, tools: Tools, order: Order, project: Project, dataset: Dataset, contents: Sequence[Content]
) -> None:
    """Raises JobAlreadyRunning, InsufficientCharacters."""
    _, job = await datasets.create_from_contents(
        session,
        tools.broker,
        tools.settings,
        project,
        contents,
        name=dataset.name,
        description=dataset.description,
        model=dataset.model or "",
        planned=dataset,
        holds=False,
    )
    assert job is not None, "a launch has contents"
    characters = sum(content.character_count for content in contents)
    if order.hold_id is None:
        price = await quote(session, tools.settings, order.user_id, characters)
        await charging.reserve_for_order(session, tools.settings, order, price)
    else:
        await charging.top_up(session, tools.settings, order.hold_id, characters)
    job.params = {**job.params, "hold_id": order.hold_id}
    await session.flush()


async def _train(session: AsyncSession, tools: Tools, order: Order, run: FineTuning) -> None:
    """Starts the planned run on the finished dataset, or waits for one that was started."""
    if run.job_id is None:
        wish = Wish.of(order.params)
        try:
            async with session.begin_nested():
                if wish.system_prompt:
                    await _give_system_prompt(session, run.dataset_id, wish.system_prompt)
                await planned.start(session, tools.broker, tools.library, run.id, wish.wanted)
        except TrainingAlreadyRunning:
            await session.refresh(order)
    wait(order)


async def _give_system_prompt(session: AsyncSession, dataset_id: int, prompt: str) -> None:
    """Puts the prompt in front of every conversation of the dataset that has nothing there yet."""
    await dataset_queries.lock(session, dataset_id)
    alone = (Example.dataset_id == dataset_id, Example.history.is_(None), Example.split != "preview")
    await session.execute(update(Example).where(*alone).values(history=[{"role": "system", "content": prompt}]))


async def _contents(session: AsyncSession, project: Project, numbers: Sequence[int]) -> Sequence[Content]:
    """Raises LaunchLostContents."""
    rows = await session.scalars(
        select(Content).where(Content.project_id == project.id, is_one_of(Content.id, numbers)).order_by(Content.id)
    )
    found = rows.all()
    if lost := sorted(set(numbers) - {content.id for content in found}):
        raise LaunchLostContents(content_ids=lost)
    return found


def _failure_of(job: Job) -> LaunchDatasetFailed:
    error = LaunchDatasetFailed(job.error_message)
    if job.error_code is not None:
        error.code, error.context = job.error_code, dict(job.error_context or {})
    return error
