"""The systemd units and the proxies' settings against the command line and the service's own limits."""

import configparser
import re
from pathlib import Path

import pytest

from backend.api.sse import HEARTBEAT_SECONDS, LIFETIME_SECONDS
from backend.kit.broker import QUEUES
from backend.kit.config import Settings
from tests.deploy.reading import ROOT, parse_command

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
BINARY = "/opt/finetuneflow/.venv/bin/finetuneflow "


class Unit(configparser.ConfigParser):
    """A systemd unit: keys keep their case, and may be repeated (all values, one a line)."""

    def __init__(self, path: Path) -> None:
        super().__init__(interpolation=None, strict=False)
        self.optionxform = str  # type: ignore[assignment]
        self.text = path.read_text()
        self.read_string(self.text)

    def values_of(self, key: str) -> list[str]:
        lines = re.findall(rf"^{key}=(.*)$", self.text, re.MULTILINE)
        return [word for line in lines for word in line.split()]


@pytest.mark.parametrize("path", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda path: path.name)
def test_a_unit_runs_a_command_that_exists_as_an_ordinary_user(path: Path) -> None:
    service = Unit(path)["Service"]
    assert service["User"] == "finetuneflow"
    assert service["ExecStart"].startswith(BINARY)
    arguments = service["ExecStart"].removeprefix(BINARY).replace("%i", "gpu").replace("${CONCURRENCY}", "1").split()
    assert parse_command(arguments)["command"] in path.stem
    for assignment in Unit(path).values_of("Environment"):
        name = assignment.partition("=")[0]
        assert name.lower() in Settings.model_fields or name.startswith(
            ("PYTHON", "OMP_", "TOKENIZERS_", "CONCURRENCY")
        )


def test_the_target_wants_every_part() -> None:
    wanted = set(Unit(DEPLOY / "systemd" / "finetuneflow.target").values_of("Wants"))
    assert wanted == {
        "finetuneflow-api.service",
        "finetuneflow-beat.service",
        "finetuneflow-serve.service",
        *(f"finetuneflow-worker@{queue}.service" for queue in QUEUES),
    }


def test_what_a_unit_waits_for_is_a_unit_here() -> None:
    names = {path.name for path in UNITS}
    for path in UNITS:
        for key in ("After", "Requires", "Wants", "PartOf"):
            for needed in Unit(path).values_of(key):
                if needed.startswith("finetuneflow"):
                    assert re.sub(r"@\w+", "@", needed) in names, f"{path.name} names {needed}"


def test_proxies_let_the_largest_upload_through_and_do_not_hold_events_back() -> None:
    defaults = Settings.model_fields
    most = defaults["upload_max_files"].default * defaults["upload_max_file_mb"].default
    nginx = (DEPLOY / "nginx" / "finetuneflow.conf").read_text()
    caddy = (DEPLOY / "caddy" / "Caddyfile").read_text()
    for allowed in re.findall(r"client_max_body_size (\d+)m;", nginx) + re.findall(r"max_size (\d+)MiB", caddy):
        assert int(allowed) > most
    events = nginx[nginx.index("location ~") :]
    assert "proxy_buffering off;" in events
    assert "proxy_read_timeout 1h;" in events
    assert HEARTBEAT_SECONDS < LIFETIME_SECONDS <= 3600
    assert "flush_interval -1" in caddy


def test_nginx_knows_every_event_stream() -> None:
    from backend.main import create_app

    pattern = re.search(r"location ~ (\S+) \{", (DEPLOY / "nginx" / "finetuneflow.conf").read_text())
    assert pattern is not None
    paths = create_app(Settings(secret_key="k" * 48)).openapi()["paths"]  # type: ignore[arg-type]
    streams = {
        path
        for path, operations in paths.items()
        for operation in operations.values()
        if "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    }
    assert len(streams) >= 2
    filled = {path: re.sub(r"\{\w+\}", "01a20159-7392-716d-b079-52b53ecdd50f", path) for path in paths}
    assert {path for path, example in filled.items() if re.search(pattern[1], example)} == streams
