"""What the gpu workers can train with: probed by a child on each, kept in the database, answered from there."""

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import sys
import time
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit import machine_memory
from backend.training import queries
from backend.training.child import child_environment
from backend.training.models import HardwareReport
from backend.training.sizing import recommend_method

log = logging.getLogger(__name__)

PROBE_TIMEOUT_SECONDS = 180.0
# Loading torch takes seconds of CPU, and machines seldom change under a running worker.
_PROBE_EVERY_SECONDS = 3600.0
_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits")
_SMI_SECONDS = 20.0
# A worker in the middle of a long training does not report; one that is gone for good must not be counted on.
_KEPT = timedelta(days=7)
_cached: tuple[float, dict[str, Any]] | None = None


async def probe(training_device: str = "auto") -> dict[str, Any]:
    """This machine's report: nvidia-smi's word each time, torch's word at most once an hour.

    `memory_usable_gb` is what the worker's container leaves to it, in 10^9 bytes; `training_device` as it is set.
    """
    global _cached
    if _cached is None or time.monotonic() - _cached[0] > _PROBE_EVERY_SECONDS:
        found = await _ask_torch()
        if found:
            _cached = (time.monotonic(), found)
    usable = {"memory_usable_gb": round(machine_memory.usable_bytes() / 1e9, 2), "training_device": training_device}
    return {**(_cached[1] if _cached else {}), **usable, **await _ask_nvidia_smi()}


def worker_name() -> str:
    """This worker's machine, and the cards of it that are the worker's own."""
    cards = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (f"{socket.gethostname()} {cards}" if cards else socket.gethostname())[:200]


async def save(session: AsyncSession, worker: str, report: dict[str, Any]) -> None:
    statement = insert(HardwareReport).values(worker=worker, report=report, reported_at=func.clock_timestamp())
    await session.execute(delete(HardwareReport).where(HardwareReport.reported_at < func.clock_timestamp() - _KEPT))
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=["worker"],
            set_={"report": statement.excluded.report, "reported_at": statement.excluded.reported_at},
        )
    )


async def check(session: AsyncSession) -> dict[str, Any]:
    """The contract's answer, for the best gpu worker that has reported."""
    reports = [row.report for row in await queries.hardware_reports(session)]
    if not reports:
        return _shape({}, ["No gpu worker has reported yet. Start one, or wait some seconds after the start."])
    best = max(reports, key=_usefulness)
    return _shape(best, [])


def _shape(report: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    # nvidia-smi is asked each time, torch once an hour: what is free now only the first one knows.
    gpus = report.get("smi_gpus") or report.get("gpus") or []
    # One worker trains on one card, so that of a mixed machine is shown that has the most memory.
    first: dict[str, Any] = max(gpus, key=lambda gpu: float(gpu.get("vram_total_gb") or 0), default={})
    method, reason = recommend_method(report or None, None)
    cuda = bool(report.get("cuda_available"))
    notes = []
    if cuda and report.get("bnb_available"):
        notes.append("All checks passed")
    elif report and not gpus:
        notes.append("Training works on the CPU of this machine, for small models only.")
        warnings = [*warnings, "No NVIDIA GPU found. Consider using a cloud GPU instance."]
    elif gpus and not cuda:
        warnings = [*warnings, "A GPU is there, but torch cannot use it. Install a CUDA build of torch and its driver."]
    elif cuda:
        warnings = [*warnings, "The package bitsandbytes does not work here, so qlora cannot be used. Install it anew."]
    return {
        "has_nvidia_smi": bool(report.get("has_nvidia_smi")),
        "gpu_name": first.get("name"),
        "gpu_count": len(gpus),
        "vram_total_gb": _in_gib(first.get("vram_total_gb")),
        "vram_free_gb": _in_gib(first.get("vram_free_gb")),
        "driver_version": report.get("driver_version"),
        "cuda_runtime": report.get("driver_cuda") or report.get("torch_cuda"),
        "torch_version": report.get("torch_version"),
        "torch_cuda": report.get("torch_cuda"),
        "cuda_available": cuda,
        "bnb_available": bool(report.get("bnb_available")) and cuda,
        "recommended_method": method,
        "recommendation_reason": reason,
        "notes": notes,
        "warnings": warnings,
    }


def _in_gib(gigabytes: float | None) -> float | None:
    """Reports are in 10^9 bytes; the contract shows a card of 24 GiB as 24.0."""
    return None if gigabytes is None else round(gigabytes * 1e9 / 1024**3, 1)


def _usefulness(report: dict[str, Any]) -> tuple[bool, float, int]:
    """What torch can use comes first, then the largest card: one worker trains on one."""
    cards = report.get("gpus") or report.get("smi_gpus") or []
    largest = max((float(card.get("vram_total_gb") or 0) for card in cards), default=0.0)
    return bool(report.get("cuda_available")), largest, len(cards)


async def _ask_torch() -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "backend.trainers.hardware",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(),
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PROBE_TIMEOUT_SECONDS)
        found: dict[str, Any] = json.loads(output)
        return found
    except (TimeoutError, ValueError) as error:
        log.warning("the hardware probe gave no answer: %s", error)
        return {}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _ask_nvidia_smi() -> dict[str, Any]:
    if shutil.which("nvidia-smi") is None:
        return {"has_nvidia_smi": False}
    listed = await _output_of(*_SMI)
    if listed is None:
        return {"has_nvidia_smi": False}
    # The CUDA of the driver stands in no column of the list, only above the full report.
    found = re.search(r"CUDA Version\s*:\s*(\d[\d.]*)", await _output_of("nvidia-smi", "-q", "-d", "COMPUTE") or "")
    return {**read_nvidia_smi(listed), "driver_cuda": found.group(1) if found else None}


async def _output_of(*command: str) -> str | None:
    """What a command prints; None when it fails or takes too long."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _SMI_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        return None
    return output.decode(errors="replace") if process.returncode == 0 else None


def read_nvidia_smi(output: str) -> dict[str, Any]:
    """The report's part that comes from nvidia-smi's CSV lines: name, total MiB, free MiB, driver."""
    gpus = []
    driver = None
    for line in output.strip().splitlines():
        name, total, free, driver = (part.strip() for part in line.split(",", 3))
        gpus.append(
            {
                "name": name,
                "vram_total_gb": _mebibytes(total),
                "vram_free_gb": _mebibytes(free),
            }
        )
    return {"has_nvidia_smi": True, "driver_version": driver, "smi_gpus": gpus}


def _mebibytes(text: str) -> float | None:
    """MiB as GB of 10^9 bytes; None for the '[N/A]' of cards that share the machine's memory."""
    try:
        return round(float(text) * 1024**2 / 1e9, 1)
    except ValueError:
        return None
