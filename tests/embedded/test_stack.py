"""The embedded stack as a whole: start, stop, refusal, recovery from the death of any part, and of itself."""

import asyncio
import os
import pwd
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
import redis

from backend.embedded import processes
from backend.embedded.data_folder import StackAlreadyRunning, read_state
from backend.embedded.services import answers
from backend.embedded.stack import AddressUnusable, EmbeddedStack, StackOptions, running
from tests.embedded.product import Product, all_gone, eventually, helpers, marked, needs_linux, needs_root
from tests.embedded.stand_in_product import stand_ins

OTHER_LLM = "http://127.0.0.1:9/v1"
# For what is not about the servers: started without them, a stack is up in a tenth of a second.
GIVEN = {"database_url": "postgresql+asyncpg://u:p@127.0.0.1:9/d", "redis_url": "redis://127.0.0.1:9/0"}


def options(data_dir: Path, **more: object) -> StackOptions:
    values: dict[str, object] = {
        "port": 0,
        "services": stand_ins,
        "llm_base_url": OTHER_LLM,
        "report": lambda line: None,
    }
    return StackOptions(data_dir=data_dir, **{**values, **more})  # type: ignore[arg-type]


async def query(url: str, *statements: str) -> object:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


@needs_linux
def test_starts_everything_and_leaves_nothing(open_folder: Path) -> None:
    seen: list[str] = []
    data = open_folder / "data"
    with running(options(data, migrate=lambda url: seen.append(url), on_start=lambda url: seen.append(url))) as stack:
        assert seen == [stack.database_url, stack.database_url]
        assert stack.pids().keys() == {"postgres", "valkey", "api", "worker"}
        assert answers(f"{stack.api_url}/health")
        assert redis.Redis.from_url(stack.redis_url).ping()
        assert asyncio.run(query(stack.database_url, "SELECT current_database()")) == "finetuneflow"
        environment, pids = stack.environment(), stack.pids()
        state = read_state(data)
        assert state and state.pid == os.getpid() and state.api_url == stack.api_url
        assert (data / "stack.json").stat().st_mode & 0o777 == 0o600
        assert environment["STORAGE_URL"] == (data / "storage").as_uri()
        assert environment["AUTH_MODE"] == "local"
    assert read_state(data) is None
    assert all_gone(data, pids)
    with running(options(data)) as stack:  # the same folder, the same secrets
        assert stack.environment()["SECRET_KEY"] == environment["SECRET_KEY"]


def test_given_servers_are_used_and_none_is_started(open_folder: Path) -> None:
    with running(options(open_folder / "data", **GIVEN, storage_url="s3://bucket/x")) as stack:
        assert stack.pids().keys() == {"api", "worker"}
        environment = stack.environment()
    assert (environment["DATABASE_URL"], environment["REDIS_URL"]) == tuple(GIVEN.values())
    assert (environment["STORAGE_URL"], environment["LLM_BASE_URL"]) == ("s3://bucket/x", OTHER_LLM)
    assert not (open_folder / "data" / "postgres").exists()


def test_a_providers_model_needs_no_server_of_ours(open_folder: Path) -> None:
    given: dict[str, object] = {**GIVEN, "llm_base_url": None, "llm_model": "anthropic/claude"}
    with running(options(open_folder / "data", **given)) as stack:
        environment = stack.environment()
        assert stack.llm_port is None
    assert (environment["LLM_BASE_URL"], environment["LLM_MODEL"]) == ("", "anthropic/claude")


@needs_linux
def test_every_part_comes_back_after_kill_9(open_folder: Path) -> None:
    lines: list[str] = []
    data = open_folder / "data"
    with running(options(data, report=lines.append)) as stack:
        before, urls = stack.pids(), (stack.database_url, stack.redis_url)
        asyncio.run(query(stack.database_url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7) RETURNING n"))
        helper = eventually(lambda: helpers(data))
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)

        def all_back() -> bool:
            now = stack.pids()
            fresh = now.keys() == before.keys() and not set(now.values()) & set(before.values())
            servers = [server for server in (stack.valkey, stack.postgres) if server and server.ready()]
            return fresh and len(servers) == 2 and answers(f"{stack.api_url}/health")

        eventually(all_back)
        assert (stack.database_url, stack.redis_url) == urls  # same ports: clients reconnect
        assert asyncio.run(query(stack.database_url, "SELECT n FROM kept")) == 7
        assert not set(helper) & set(marked(data))  # nothing of the killed worker works on beside the new one
        for name in before:
            assert any(line.startswith(f"{name} (pid {before[name]}) was killed by SIGKILL") for line in lines)


@needs_linux
def test_kill_9_of_the_supervisor_leaves_no_orphan_and_the_folder_usable(product: Callable[..., Product]) -> None:
    first = product()
    state = first.wait_up()
    [helper] = eventually(lambda: helpers(first.data_dir))
    first.process.kill()
    first.end()
    eventually(lambda: all(processes.Identity.of(pid) is None for pid in state.processes.values()))
    assert read_state(first.data_dir) is None
    second = product()  # beside a stale stack.json, lock and record
    again = second.wait_up()
    # The dead worker's helper had a session of its own, so the kernel told it nothing: the second start ended it.
    assert processes.Identity.of(helper) is None
    second.process.send_signal(signal.SIGTERM)
    assert second.end() == 0
    assert all_gone(second.data_dir, again.processes)


def test_an_orphan_the_kernel_did_not_end_is_ended_by_the_next_start(open_folder: Path) -> None:
    data = open_folder / "data"
    with running(options(data, **GIVEN)):
        pass
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    record = processes.ProcessRecord(data / "processes.json")
    record.add("worker", orphan.pid, signal.SIGTERM)
    record.add("api", stranger.pid, signal.SIGTERM)
    text = record.path.read_text()
    identity = processes.Identity.of(stranger.pid)
    assert identity  # the same pid, another start: a pid that was given to somebody else
    others = text.replace(
        f'"pid": {stranger.pid},\n  "started": "{identity.started}"', f'"pid": {stranger.pid},\n  "started": "x"'
    )
    assert others != text
    record.path.write_text(others)
    try:
        with running(options(data, **GIVEN)):
            assert orphan.wait(5) == -signal.SIGTERM
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        orphan.kill()
        orphan.wait()


def test_a_second_start_on_the_same_folder_is_refused_with_the_pid(product: Callable[..., Product]) -> None:
    first = product(**GIVEN)
    state = first.wait_up()
    with pytest.raises(StackAlreadyRunning, match=f"process {first.process.pid} already runs") as refusal:
        EmbeddedStack(options(first.data_dir)).start()
    assert refusal.value.pid == first.process.pid
    second = product()
    assert second.end() == 1
    assert f"process {first.process.pid} already runs" in second.text()
    assert read_state(first.data_dir) == state
    assert answers(f"{state.api_url}/health")


def test_a_taken_port_is_told_with_the_way_out(open_folder: Path, product: Callable[..., Product]) -> None:
    state = product(open_folder / "one", **GIVEN).wait_up()
    port = int(state.api_url.rpartition(":")[2])
    other = EmbeddedStack(options(open_folder / "two", port=port))
    with pytest.raises(AddressUnusable, match=f"port {port} on 127.0.0.1 is in use.*--port"):
        other.start()
    with pytest.raises(AddressUnusable, match=r"cannot listen on port 8000 of 203\.0\.113\.1.*--host"):
        EmbeddedStack(options(open_folder / "two", host="203.0.113.1", port=8000)).start()
    with running(options(open_folder / "two", **GIVEN)):  # the refused start holds nothing
        pass


def test_a_failing_migration_stops_what_was_started(open_folder: Path) -> None:
    def fail(url: str) -> None:
        raise LookupError("no such revision")

    with pytest.raises(LookupError, match="no such revision"), running(options(open_folder / "data", migrate=fail)):
        pass
    if processes.LINUX:
        assert marked(open_folder / "data") == []


def test_a_service_that_keeps_ending_fails_the_start_with_its_log(open_folder: Path) -> None:
    def broken(stack: EmbeddedStack) -> list[object]:
        service, _ = stand_ins(stack)
        return [
            service.__class__(
                "api", (sys.executable, "-c", "raise SystemExit('no module')"), health_url="http://x", awaited=True
            )
        ]

    with pytest.raises(RuntimeError, match=r"(?s)api exited with code 1.*no module"):
        EmbeddedStack(options(open_folder / "data", services=broken, **GIVEN)).start()


@needs_linux
def test_signals_stop_it_cleanly_even_while_it_starts(product: Callable[..., Product]) -> None:
    one = product()
    one.wait_up()
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 0, one.text()
    assert "stopped" in one.text()
    early = product()
    eventually(lambda: (early.data_dir / "lock").read_text().strip() == str(early.process.pid))
    early.process.send_signal(signal.SIGTERM)
    assert early.end() == 0
    assert marked(one.data_dir) == []


@needs_linux
def test_a_second_ctrl_c_does_not_wait_for_who_will_not_stop(product: Callable[..., Product]) -> None:
    one = product(**GIVEN, **{"with": "stubborn"})
    one.wait_up()
    log = one.data_dir / "logs" / "stubborn.log"
    eventually(lambda: log.exists() and "stubborn runs" in log.read_text())
    one.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        one.end(1)
    one.process.send_signal(signal.SIGINT)
    assert one.end(5) == 0
    assert marked(one.data_dir) == []


def test_permissions_of_a_folder_that_was_there_stay_and_what_is_made_is_private(open_folder: Path) -> None:
    data = open_folder / "data"
    data.mkdir(mode=0o755)
    (data / "mine.txt").write_text("x")
    os.chmod(data, 0o751)
    before = [(path, path.stat().st_mode, path.stat().st_uid) for path in (open_folder, data, data / "mine.txt")]
    with running(options(data)):
        pass
    assert before == [
        (path, path.stat().st_mode, path.stat().st_uid) for path in (open_folder, data, data / "mine.txt")
    ]
    for path in data.rglob("*"):
        if path.name != "mine.txt" and not path.is_symlink() and path.parent == data:
            assert not path.stat().st_mode & 0o077, f"{path} {stat.filemode(path.stat().st_mode)}"
    made = open_folder / "made"
    with running(options(made, **GIVEN)):
        assert made.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)


@needs_root
@needs_linux
def test_works_as_an_ordinary_user(open_folder: Path, product: Callable[..., Product]) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    python = python_for(nobody)
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, nobody, nobody)
    one = product(home / "data", python=python, user=nobody)
    state = one.wait_up()
    assert {os.stat(f"/proc/{pid}").st_uid for pid in state.processes.values()} == {nobody}
    os.kill(state.processes["postgres"], signal.SIGKILL)
    eventually(lambda: "postgres runs again" in one.text())
    eventually(lambda: _answers_sql(state.database_url))
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == 0
    # Then root on the same folder: the database goes on as its owner's.
    with running(options(home / "data")) as stack:
        assert os.stat(f"/proc/{stack.pids()['postgres']}").st_uid == nobody


def _answers_sql(url: str) -> bool:
    try:
        return asyncio.run(query(url, "SELECT 1")) == 1
    except (OSError, asyncpg.PostgresError):
        return False


def python_for(user: int) -> str:
    """A Python of this version that the user can run with our packages."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    check = (
        f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]}; sys.path.append({packages!r}); import rich"
    )
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run(
                [python, "-c", check], user=user, group=user, extra_groups=[], cwd="/", check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("no Python of this version that an ordinary user can run with our packages")


def test_options_come_from_the_environment_and_a_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATA_DIR", "DATABASE_URL", "REDIS_URL", "STORAGE_URL", "LLM_BASE_URL", "LLM_MODEL", "SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text("REDIS_URL=redis://from-file\nDATABASE_URL=postgresql://from-file\n")
    monkeypatch.setenv("DATABASE_URL", "postgresql://from-environment")
    monkeypatch.setenv("DATA_DIR", "somewhere")
    found = StackOptions.from_environment(port=9000)
    assert (found.redis_url, found.database_url) == ("redis://from-file", "postgresql://from-environment")
    assert (found.data_dir, found.port, found.storage_url) == (Path("somewhere"), 9000, None)
    assert StackOptions.from_environment(data_dir=Path("other")).data_dir == Path("other")
