"""The archive and the report of a run."""

import zipfile
from pathlib import Path
from uuid import UUID

from backend.datasets.versions import VersionName
from backend.projects.models import Project
from backend.training.export_formats import in_order, needs_models
from backend.training.exports import ARCHIVE, pack
from backend.training.hardware import read_nvidia_smi
from backend.training.model_card import render_card
from backend.training.models import FineTuning
from backend.training.report import render_report


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for filename, data in (("b.json", b"{}" * 500), ("adapter_model.safetensors", bytes(range(256)) * 64)):
            (folder / filename).write_bytes(data)
        pack(folder, folder / ARCHIVE)
        made.append((folder / ARCHIVE).read_bytes())
    assert made[0] == made[1]
    with zipfile.ZipFile(tmp_path / "one" / ARCHIVE) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["adapter_model.safetensors", "b.json"]
        assert archive.getinfo("adapter_model.safetensors").compress_type == zipfile.ZIP_STORED


VERSION = VersionName(dataset_id=UUID(int=7), version=3, sha256="a1" * 32)


def _run(**metrics: object) -> tuple[Project, FineTuning, VersionName]:
    tuning = FineTuning(model="org/base", method="lora", hyperparameters={"lora_r": 16}, metrics=metrics)
    return Project(name="Manual"), tuning, VERSION


def test_the_report_names_the_version_of_the_dataset() -> None:
    assert f"- Dataset: `{UUID(int=7)}`, version 3, SHA-256 `{'a1' * 32}`" in render_report(*_run())


def test_the_report_says_whether_it_got_better() -> None:
    better = render_report(*_run(eval_loss_base=2.0, eval_loss_tuned=1.0))
    assert "fell by 50 %" in better
    worse = render_report(*_run(eval_loss_base=1.0, eval_loss_tuned=1.5))
    assert "did not fall" in worse
    assert "no held-out examples" in render_report(*_run())


def test_answers_stand_on_one_line_each() -> None:
    sample = {"messages": [{"role": "user", "content": "Why\nnot?"}], "expected": "a", "base": "b\n\n# c", "tuned": "d"}
    report = render_report(*_run(samples=[sample], eval_loss_base=2.0, eval_loss_tuned=1.0))
    assert "**Why not?**" in report
    assert "- base: b # c" in report


def test_nvidia_smi_is_read() -> None:
    report = read_nvidia_smi("NVIDIA GeForce RTX 4090, 24564, 23040, 550.54.14\n")
    assert report["has_nvidia_smi"]
    assert report["driver_version"] == "550.54.14"
    assert report["smi_gpus"] == [{"name": "NVIDIA GeForce RTX 4090", "vram_total_gb": 25.8, "vram_free_gb": 24.2}]


def test_the_card_says_how_to_load_each_format_and_under_which_licence() -> None:
    project, tuning, version = _run(eval_loss_base=2.0, eval_loss_tuned=1.0)
    card = render_card(project, tuning, version, ["adapter", "merged", "gguf-f16", "gguf-q8_0"], "apache-2.0")
    front, _, rest = card.removeprefix("---\n").partition("\n---\n")
    assert 'base_model: "org/base"' in front.split("\n")
    assert "license: apache-2.0" in front.split("\n")
    for part in ("PeftModel.from_pretrained", "folder/merged", "llama-server -m model-q8_0.gguf", "a1" * 32, "2.0000"):
        assert part in rest, part
    unknown = render_card(project, tuning, None, ["adapter"], None)
    assert "license:" not in unknown
    assert "not known here" in unknown
    assert "merged" not in unknown


def test_a_run_of_all_weights_is_no_adapter() -> None:
    project, tuning, version = _run(eval_loss_base=2.0, eval_loss_tuned=1.0)
    tuning.method = "full"
    for text in (render_report(project, tuning, version), render_card(project, tuning, version, ["adapter"], None)):
        assert "PeftModel" not in text
        assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder")' in text
    assert "library_name: transformers" in render_card(project, tuning, version, ["adapter"], None)


def test_the_adapter_is_in_every_export() -> None:
    assert in_order(["gguf-q8_0", "merged", "merged"]) == ["adapter", "merged", "gguf-q8_0"]
    assert not needs_models(in_order([]))
    assert needs_models(["gguf-f16"])
