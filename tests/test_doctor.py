"""What the doctor finds, and what it says about it."""

import io
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from backend import doctor
from backend.embedded.data_folder import DataFolder, StackState
from backend.embedded.processes import Identity
from backend.kit import machine_memory


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but a data folder."""
    for name in doctor.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def healthy_url() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def examined(width: int = 80) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=width)
    code = doctor.examine(console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("bare")
def test_a_machine_that_is_set_up_lacks_nothing() -> None:
    code, text = examined()
    assert code == 0, text
    assert "postgres (PostgreSQL) 18" in text
    assert "Valkey server" in text
    assert "xllamacpp 20" in text
    assert "SmolLM2-135M-Instruct" in text
    assert "torch 2." in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.usefixtures("bare")
def test_a_setting_that_cannot_work_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "short")
    code, text = examined(200)
    assert code == 1
    assert "5 bytes, 32 are needed" in text
    assert "secrets.token_urlsafe(48)" in text
    monkeypatch.setenv("SECRET_KEY", "x" * 32)
    monkeypatch.setenv("DATABASE_POOL_SIZE", "none")
    code, text = examined(200)
    assert code == 1
    assert "DATABASE_POOL_SIZE" in text
    monkeypatch.setenv("DATABASE_POOL_SIZE", "5")
    monkeypatch.setenv("ALLOWED_HOSTS", "app.example.com")
    assert examined(200)[0] == 1


@pytest.mark.usefixtures("bare")
def test_an_open_door_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_MODE", "local")
    monkeypatch.setenv("CORS_ORIGINS", '["http://localhost:3000"]')
    assert [one.state for one in doctor.settings(os.environ)] == ["ok"]
    monkeypatch.setenv("ALLOWED_HOSTS", '["app.example.com"]')
    monkeypatch.setenv("LLM_BASE_URL", "http://127.0.0.1:11434/v1")
    found = {one.about: one for one in doctor.settings(os.environ)}
    assert {name: one.state for name, one in found.items()} == {"AUTH_MODE": "warning", "LLM_MODEL": "warning"}
    assert "app.example.com" in found["AUTH_MODE"].found


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(("model", "state"), [("qwen3:8b", "warning"), ("anthropic/claude", "ok")])
def test_a_model_without_a_server_is_a_providers(monkeypatch: pytest.MonkeyPatch, model: str, state: str) -> None:
    monkeypatch.setenv("LLM_MODEL", model)
    assert [one.state for one in doctor.settings(os.environ)] == [state]


def test_servers_of_ones_own_are_not_looked_for() -> None:
    given = {"DATABASE_URL": "postgresql+asyncpg://x/y", "REDIS_URL": "redis://x", "LLM_BASE_URL": "http://x/v1"}
    found = {one.about: one.found for one in doctor.embedded_servers(given)}
    assert found["PostgreSQL"].startswith("yours")
    assert found["Valkey"].startswith("yours")
    assert found["language model"].startswith("yours")
    hosted = doctor.embedded_servers({**given, "LLM_BASE_URL": "", "LLM_MODEL": "mistral/small"})
    assert [one.found for one in hosted if one.about == "language model"] == ["that of mistral, by LLM_MODEL"]


def test_packages_that_are_not_installed_are_missing() -> None:
    (finding,) = doctor.training_packages(["torch", "no-such-package-of-ours"])
    assert (finding.state, finding.advice) == ("missing", "Run ./run setup")
    assert "no-such-package-of-ours" in finding.found


def test_little_memory_is_a_warning(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("2000000000\n")
    assert doctor.memory(machine_memory.usable_bytes(tmp_path)).state == "warning"
    limit.write_text("max\n")
    unlimited = machine_memory.usable_bytes(tmp_path / "none")
    assert machine_memory.usable_bytes(tmp_path) == unlimited > 2_000_000_000


def test_the_lowest_limit_of_all_groups_around_a_process_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/pod/container\n2:cpu:/elsewhere\n0::/slice/unit\n")
    unlimited = machine_memory.usable_bytes(tmp_path, own)
    for place, limit in (("slice", 900_000_000), ("memory/pod/container", 700_000_000), ("elsewhere", 5)):
        (tmp_path / place).mkdir(parents=True)
        name = "memory.limit_in_bytes" if place.startswith("memory") else "memory.max"
        (tmp_path / place / name).write_text(f"{limit}\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine_memory.usable_bytes(tmp_path, own) == 700_000_000 < unlimited


def test_a_stack_that_runs_is_shown_with_its_health(tmp_path: Path, healthy_url: str) -> None:
    folder = DataFolder(tmp_path / "data").make()
    assert [one.state for one in doctor.data_folder(folder.path)] == ["ok", "ok"]
    identity = Identity.of(os.getpid())
    assert identity
    for url, state in ((healthy_url, "ok"), ("http://127.0.0.1:9", "warning")):
        folder.write_state(StackState(identity.pid, identity.started, str(folder.path), url, "", "", "", {}))
        stack = doctor.data_folder(folder.path)[1]
        assert stack.state == state
        assert f"process {os.getpid()}, {url}" in stack.found


def test_a_data_folder_that_is_a_file_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert [one.state for one in doctor.data_folder(tmp_path / "data")] == ["missing"]


def test_a_database_whose_data_folder_is_gone_is_a_leftover(tmp_path: Path) -> None:
    cluster, origin = tmp_path / "base" / "postgres-1", tmp_path / "data" / "postgres"
    for folder in (cluster, origin):
        folder.mkdir(parents=True)
    (cluster / "origin").write_text(str(origin))
    (origin / "moved-to").write_text(str(cluster))
    assert doctor.leftovers([tmp_path / "base", tmp_path / "none"]) == []
    shutil.rmtree(tmp_path / "data")
    (finding,) = doctor.leftovers([tmp_path / "base"])
    assert finding.state == "warning"
    assert str(cluster) in finding.found


def test_speech_is_looked_for_and_its_lack_is_never_fatal(tmp_path: Path) -> None:
    found = doctor.speech({}, tmp_path)
    assert (found.state, "faster-whisper 1." in found.found, "at first use" in found.found) == ("ok", True, True)
    model = tmp_path / "models" / "mine"
    model.mkdir(parents=True)
    (model / "model.bin").touch()
    (model / "config.json").touch()
    assert doctor.speech({"WHISPER_MODEL": "mine"}, tmp_path).found.endswith("model mine")
    assert doctor.speech({"WHISPER_MODEL": str(model)}, tmp_path / "other").found.endswith(f"model {model}")
    assert doctor.speech({"TRANSCRIPTION_ENGINE": "parrot"}, tmp_path).state == "warning"
