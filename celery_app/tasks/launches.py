"""Takes launches further: every few seconds whatever is due, and one order at once when something happened to it."""

from collections.abc import Awaitable, Callable

from celery import shared_task

from backend.kit.background import Background
from backend.kit.mail import Mailer
from backend.launches import advancing, service
from backend.launches.tools import Tools
from backend.users.recovery import Post
from celery_app import runtime
from celery_app.wiring import library


@shared_task(name=advancing.TICK)
def tick() -> None:
    _with_tools(advancing.tick)


@shared_task(name=service.ADVANCE)
def advance(order_id: int) -> None:
    _with_tools(lambda tools: advancing.advance(tools, order_id))


def _with_tools(work: Callable[[Tools], Awaitable[object]]) -> None:
    current = runtime.get()
    settings = current.settings

    async def run() -> None:
        background = Background()
        post = Post(Mailer(settings), background, settings.frontend_url)
        await work(Tools(current.db, settings, current.broker, current.events, library(current), post))
        # Mails are sent beside the work, and this process may end with the task.
        await background.idle()

    current.run(run())
