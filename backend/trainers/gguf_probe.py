"""Tries a GGUF file with the probes of its origin, in llama.cpp: `python -m backend.trainers.gguf_probe CONFIG.json`.

A process of its own: the native library shares none with torch, and a file that crashes it takes nothing along.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from backend.trainers import parity, process
from backend.trainers.errors import BASE_MODEL_UNUSABLE, TrainerError
from backend.trainers.events import Events
from backend.trainers.parity import Drift, Probe, Top

_SECONDS = 300.0
_TOP = 50
_ROOM_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class GgufProbeConfig:
    """`probes_file` is what `export` wrote; `format` says which limits hold. `output_file` gets what was measured."""

    gguf_file: Path
    probes_file: Path
    output_file: Path
    format: Literal["gguf-f16", "gguf-q8_0"]
    threads: int = 0


def probe(config: GgufProbeConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Measure the drift; raises TrainerError EXPORT_DRIFTED for a file that computes something else.

    Where llama.cpp is not installed, transformers reads the file instead; its own tokenizer then stays untried.
    """
    started = time.monotonic()
    events.stage("loading")
    probes = [Probe.from_json(item) for item in json.loads(config.probes_file.read_text(encoding="utf-8"))]
    tie = parity.LIMITS[config.format].tie
    native = importlib.util.find_spec("xllamacpp") is not None
    drifted = _by_llama_cpp(config, probes, tie) if native else _by_transformers(config, probes, tie)
    measured = {"runtime": "llama.cpp" if native else "transformers", **asdict(drifted)}
    config.output_file.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    parity.require_same(config.format, drifted)
    seconds = round(time.monotonic() - started, 3)
    events.emit("complete", status="success", duration_seconds=seconds, drift=measured)


def _by_llama_cpp(config: GgufProbeConfig, probes: list[Probe], tie: float) -> Drift:
    import xllamacpp

    longest = max(len(item.prompt_ids) + len(item.answer_ids) for item in probes)
    params = xllamacpp.CommonParams()
    params.model.path = str(config.gguf_file)
    params.n_parallel = 1
    params.n_ctx = longest + _ROOM_TOKENS
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_gpu_layers = 0
    params.offline = True
    params.ui = False
    params.verbosity = 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for part in (params.cpuparams, params.cpuparams_batch):
        part.n_threads = config.threads or cores
    try:
        server = xllamacpp.Server(params)
    except Exception as error:  # the native layer raises bare RuntimeError or ValueError
        message = f"llama.cpp does not load the GGUF file ({error}). Export the formats adapter and merged instead."
        raise TrainerError(BASE_MODEL_UNUSABLE, message) from error

    host = urlsplit(server.listening_address)
    connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=_SECONDS)

    def ask(path: str, **body: Any) -> Any:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return json.load(connection.getresponse())

    equal = sum(_same_prompt(ask, item) for item in probes) / len(probes)
    found = [
        [_likeliest(ask, [*item.prompt_ids, *item.answer_ids[:at]]) for at in range(len(item.answer_ids))]
        for item in probes
    ]
    return parity.drift(probes, found, tie=tie, prompts_equal=equal)


def _same_prompt(ask: Callable[..., Any], item: Probe) -> bool:
    """Whether a chat reaches the model as the same tokens that training gave it."""
    prompt = ask("/apply-template", messages=item.messages)["prompt"]
    tokens = ask("/tokenize", content=prompt, add_special=True, parse_special=True)["tokens"]
    return bool(tokens == item.prompt_ids)


def _likeliest(ask: Callable[..., Any], tokens: list[int]) -> Top:
    body = {"prompt": tokens, "n_predict": 1, "temperature": 0, "n_probs": _TOP, "cache_prompt": True}
    # None where the likeliest token is the beginning of a character: the server waits for its end to tell.
    places = ask("/completion", **body).get("completion_probabilities") or [{"top_logprobs": []}]
    return [(item["id"], item["logprob"]) for item in places[0]["top_logprobs"]]


def _by_transformers(config: GgufProbeConfig, probes: list[Probe], tie: float) -> Drift:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    from backend.trainers import loading, probing

    loading.choose_target("cpu", config.threads)
    model = AutoModelForCausalLM.from_pretrained(
        config.gguf_file.parent,
        gguf_file=config.gguf_file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    return parity.drift(probes, probing.measure(model, probes), tie=tie)


if __name__ == "__main__":
    code = process.run(GgufProbeConfig, probe)
    # The native server's destructor waits for idle connections.
    os._exit(code)
