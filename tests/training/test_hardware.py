"""What a gpu worker finds on its machine, and what is told of it: nvidia-smi is a program of its own, imitated here."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.db import Database
from backend.training import hardware

# As nvidia-smi 550 prints them: the list of cards, and the head of the full report.
CARDS = """NVIDIA RTX 4090, 24564, 23040, 550.54.14
NVIDIA T400, 4096, 3900, 550.54.14
"""
REPORT = """
==============NVSMI LOG==============

Timestamp                                 : Sat Feb 14 10:00:00 2026
Driver Version                            : 550.54.14
CUDA Version                              : 12.4

Attached GPUs                             : 2
"""
TORCH: dict[str, Any] = {
    "torch_version": "2.5.0",
    "torch_cuda": "12.4",
    "cuda_available": True,
    "gpus": [{"name": "NVIDIA RTX 4090", "vram_total_gb": 25.76, "vram_free_gb": 24.1}],
    "bnb_available": True,
}


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, alone on the path, that answers as the real one."""
    program = tmp_path / "nvidia-smi"
    answers = f"if '--format=csv,noheader,nounits' in sys.argv: print({CARDS!r})\nelse: print({REPORT!r})"
    program.write_text(f"#!{sys.executable}\nimport sys\n{answers}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


@pytest.fixture
def torch_says(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torch said within the last hour, so that it is not loaded for it."""
    found = dict(TORCH)
    monkeypatch.setattr(hardware, "_cached", (float("inf"), found))
    return found


async def told(db: Database, *reports: dict[str, Any]) -> dict[str, Any]:
    """The answer while these are the workers' reports; they are gone afterwards."""
    async with db.engine.connect() as connection, connection.begin() as transaction:
        async with AsyncSession(bind=connection) as session:
            for number, report in enumerate(reports):
                await hardware.save(session, f"worker-{number}", report)
            answer = await hardware.check(session)
        await transaction.rollback()
    return answer


async def test_both_programs_words_make_the_report(nvidia_smi: Path, torch_says: dict[str, Any], db: Database) -> None:
    report = await hardware.probe()
    assert (report["has_nvidia_smi"], report["driver_version"], report["driver_cuda"]) == (True, "550.54.14", "12.4")
    assert [card["name"] for card in report["smi_gpus"]] == ["NVIDIA RTX 4090", "NVIDIA T400"]
    answer = await told(db, report)
    assert (answer["gpu_name"], answer["gpu_count"]) == ("NVIDIA RTX 4090", 2)
    assert (answer["vram_total_gb"], answer["vram_free_gb"]) == (24.0, 22.5)
    assert (answer["recommended_method"], answer["warnings"]) == ("qlora", [])


async def test_the_largest_card_is_shown(nvidia_smi: Path, torch_says: dict[str, Any], db: Database) -> None:
    lines = CARDS.strip().splitlines()
    nvidia_smi.write_text(nvidia_smi.read_text().replace(repr(CARDS), repr("\n".join(lines[::-1]))))
    assert (await told(db, await hardware.probe()))["gpu_name"] == "NVIDIA RTX 4090"


async def test_a_gpu_that_torch_cannot_use(nvidia_smi: Path, torch_says: dict[str, Any], db: Database) -> None:
    torch_says.update(torch_version="2.5.0+cpu", torch_cuda=None, cuda_available=False, gpus=[])
    answer = await told(db, await hardware.probe())
    assert (answer["cuda_available"], answer["cuda_runtime"], answer["torch_cuda"]) == (False, "12.4", None)
    assert answer["recommended_method"] is None
    assert any("CUDA build of torch" in warning for warning in answer["warnings"])


async def test_without_bitsandbytes_it_says_so(nvidia_smi: Path, torch_says: dict[str, Any], db: Database) -> None:
    torch_says["bnb_available"] = False
    answer = await told(db, await hardware.probe())
    assert (answer["recommended_method"], answer["notes"]) == ("lora", [])
    assert any("bitsandbytes" in warning for warning in answer["warnings"])


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'; exit 6"])
async def test_a_driver_that_fails_is_no_gpu(nvidia_smi: Path, torch_says: dict[str, Any], script: str) -> None:
    nvidia_smi.write_text(f"#!/bin/sh\n{script}\n")
    assert (await hardware.probe())["has_nvidia_smi"] is False


async def test_a_driver_that_hangs_is_no_gpu(
    nvidia_smi: Path, torch_says: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_SMI_SECONDS", 0.2)
    nvidia_smi.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    assert (await hardware.probe())["has_nvidia_smi"] is False


def test_cards_that_share_the_machines_memory_have_none_of_their_own() -> None:
    found = hardware.read_nvidia_smi("NVIDIA GB10, [N/A], [N/A], 580.95.05\n")
    assert found["smi_gpus"] == [{"name": "NVIDIA GB10", "vram_total_gb": None, "vram_free_gb": None}]


async def test_the_best_of_the_pool_answers(db: Database) -> None:
    small = {**TORCH, "has_nvidia_smi": True, "gpus": [{"name": "NVIDIA T400", "vram_total_gb": 4.29}]}
    none = {"has_nvidia_smi": False, "cuda_available": False, "gpus": []}
    assert (await told(db, none, {**TORCH, "has_nvidia_smi": True}, small))["gpu_name"] == "NVIDIA RTX 4090"


def test_the_api_does_not_load_torch_for_it() -> None:
    code = "import sys, backend.main, backend.training.hardware; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
