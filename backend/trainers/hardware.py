"""Reports what this machine can train with: `python -m backend.trainers.hardware` prints one JSON object."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from typing import Any

from backend.trainers import process


def probe() -> dict[str, Any]:
    """Versions, GPUs (memory in GB of 10^9 bytes), and whether 4-bit layers and bf16 really work here."""
    import torch

    from backend.trainers.loading import cpu_has_bf16, usable_cores

    available = torch.cuda.is_available()
    return {
        "torch_version": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cuda_available": available,
        "gpus": [_describe_gpu(index) for index in range(torch.cuda.device_count())] if available else [],
        "bf16_supported": torch.cuda.is_bf16_supported() if available else cpu_has_bf16(),
        "bnb_available": four_bit_works("cuda" if available else "cpu"),
        "bnb_version": _version("bitsandbytes"),
        "transformers_version": _version("transformers"),
        "cpu_count": usable_cores(),
        "memory_total_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 2),
    }


def four_bit_works(device: str) -> bool:
    """Quantise a real NF4 layer on `device` and compare its output with the exact one."""
    try:
        import bitsandbytes
        import torch

        torch.manual_seed(0)
        exact = torch.nn.Linear(128, 64, bias=False)
        layer = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.load_state_dict(exact.state_dict())
        layer = layer.to(device)
        sample = torch.randn(4, 128)
        with torch.no_grad():
            wanted, got = exact(sample), layer(sample.to(device)).cpu()
        return bool(layer.weight.quant_state is not None and ((wanted - got).norm() / wanted.norm()) < 0.2)
    except Exception as error:  # any failure has the same meaning: not available here
        print(f"4-bit layers do not work on {device}: {type(error).__name__}: {error}", file=sys.stderr)
        return False


def _describe_gpu(index: int) -> dict[str, Any]:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "vram_total_gb": round(total / 1e9, 2),
        "vram_free_gb": round(free / 1e9, 2),
        "compute_capability": f"{properties.major}.{properties.minor}",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    out = process.take_stdout()
    process.die_with_parent()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(json.dumps(probe()), file=out, flush=True)
