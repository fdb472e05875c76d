"""Merged models and GGUF files against the model that was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.trainers.config import ExportConfig, GenerateConfig
from backend.trainers.errors import TrainerError
from tests.trainers.tiny import TRAIN_ROWS, Child, run, write_lines


def test_the_merged_model_answers_like_base_plus_adapter(
    tmp_path: Path, fluent_model: Path, knowing_adapter: Path
) -> None:
    from backend.trainers.export import export
    from backend.trainers.generate import generate

    merged = tmp_path / "merged"
    adapter = str(knowing_adapter)
    for dtype in ("float32", "bfloat16"):
        run(export, ExportConfig, base_model=str(fluent_model), adapter=adapter, output_dir=str(tmp_path), dtype=dtype)
        assert not [path for path in merged.iterdir() if path.suffix in (".bin", ".pt")]
    prompts = [row["messages"][:-1] for row in TRAIN_ROWS[:4]]
    common = {"prompts": prompts, "max_new_tokens": 24, "device": "cpu", "threads": 1}
    run(
        generate,
        GenerateConfig,
        base_model=str(merged),
        output_file=str(tmp_path / "m"),
        which=["base"],
        **common,
    )
    run(
        generate,
        GenerateConfig,
        base_model=str(fluent_model),
        adapter=adapter,
        output_file=str(tmp_path / "t"),
        which=["tuned"],
        **common,
    )
    merged_answers = [row["base"] for row in json.loads((tmp_path / "m").read_text())["answers"]]
    tuned_answers = [row["tuned"] for row in json.loads((tmp_path / "t").read_text())["answers"]]
    assert merged_answers == tuned_answers


@pytest.fixture(scope="module")
def exported(fluent_model: Path, knowing_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all formats of the knowing model."""
    from backend.trainers.export import export

    folder = tmp_path_factory.mktemp("exported")
    events = run(
        export,
        ExportConfig,
        base_model=str(fluent_model),
        adapter=str(knowing_adapter),
        output_dir=str(folder),
        formats=["merged", "gguf-f16", "gguf-q8_0"],
        prompts_file=str(write_lines(folder / "prompts.jsonl", TRAIN_ROWS)),
        name="kettle",
        license_name="apache-2.0",
    )
    complete = events.of("complete")[0]
    assert complete["drift"]["agreement"] == 1
    assert 0 <= complete["drift"]["logprob_drift"] < 0.03
    return folder


def test_each_format_is_a_file_or_folder_of_its_own(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "merged",
        "model-f16.gguf",
        "model-q8_0.gguf",
        "probes.json",
        "prompts.jsonl",
    }
    assert (exported / "model-q8_0.gguf").stat().st_size < (exported / "model-f16.gguf").stat().st_size
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        item.name for item in (exported / "merged").iterdir()
    }


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_llama_cpp_computes_what_was_trained(
    tmp_path: Path, exported: Path, kind: str, start_child: Callable[..., Child]
) -> None:
    pytest.importorskip("xllamacpp")
    child = start_child("gguf_probe", probe_config(exported, kind, tmp_path))
    assert child.finish() == 0, child.stderr()[-2000:]
    drift = json.loads((tmp_path / "drift.json").read_text())
    assert (drift["runtime"], drift["prompts_equal"]) == ("llama.cpp", 1)
    assert drift["places"] > 20
    assert drift == child.of("complete")[0]["drift"]


def test_without_llama_cpp_transformers_reads_the_file(exported: Path) -> None:
    from backend.trainers import gguf_probe, parity

    config = gguf_probe.GgufProbeConfig(
        gguf_file=exported / "model-f16.gguf",
        probes_file=exported / "probes.json",
        output_file=exported.parent / "unused",
        format="gguf-f16",
        threads=1,
    )
    probes = [parity.Probe.from_json(item) for item in json.loads(config.probes_file.read_text())]
    found = gguf_probe._by_transformers(config, probes, 0.05)
    assert found.prompts_equal is None
    parity.require_same("gguf-f16", found)


def test_a_damaged_gguf_file_is_refused(tmp_path: Path, exported: Path, start_child: Callable[..., Child]) -> None:
    pytest.importorskip("xllamacpp")
    import gguf
    import numpy

    path = tmp_path / "model-f16.gguf"
    path.write_bytes((exported / "model-f16.gguf").read_bytes())
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(item for item in reader.tensors if item.name == "blk.0.attn_q.weight")
    tensor.data[:] = numpy.roll(tensor.data, 8, axis=0)
    reader.data.flush()
    config = {**probe_config(exported, "f16", tmp_path), "gguf_file": str(path)}
    child = start_child("gguf_probe", config)
    assert child.finish() == 3
    error = child.of("error")[0]
    assert error["error_code"] == "EXPORT_DRIFTED"
    assert "gguf-f16" in error["error"]
    # What was measured is kept for the report.
    assert json.loads((tmp_path / "drift.json").read_text())["logprob_drift"] > 0.03


def test_a_damaged_merge_is_refused(
    tmp_path: Path, fluent_model: Path, knowing_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if memory or library had spoilt one layer between the merge and the file."""
    from backend.trainers import merging
    from backend.trainers.export import export

    merge = merging.merge

    def damaged(*arguments: Any) -> Any:
        model = merge(*arguments)
        model.model.layers[1].self_attn.v_proj.weight.data.mul_(-1)
        return model

    monkeypatch.setattr(merging, "merge", damaged)
    with pytest.raises(TrainerError) as caught:
        run(
            export,
            ExportConfig,
            base_model=str(fluent_model),
            adapter=str(knowing_adapter),
            output_dir=str(tmp_path / "out"),
            formats=["merged", "gguf-f16"],
        )
    assert caught.value.code == "EXPORT_DRIFTED"
    assert "'merged' was refused" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_merge_is_that_of_fp32_rounded_once(fluent_model: Path, knowing_adapter: Path) -> None:
    import torch

    from backend.trainers import loading, merging

    def tuned(dtype: torch.dtype) -> Any:
        base = loading.load_base(fluent_model, loading.Target("cpu", dtype, dtype))
        return loading.load_adapter(base, knowing_adapter)

    exact = tuned(torch.float32).merge_and_unload().to(torch.bfloat16).state_dict()
    layered = merging.merge(tuned(torch.float32), torch.bfloat16).state_dict()
    assert exact.keys() == layered.keys()
    assert all(torch.equal(exact[name], layered[name]) for name in exact)


def test_unknown_architectures_are_refused_by_name_before_anything_is_loaded(tmp_path: Path) -> None:
    from backend.trainers.export import export

    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}))
    with pytest.raises(TrainerError) as caught:
        run(
            export,
            ExportConfig,
            base_model=str(tmp_path),
            adapter=str(tmp_path),
            output_dir=str(tmp_path / "out"),
            formats=["gguf-q8_0"],
        )
    assert caught.value.code == "EXPORT_UNSUPPORTED"
    assert "GPT2LMHeadModel" in str(caught.value)
    assert "LlamaForCausalLM" in str(caught.value)
    assert not (tmp_path / "out").exists()


def probe_config(exported: Path, kind: str, folder: Path) -> dict[str, Any]:
    return {
        "gguf_file": str(exported / f"model-{kind}.gguf"),
        "probes_file": str(exported / "probes.json"),
        "output_file": str(folder / "drift.json"),
        "format": f"gguf-{kind}",
        "threads": 1,
    }
