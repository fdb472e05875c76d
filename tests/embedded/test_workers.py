"""Real Celery workers under the supervisor: a long task holds up neither a stop nor an end by force."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from backend.embedded import services
from tests.embedded.product import REPOSITORY, Product, all_gone, eventually, needs_linux

SEND = "from tests.embedded.stand_in_tasks import work; [work.apply_async((600,), queue='default') for _ in range(2)]"


def keep_busy(product: Product, redis_url: str) -> None:
    """Give both processes of the worker ten minutes of work, and wait until they are at it."""
    log = product.data_dir / "logs" / "worker.log"
    environment = {**os.environ, "REDIS_URL": redis_url}
    subprocess.run([sys.executable, "-c", SEND], cwd=REPOSITORY, env=environment, check=True)
    eventually(lambda: log.read_text().count("at work") == 2, 30)


@needs_linux
def test_a_long_task_holds_up_neither_a_stop_nor_an_end_by_force(product: Callable[..., Product]) -> None:
    one = product(**{"with": "celery"})
    state = one.wait_up()
    keep_busy(one, state.redis_url)
    one.process.kill()
    one.end()
    eventually(lambda: all_gone(one.data_dir, state.processes))  # the kernel sees to it, no second start needed
    again = product(**{"with": "celery"})
    state = again.wait_up()
    keep_busy(again, state.redis_url)
    asked_at = time.monotonic()
    again.process.send_signal(signal.SIGINT)
    assert again.end() == 0
    assert time.monotonic() - asked_at < 15
    assert all_gone(again.data_dir, state.processes)


def test_every_queue_has_its_worker_and_the_scheduler_a_process_of_its_own(tmp_path: Path) -> None:
    made = services.product_services(tmp_path, "127.0.0.1", 8000, 9000)
    assert [service.name for service in made] == [
        "api", "llm", "worker-default", "worker-llm", "worker-gpu", "serving", "worker-control", "beat",
    ]  # fmt: skip
    assert [service.name for service in made if service.awaited] == ["api"]
    assert "llm" not in [service.name for service in services.product_services(tmp_path, "127.0.0.1", 8000, None)]


def test_the_address_for_this_machine_of_what_listens_everywhere() -> None:
    hosts = ("127.0.0.1", "0.0.0.0", "::", "example.test")
    assert [services.reachable(host) for host in hosts] == ["127.0.0.1", "127.0.0.1", "[::1]", "example.test"]
