"""What this machine has and what it lacks: one line a fact, each with what to do about it."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from backend.api.middleware import LOOPBACK_HOSTS
from backend.embedded import place, valkey
from backend.embedded.data_folder import DataFolder, read_state
from backend.embedded.services import answers
from backend.embedded.stack import StackOptions
from backend.kit import machine_memory
from backend.kit.config import Settings
from backend.providers import bundled
from backend.providers.errors import BundledModelMissing
from backend.providers.llm.choice import parted
from backend.providers.speech.models import ENGINES, FASTER_WHISPER, folder_on_disk, is_installed
from backend.users.tokens import MINIMUM_KEY_BYTES

State = Literal["ok", "warning", "missing"]

PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 14)
CORES_WANTED = 2
MEMORY_WANTED_GB = 4.0
DISK_WANTED_GB, DISK_NEEDED_GB = 3.0, 0.5
TRAINING_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets", "gguf")
_SETUP = "Run ./run setup"
_CHILD_SECONDS = 30
_LOOK = {"ok": ("✔", "green"), "warning": ("!", "yellow"), "missing": ("✘", "bold red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, what was found, and what to do when it is not ok."""

    about: str
    state: State
    found: str
    advice: str = ""


def examine(console: Console | None = None) -> int:
    """Print the table. Exit codes: 0 nothing that is needed is missing, 1 something is."""
    environment = {
        name: value for name, value in {**dotenv_values(".env"), **os.environ}.items() if isinstance(value, str)
    }
    data_dir = Path(environment.get("DATA_DIR") or StackOptions.data_dir)
    sections = [
        ("Machine", [*machine(data_dir), gpu()]),
        ("Training", training_packages()),
        ("Speech", [speech(environment, data_dir)]),
        ("Embedded servers", embedded_servers(environment)),
        ("Data folder", [*data_folder(data_dir), *leftovers(place.FALLBACKS)]),
        ("Settings", settings(environment)),
    ]
    (console or Console()).print(_table(sections))
    states = [finding.state for _, findings in sections for finding in findings]
    verdict = _verdict(states.count("warning"), states.count("missing"))
    (console or Console()).print(verdict)
    return 1 if "missing" in states else 0


def machine(data_dir: Path) -> list[Finding]:
    version = sys.version.split()[0]
    python: State = "ok" if PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW else "missing"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        Finding(
            "Python", python, f"{version} ({sys.executable})", "Install Python 3.11, 3.12 or 3.13, then ./run setup"
        ),
        Finding(
            "cores",
            "ok" if cores >= CORES_WANTED else "warning",
            str(cores),
            "The demo takes 12 minutes on two cores; here it takes longer",
        ),
        memory(machine_memory.usable_bytes()),
        disk(data_dir),
    ]


def memory(total_bytes: int) -> Finding:
    total = total_bytes / 1e9
    state: State = "ok" if total >= MEMORY_WANTED_GB else "warning"
    return Finding("memory", state, f"{total:.1f} GB", f"Training the smallest model wants {MEMORY_WANTED_GB:.0f} GB")


def disk(data_dir: Path) -> Finding:
    """Free space where the data folder is, or would be."""
    folder = data_dir.expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    state: State = "ok" if free >= DISK_WANTED_GB else "warning" if free >= DISK_NEEDED_GB else "missing"
    return Finding("free disk", state, f"{free:.1f} GB at {folder}", "Free some space, or set DATA_DIR to another disk")


def gpu() -> Finding:
    """By nvidia-smi and by the name of torch's build: importing torch would take seconds."""
    torch = _version("torch") or ""
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "ok", "none (no nvidia-smi): training runs on the CPU, for small models")
    code, output = _run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    if code != 0:
        return Finding(
            "GPU", "warning", "nvidia-smi fails", "Repair the NVIDIA driver; training runs on the CPU so far"
        )
    names = "; ".join(line.strip() for line in output.splitlines() if line.strip())
    if torch.endswith("+cpu"):
        return Finding("GPU", "warning", names, f"torch {torch} cannot use it: install a CUDA build of torch")
    return Finding("GPU", "ok", names)


def training_packages(names: Sequence[str] = TRAINING_PACKAGES) -> list[Finding]:
    versions = {name: _version(name) for name in names}
    lacking = [name for name, version in versions.items() if version is None]
    if lacking:
        return [Finding("packages", "missing", f"not installed: {', '.join(lacking)}", _SETUP)]
    return [Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))]


def speech(environment: Mapping[str, str], data_dir: Path) -> Finding:
    """Nothing but recordings and videos without captions needs it, so that its lack is never fatal."""
    engine = ENGINES.get(environment.get("TRANSCRIPTION_ENGINE") or FASTER_WHISPER.name)
    if engine is None:
        return Finding("engine", "warning", "unknown", f"Set TRANSCRIPTION_ENGINE to one of {', '.join(ENGINES)}")
    if not is_installed(engine):
        advice = f"Recordings cannot be written down: install it with pip install 'finetuneflow[{engine.extra}]'"
        return Finding("engine", "warning", f"{engine.name} is not installed", advice)
    found = f"{engine.name} {_version(engine.name) or ''}".strip()
    model = environment.get("WHISPER_MODEL") or str(Settings.model_fields["whisper_model"].default)
    models_dir = Path(environment.get("MODELS_DIR") or data_dir / "models").expanduser()
    if folder_on_disk(engine, model, models_dir) is not None:
        return Finding("engine", "ok", f"{found}, model {model}")
    return Finding("engine", "ok", f"{found}; the model {model} is fetched at first use unless it was before")


def embedded_servers(environment: Mapping[str, str]) -> list[Finding]:
    """Those that are replaced by a setting are not looked for."""
    findings = []
    if environment.get("DATABASE_URL"):
        findings.append(Finding("PostgreSQL", "ok", "yours, by DATABASE_URL"))
    else:
        findings.append(_program("PostgreSQL", lambda: place.installed_binaries() / "postgres"))
    if environment.get("REDIS_URL"):
        findings.append(Finding("Valkey", "ok", "yours, by REDIS_URL"))
    else:
        findings.append(_program("Valkey", valkey.binary))
    provider = parted(environment.get("LLM_MODEL") or "")[0]
    if environment.get("LLM_BASE_URL"):
        findings.append(Finding("language model", "ok", f"yours, by LLM_BASE_URL ({environment['LLM_BASE_URL']})"))
    elif provider:
        findings.append(Finding("language model", "ok", f"that of {provider}, by LLM_MODEL"))
    else:
        findings.append(_llm_server())
    findings.append(bundled_model(needed=not environment.get("LLM_BASE_URL") and not provider))
    return findings


def bundled_model(*, needed: bool) -> Finding:
    try:
        path = bundled.gguf_file()
    except BundledModelMissing:
        return Finding("bundled model", "missing" if needed else "warning", f"{bundled.MODEL_ID} is not there", _SETUP)
    return Finding("bundled model", "ok", f"{bundled.MODEL_ID}, {path.stat().st_size / 1e6:.0f} MB")


def data_folder(data_dir: Path) -> list[Finding]:
    folder = DataFolder(data_dir).path
    if not folder.exists():
        return [Finding("folder", "ok", f"{folder} (made at the first start)")]
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return [Finding("folder", "missing", f"{folder} cannot be written", "Set DATA_DIR to a folder of yours")]
    state = read_state(folder)
    if state is None:
        return [Finding("folder", "ok", str(folder)), Finding("stack", "ok", "none runs here; ./run starts one")]
    where = f"process {state.pid}, {state.api_url}"
    if answers(f"{state.api_url}/health"):
        stack = Finding("stack", "ok", f"runs: {where}")
    else:
        stack = Finding(
            "stack", "warning", f"{where} is not healthy", f"Look into {folder / 'logs'}, or start it again"
        )
    return [Finding("folder", "ok", str(folder)), stack]


def leftovers(bases: Iterable[Path]) -> list[Finding]:
    """Databases that root's stacks keep outside their data folders, and whose data folder is gone."""
    findings = []
    for base in bases:
        for cluster in sorted(base.glob("postgres-*")) if base.is_dir() else ():
            try:
                origin = Path((cluster / "origin").read_text().strip())
                named = (origin / "moved-to").read_text().strip()
            except OSError:
                named = ""
            if named != str(cluster):
                advice = "Its data folder is gone: delete it unless you still want it"
                findings.append(Finding("leftover", "warning", f"{cluster} ({_size_mb(cluster):.0f} MB)", advice))
    return findings


def settings(environment: Mapping[str, str]) -> list[Finding]:
    """Settings that look wrong, read as the service reads them; one line with all that are set when none does."""
    try:
        found = Settings()
    except SettingsError as error:  # a list that is not JSON
        return [Finding("settings", "missing", str(error), 'Write lists as JSON, such as ["app.example.com"]')]
    except ValidationError as error:
        return [
            Finding(str(item["loc"][0] if item["loc"] else "settings").upper(), "missing", item["msg"], "Correct it")
            for item in error.errors()
        ]
    problems = []
    key = found.secret_key.get_secret_value()
    if key and len(key.encode()) < MINIMUM_KEY_BYTES:
        command = "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
        short = f"{len(key.encode())} bytes, {MINIMUM_KEY_BYTES} are needed"
        problems.append(Finding("SECRET_KEY", "missing", short, f"Make one: {command}"))
    public = sorted({*found.allowed_hosts, *found.cors_origins} - LOOPBACK_HOSTS - _local_origins(found.cors_origins))
    if environment.get("AUTH_MODE") == "local" and public:
        advice = "Nobody logs in in this mode: set AUTH_MODE=token before others can reach it"
        problems.append(Finding("AUTH_MODE", "warning", f"local, yet open to {', '.join(public)}", advice))
    if found.llm_base_url and not found.llm_model:
        problems.append(Finding("LLM_MODEL", "warning", "not set beside LLM_BASE_URL", "Name the model of that server"))
    if found.llm_model and not found.llm_base_url and not parted(found.llm_model)[0]:
        advice = "Set LLM_BASE_URL to the server that has it; the embedded one serves only its own model"
        problems.append(Finding("LLM_BASE_URL", "warning", f"not set beside LLM_MODEL={found.llm_model}", advice))
    given = sorted(name for name, value in environment.items() if value and name.lower() in Settings.model_fields)
    return problems or [Finding("settings", "ok", ", ".join(given) or "none set: the defaults")]


def _local_origins(origins: Iterable[str]) -> set[str]:
    """Those that are pages of this machine, whatever their port."""
    return {origin for origin in origins if origin.split("://")[-1].rsplit(":", 1)[0] in LOOPBACK_HOSTS}


def _program(name: str, find: Callable[[], Path]) -> Finding:
    """A server's program that runs and says its version."""
    try:
        program = find()
    except RuntimeError as error:
        return Finding(name, "missing", "not installed", str(error))
    code, output = _run([str(program), "--version"])
    if code != 0:
        return Finding(name, "missing", f"{program} does not run: {output.strip()[-200:]}", _SETUP)
    return Finding(name, "ok", output.strip().splitlines()[0].partition(" sha=")[0])


def _llm_server() -> Finding:
    version = _version("xllamacpp")
    if version is None:
        return Finding("language model", "missing", "xllamacpp is not installed", f"{_SETUP}, or set LLM_BASE_URL")
    # A child: a wheel built for another processor ends the process that imports it.
    code, output = _run([sys.executable, "-c", "import xllamacpp"])
    if code != 0:
        last = (output.strip().splitlines() or [f"exit code {code}"])[-1]
        return Finding("language model", "missing", f"xllamacpp does not load: {last}", "Set LLM_BASE_URL to a server")
    return Finding("language model", "ok", f"xllamacpp {version}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(command: list[str]) -> tuple[int, str]:
    """Exit code and output; a program that cannot be started or hangs counts as failed."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_CHILD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return answer.returncode, answer.stdout or answer.stderr


def _size_mb(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total / 1e6


def _table(sections: Sequence[tuple[str, Sequence[Finding]]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 1), expand=True)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for number, (title, findings) in enumerate(sections):
        if number:
            table.add_row()
        table.add_row("", Text(title, style="bold"), "")
        for finding in findings:
            mark, style = _LOOK[finding.state]
            told = Text(finding.found)
            if finding.state != "ok" and finding.advice:
                told.append(f"\n{finding.advice}", style=style)
            table.add_row(Text(mark, style=style), finding.about, told)
    return table


def _verdict(warnings: int, missing: int) -> Text:
    if missing:
        return Text(f"\n{missing} missing: FineTuneFlow cannot run here yet.", style="bold red")
    if warnings:
        return Text(f"\nReady, with {warnings} to look at.", style="yellow")
    return Text("\nReady.", style="bold green")
