"""The only door to Celery: makes the app, and sends a job's message."""

import asyncio
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)

QUEUES = ("default", "llm", "gpu", "control")

# A request must not wait for a broker that is down or frozen. Without these figures kombu tries for 6 and 15 seconds,
# and the scheduler falls silent after the shortest outage.
SEND_SECONDS = 2.0
_SENDERS = 4
_CONNECTION = {
    "socket_connect_timeout": 1,
    "socket_timeout": 15,
    "socket_keepalive": True,
    "max_retries": 0,
    "connect_retries_timeout": 1,
}
_SENDER_CONNECTION = {**_CONNECTION, "socket_timeout": 1}


def make_celery(redis_url: str) -> "Celery":
    """A Celery app whose messages are hints: the jobs table decides what runs, so nothing here tries to be reliable."""
    from celery import Celery

    app = Celery("finetuneflow", broker=redis_url)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue="default",
        task_create_missing_queues=True,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_soft_shutdown_timeout=3.0,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_CONNECTION,
        timezone="UTC",
    )
    return app


class Broker:
    """Sends messages that carry a job id only. A lost message is found again by the sweeper."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._app: Celery | None = None
        self._making = threading.Lock()
        # Threads of its own: those of the loop's default executor must not pile up behind a frozen broker.
        self._threads = ThreadPoolExecutor(_SENDERS, thread_name_prefix="broker")

    def send_now(self, task: str, queue: str, args: tuple[Any, ...], headers: Mapping[str, Any] | None = None) -> bool:
        """Publishes in this thread; False when the broker is down."""
        try:
            self._sender().send_task(
                task, args=args, queue=queue, retry=False, headers=dict(headers or {}), ignore_result=True
            )
        except Exception as error:  # kombu raises whatever the transport raises
            log.warning("broker is down, the sweeper will resend %s %s: %s", task, args, error)
            return False
        return True

    async def send(self, task: str, queue: str, *args: Any) -> bool:
        """Publishes without blocking the event loop, in at most SEND_SECONDS; False when the broker is down."""
        sending = asyncio.get_running_loop().run_in_executor(self._threads, self.send_now, task, queue, args)
        try:
            return await asyncio.wait_for(sending, SEND_SECONDS)
        except TimeoutError:
            log.warning("broker does not answer, the sweeper will resend %s %s", task, args)
            return False

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._app is not None:
            self._app.close()
            self._app = None

    def _sender(self) -> "Celery":
        with self._making:
            if self._app is None:
                self._app = make_celery(self._redis_url)
                self._app.conf.broker_transport_options = _SENDER_CONNECTION
            return self._app
