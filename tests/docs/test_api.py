"""docs/api.md against the application: its routes, their statuses, its error codes."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import backend
from backend.api import errors
from backend.contents.parsers.failures import FAILURES
from backend.jobs.queue import __file__ as queue_file
from backend.kit.config import Settings
from backend.kit.errors import DomainError
from backend.main import create_app

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text()
# These load libraries or run programs when they are imported, and define no error of an answer.
APART = ("backend.trainers", "backend.embedded", "backend.demo", "backend.cli", "backend.contents.parsers.__main__")


def section(title: str) -> str:
    assert f"\n## {title}\n" in TEXT, title
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def operations() -> dict[str, set[str]]:
    """Each operation of the application with the statuses of its own that its OpenAPI description names."""
    paths = create_app(Settings(secret_key="k" * 48)).openapi()["paths"]  # type: ignore[arg-type]
    return {
        # 429 belongs to all; tests/contracts/test_rate_limits.py looks for it.
        f"{method.upper()} {path}": set(operation["responses"]) - {"429"}
        for path, found in paths.items()
        for method, operation in found.items()
    }


def test_every_route_is_described_with_its_statuses(operations: dict[str, set[str]]) -> None:
    rows = re.findall(r"^\| `([A-Z]+ /\S*)` \| .+ \| ([\d, ]+) \| ([\d, ]+|-) \|$", TEXT, re.MULTILINE)
    written = {route: set(re.findall(r"\d+", f"{success} {failure}")) for route, success, failure in rows}
    assert written == operations
    assert len(rows) == len(operations)


def test_each_face_has_its_own_routes(operations: dict[str, set[str]]) -> None:
    platform = {route for route in operations if route.split()[1].startswith("/api/")}
    openai = {route for route in operations if route.split()[1].startswith("/v1/")}
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)`", section("OpenAI face"), re.MULTILINE)) == openai
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)`", section("Platform face"), re.MULTILINE)) == platform
    studio = set(operations) - platform - openai
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)`", section("Studio face"), re.MULTILINE)) == studio


def subclasses(of: type[DomainError]) -> Iterator[type[DomainError]]:
    for found in of.__subclasses__():
        yield found
        yield from subclasses(found)


def test_every_error_code_of_an_answer_is_described_with_its_status() -> None:
    for module in pkgutil.walk_packages(backend.__path__, "backend."):
        if not module.name.startswith(APART):
            importlib.import_module(module.name)
    statuses = {code: status for status, code in errors._CODES.items()}
    sources = "".join(path.read_text() for path in (ROOT / "backend" / "api").rglob("*.py"))
    rendered = {code: int(status) for status, code in re.findall(r'render\(\s*(\d{3}),[^()]*?"([A-Z_]{5,})"', sources)}
    statuses.update(rendered)
    statuses.update(dict.fromkeys(FAILURES, 400))
    ours = [found for found in subclasses(DomainError) if found.__module__.startswith("backend.")]
    statuses.update({found.code: found.status for found in [DomainError, *ours]})
    # Written where the middleware refuses and where what nobody expected ends.
    statuses.update({"FORBIDDEN_ORIGIN": 403, "INTERNAL_ERROR": 500})
    written = re.findall(r"^\| `([A-Z_]+)` \| (\d{3}) \| (.+) \|$", section("Error codes of answers"), re.MULTILINE)
    assert {code: int(status) for code, status, _ in written} == statuses
    assert all(len(when) > 5 for _, _, when in written)


def test_every_error_code_of_a_job_is_described() -> None:
    trainer = (ROOT / "backend" / "trainers" / "errors.py").read_text()
    jobs = Path(queue_file).read_text() + (ROOT / "celery_app" / "job_task.py").read_text()
    codes = set(re.findall(r'^[A-Z_]+ = "([A-Z_]+)"$', trainer, re.MULTILINE))
    codes |= set(re.findall(r'error_code="([A-Z_]+)"', jobs))
    assert "JOB_GAVE_UP" in codes
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", section("Error codes of jobs"), re.MULTILINE)) == codes


def test_the_events_are_those_that_are_sent() -> None:
    sources = "".join(
        (ROOT / path).read_text()
        for path in ("backend/jobs/service.py", "backend/jobs/running.py", "backend/training/local.py")
    )
    for event in re.findall(r"^\| `([a-z]+)` \|", section("Events"), re.MULTILINE):
        assert f'"{event}"' in sources, event
