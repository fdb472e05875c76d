"""Valkey under our supervision: durability, one server per file, a password that does not show."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from backend.embedded import processes, valkey
from backend.embedded.valkey import Valkey, ValkeyUnusable
from tests.embedded.product import eventually


@pytest.fixture
def server(open_folder: Path) -> Iterator[Valkey]:
    folder = open_folder / 'with "quotes" and spaces'
    folder.mkdir()
    server = Valkey(folder / "valkey")
    server.start()
    yield server
    server.stop()


def client(server: Valkey) -> "redis.Redis":
    return redis.Redis.from_url(server.url())


def kill_9(server: Valkey) -> None:
    assert server.process
    os.kill(server.process.pid, signal.SIGKILL)
    eventually(lambda: not server.running())


def test_what_was_synced_and_the_port_survive_kill_9_and_a_cut_file(server: Valkey) -> None:
    url = server.url()
    with client(server) as connection:
        connection.set("kept", "7")
        time.sleep(1.2)  # the file is synced every second
    kill_9(server)
    [log] = (server.folder / "appendonlydir").glob("*.incr.aof")
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nx")  # what a kill in the middle of a write leaves
    server.start()
    assert server.url() == url
    with client(server) as connection:
        assert connection.get("kept") == b"7"
        assert connection.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert connection.config_get("appendfsync") == {"appendfsync": "everysec"}


def test_the_password_is_needed_private_and_out_of_sight(server: Valkey) -> None:
    assert server.process
    assert server.password not in processes.command_line(server.process.pid)
    assert (server.folder / "password").stat().st_mode & 0o777 == 0o600
    assert server.folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(redis.AuthenticationError), redis.Redis(port=server.port) as anonymous:
        anonymous.ping()


def test_two_servers_on_one_file_are_impossible(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "LOCK_WAIT_SECONDS", 0.2)
    second = Valkey(server.folder)
    with pytest.raises(ValkeyUnusable, match="another Valkey uses"):
        second.start()
    with client(server) as connection:
        assert connection.ping()
    kill_9(server)
    server.collect()
    second.start()  # the lock ends with the server that held it
    second.stop()


def test_a_port_taken_meanwhile_is_given_up_for_another(server: Valkey, open_folder: Path) -> None:
    second = Valkey(open_folder / "second", fast=True)
    second.port = server.port
    second.start()
    try:
        assert second.port != server.port
        assert second.ready()
    finally:
        second.stop()
