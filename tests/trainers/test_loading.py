"""What is refused as a base model, and what a bare tokenizer gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from backend.trainers.errors import TrainerError
from tests.trainers.tiny import EVAL_ROWS


@pytest.fixture
def copy(base_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base_model, tmp_path / "copy")


def test_custom_code_is_refused_and_never_run(copy: Path, tmp_path: Path) -> None:
    from backend.trainers import loading

    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    config["model_type"] = "evil"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(TrainerError, match="auto_map") as caught:
        loading.load_base(copy, loading.choose_target("cpu", 1))
    assert caught.value.code == "BASE_MODEL_UNUSABLE"
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(copy: Path) -> None:
    import torch

    from backend.trainers import loading

    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(TrainerError, match="safetensors") as caught:
        loading.load_base(copy, loading.choose_target("cpu", 1))
    assert caught.value.code == "BASE_MODEL_UNUSABLE"


def test_torn_weights_are_reported(copy: Path) -> None:
    from backend.trainers import loading

    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TrainerError, match="does not load") as caught:
        loading.load_base(copy, loading.choose_target("cpu", 1))
    assert caught.value.code == "BASE_MODEL_UNUSABLE"


def test_a_bare_tokenizer_gets_a_template_and_a_pad_token(copy: Path) -> None:
    from backend.trainers import loading
    from backend.trainers.examples import encode

    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = loading.load_tokenizer(copy)
    assert tokenizer.pad_token == tokenizer.eos_token
    messages = EVAL_ROWS[0]["messages"]
    example = encode(tokenizer, messages)
    learned = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
    assert tokenizer.decode(learned) == messages[-1]["content"] + "<|im_end|>"
    assert tokenizer.decode(example.input_ids).startswith("<|im_start|>user\n")
    for template in (loading.CHATML_TEMPLATE, loading.PLAIN_TEMPLATE):
        tokenizer.chat_template = template
        ids = encode(tokenizer, messages).input_ids
        assert tokenizer.decode(ids).endswith(messages[-1]["content"] + "<|im_end|>")


def test_a_missing_gpu_is_said_before_anything_loads() -> None:
    import torch

    from backend.trainers import loading

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainerError) as caught:
        loading.choose_target("cuda")
    assert caught.value.code == "DEVICE_UNAVAILABLE"


def test_an_evaluation_leaves_4_bit_gradients_exact(base_model: Path, data: dict[str, Path]) -> None:
    """bitsandbytes repacks weights in eval mode on some CPUs and then drops gradients; see keep_gradients_exact."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    from backend.trainers import examples, loading, scoring

    target = loading.Target("cpu", torch.float32, torch.float32)
    tokenizer = loading.load_tokenizer(base_model)
    rows = examples.encode_set(tokenizer, data["train"], 128).examples
    model = loading.load_base(base_model, target, four_bit=True)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, item in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(item, std=0.02)

    def gradients() -> torch.Tensor:
        model.train()
        model.zero_grad()
        loss, count = scoring.labelled_loss(model, examples.collate(rows, tokenizer.pad_token_id))
        (loss / count).backward()
        return torch.cat([item.grad.flatten() for item in model.parameters() if item.grad is not None])

    before = gradients()
    scoring.mean_loss(model, rows, target=target, pad_token_id=tokenizer.pad_token_id, batch_size=4)
    model.eval()
    with torch.inference_mode():
        model.generate(**tokenizer("The lid", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    after = gradients()
    assert before.norm() > 0
    assert torch.nn.functional.cosine_similarity(before, after, dim=0).item() > 0.9999
