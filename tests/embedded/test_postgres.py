"""PostgreSQL under our supervision: durability, recovery, odd folders, root and ordinary users."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from backend.embedded import processes
from backend.embedded.place import PlaceUnusable, find_place, installed_binaries
from backend.embedded.postgres import Postgres, PostgresError
from backend.embedded.servers import temporary_servers
from tests.embedded.product import eventually, needs_linux, needs_root


@pytest.fixture
def servers() -> Iterator[list[Postgres]]:
    """Servers to stop after the test."""
    made: list[Postgres] = []
    yield made
    for server in made:
        server.stop()


async def fetch(server: Postgres, *statements: str, database: str = "finetuneflow") -> object:
    connection = await asyncpg.connect(server.url(database).replace("+asyncpg", ""))
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


async def test_acknowledged_rows_and_the_port_survive_kill_9(open_folder: Path, servers: list[Postgres]) -> None:
    server = Postgres(open_folder / "postgres")
    servers.append(server)
    server.start()
    url = server.url()
    await fetch(server, "CREATE TABLE kept (n int)", "SELECT 1")
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    for number in range(50):
        await connection.execute("INSERT INTO kept VALUES ($1)", number)
    assert server.process
    os.kill(server.process.pid, signal.SIGKILL)
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        for _ in range(100):
            await connection.execute("SELECT pg_sleep(0.05)")
    connection.terminate()
    server.start()
    assert server.url() == url
    assert await fetch(server, "SELECT count(*) FROM kept") == 50


async def test_the_cluster_is_what_the_design_says(open_folder: Path, servers: list[Postgres]) -> None:
    server = Postgres(open_folder / "postgres")
    servers.append(server)
    server.start()
    locale = "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'finetuneflow'"
    assert await fetch(server, locale) == "bC.UTF-8"
    assert await fetch(server, "SHOW listen_addresses") == "127.0.0.1"
    assert await fetch(server, "SHOW fsync") == "on"
    kept_password = await fetch(server, "SELECT rolpassword FROM pg_authid WHERE rolname = 'finetuneflow'")
    assert str(kept_password).startswith("SCRAM-SHA-256$")
    assert (server.place.folder / "password").stat().st_mode & 0o777 == 0o600
    assert server.place.folder.stat().st_mode & 0o777 == 0o700
    wrong = server.url().replace(server.password, "wrong").replace("+asyncpg", "")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)
    assert server.password not in processes.command_line(server.process.pid)  # type: ignore[union-attr]


async def test_databases_are_made_from_templates_and_dropped() -> None:
    with temporary_servers() as both:
        server = both.postgres
        server.create_database("base")
        await fetch(server, "CREATE TABLE t AS SELECT 5 AS n", "SELECT 1", database="base")
        server.create_database("copy", template="base")
        assert await fetch(server, "SELECT n FROM t", database="copy") == 5
        with pytest.raises(PostgresError, match="already exists"):
            server.create_database("copy")
        with pytest.raises(ValueError, match="not a database name"):
            server.create_database('x"; DROP DATABASE base; --')
        server.drop_database("copy")
        server.drop_database("copy")
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await fetch(server, "SELECT 1", database="copy")
        folder = server.folder.parent
    assert not folder.exists()


@pytest.mark.parametrize("name", ['a space, a comma, it\'s "quoted" and été', "a" * 100 + "/" + "b" * 60])
async def test_odd_folders_work(open_folder: Path, servers: list[Postgres], name: str) -> None:
    folder = open_folder / name
    folder.mkdir(parents=True)
    server = Postgres(folder / "postgres", fast=True)
    servers.append(server)
    server.start()
    assert await fetch(server, "SELECT 1") == 1
    assert server.place.folder == folder / "postgres"
    sockets = list(server.place.folder.glob(".s.PGSQL.*"))
    assert bool(sockets) == (len(str(folder)) < 80)  # a socket's path holds 107 bytes
    server.stop()
    server.start()
    assert await fetch(server, "SELECT 1") == 1


async def test_half_a_cluster_is_made_again(open_folder: Path, servers: list[Postgres]) -> None:
    server = Postgres(open_folder / "postgres", fast=True)
    servers.append(server)
    half = server.place.folder / "data.killed"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    server.start()
    assert await fetch(server, "SELECT 1") == 1
    assert not half.exists()


async def test_a_server_left_on_the_cluster_is_ended_and_a_stranger_with_its_pid_is_not(
    open_folder: Path, servers: list[Postgres]
) -> None:
    left = Postgres(open_folder / "postgres", fast=True)
    left.start()
    assert left.process
    await fetch(left, "CREATE TABLE t AS SELECT 5 AS n", "SELECT 1")
    server = Postgres(open_folder / "postgres", fast=True)
    servers.append(server)
    server.start()
    assert left.process.wait(1) == 0
    assert await fetch(server, "SELECT n FROM t") == 5
    lines = (server.cluster / "postmaster.pid").read_text().splitlines()
    server.stop()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        (server.cluster / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        server.start()
        assert stranger.poll() is None
        assert await fetch(server, "SELECT n FROM t") == 5
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_port_taken_meanwhile_is_given_up_for_another(open_folder: Path, servers: list[Postgres]) -> None:
    with temporary_servers() as both:
        server = Postgres(open_folder / "postgres", fast=True)
        servers.append(server)
        server.port = both.postgres.port
        server.start()
        assert server.port != both.postgres.port
        assert await fetch(server, "SELECT 1") == 1


@needs_root
async def test_root_with_a_private_folder_gets_a_place_that_it_finds_again(
    tmp_path: Path, open_folder: Path, servers: list[Postgres]
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    modes = {path: path.stat().st_mode for path in (private, *private.parents)}
    fallbacks = (open_folder / "fallback",)
    server = Postgres(private / "postgres", fast=True, fallbacks=fallbacks)
    servers.append(server)
    server.start()
    await fetch(server, "CREATE TABLE t AS SELECT 5 AS n", "SELECT 1")
    assert server.place.folder.parent == fallbacks[0]
    assert {path: path.stat().st_mode for path in modes} == modes
    server.stop()
    again = Postgres(private / "postgres", fast=True, fallbacks=(open_folder / "another",))
    servers.append(again)
    again.start()
    assert await fetch(again, "SELECT n FROM t") == 5
    again.stop()
    # A moved data folder keeps its database; a copy must not share it.
    moved = tmp_path / "moved"
    private.rename(moved)
    assert find_place(moved / "postgres", fallbacks).folder == server.place.folder
    shutil.copytree(moved, tmp_path / "copy")
    with pytest.raises(PlaceUnusable, match="is a copy of"):
        find_place(tmp_path / "copy" / "postgres", fallbacks)
    shutil.rmtree(server.place.folder)
    with pytest.raises(PlaceUnusable, match="which is gone"):
        find_place(moved / "postgres", fallbacks)


@needs_root
async def test_binaries_out_of_reach_are_copied_once(
    tmp_path: Path, open_folder: Path, servers: list[Postgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    site = tmp_path / "site-packages"
    package = installed_binaries().parents[1]
    shutil.copytree(package, site / package.name, copy_function=os.link, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, site / libraries.name, copy_function=os.link)
    monkeypatch.syspath_prepend(str(site))
    assert installed_binaries().is_relative_to(site)
    server = Postgres(open_folder / "postgres", fast=True, fallbacks=(open_folder / "fallback",))
    servers.append(server)
    server.start()
    assert await fetch(server, "SELECT 1") == 1
    assert server.place.binaries.is_relative_to(open_folder / "fallback")
    assert server.place.folder == open_folder / "postgres"  # only the binaries were out of reach
    assert len(list((open_folder / "fallback").iterdir())) == 1
    assert find_place(open_folder / "postgres", (open_folder / "fallback",)).binaries == server.place.binaries


@needs_root
def test_a_fallback_that_others_can_write_is_not_used(tmp_path: Path, open_folder: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    shared = open_folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(PlaceUnusable, match="ordinary user"):
        find_place(tmp_path / "private" / "postgres", (shared,))
    assert stat.S_IMODE(shared.stat().st_mode) == 0o777


@needs_linux
def test_the_server_ends_with_its_supervisor(open_folder: Path) -> None:
    program = (
        "import sys, time, pathlib; from backend.embedded.postgres import Postgres; "
        "p = Postgres(pathlib.Path(sys.argv[1]), fast=True); "
        "p.start(); print(p.process.pid, flush=True); time.sleep(600)"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", program, str(open_folder / "postgres")], stdout=subprocess.PIPE
    )
    with supervisor:
        assert supervisor.stdout
        server = processes.Identity.of(int(supervisor.stdout.readline()))
        assert server and server.alive()
        supervisor.kill()
    eventually(lambda: not server.alive())
