"""Packed batches compute what padded ones do, loss and gradients alike, in every architecture that may use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def tiny(kind: str, **settings: Any) -> Any:
    """A random model of an architecture, in 32 bits."""
    import torch
    import transformers

    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    config_type = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(transformers, config_type)(**{**shape, **settings})
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def rows(lengths: tuple[int, ...] = (9, 31, 4, 40)) -> list[Any]:
    import torch

    from backend.trainers.examples import Example

    generator = torch.Generator().manual_seed(2)
    made = []
    for length in lengths:
        ids = torch.randint(5, 128, (length,), generator=generator).tolist()
        made.append(Example(ids, [-100] * (length // 2) + ids[length // 2 :]))
    return made


def loss_and_gradients(model: Any, batch: Any, lengths: list[int] | None) -> tuple[float, dict[str, Any]]:
    from backend.trainers import packing, scoring

    model.train()
    model.zero_grad()
    with packing.segments(lengths):
        loss, count = scoring.labelled_loss(model, batch)
        (loss / count).backward()
    return loss.item() / count, {
        name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None
    }


@pytest.mark.parametrize(
    ("kind", "settings", "attention"),
    [
        ("Llama", {}, "segmented_sdpa"),
        ("Qwen2", {}, "segmented_sdpa"),
        ("Mistral", {"sliding_window": 8}, "segmented_sdpa"),
        ("Qwen3", {"head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, None),
        ("Gemma3", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}, "segmented_sdpa"),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_packed_and_padded_batches_learn_the_same(
    kind: str, settings: dict[str, Any], attention: str | None, recompute: bool
) -> None:
    import torch

    from backend.trainers import batches, examples, packing
    from backend.trainers.loading import Target

    model = tiny(kind, **settings)
    expected_loss, expected = loss_and_gradients(model, examples.collate(rows(), 0), None)

    assert packing.enable(model, Target("cpu", torch.float32, torch.float32))
    if attention is not None:
        assert model.config._attn_implementation == attention
    if recompute:
        model.gradient_checkpointing_enable()
    lengths = [len(row.input_ids) for row in rows()]
    loss, gradients = loss_and_gradients(model, batches.pack(rows()), lengths)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=2e-3, atol=2e-6)


def test_the_library_mask_serves_where_our_attention_cannot() -> None:
    import torch

    from backend.trainers import batches, examples, packing
    from backend.trainers.loading import Target

    model = tiny("Llama")
    expected_loss, expected = loss_and_gradients(model, examples.collate(rows(), 0), None)
    assert packing.is_exact(model, Target("cpu", torch.float32, torch.float32))
    assert model.config._attn_implementation == "sdpa"
    loss, gradients = loss_and_gradients(model, batches.pack(rows()), None)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=2e-3, atol=2e-6)


def test_a_model_that_carries_state_along_the_row_is_padded() -> None:
    import torch

    from backend.trainers import packing
    from backend.trainers.loading import Target

    torch.manual_seed(1)
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=8))
    for item in model.parameters():
        item.data.mul_(3)  # random weights are small: what leaks must be seen
    assert not packing.enable(model, Target("cpu", torch.float32, torch.float32))


def test_outside_of_packed_batches_the_attention_is_the_usual_one(base_model: Path) -> None:
    """Padded batches and generation go on over the same model."""
    import torch

    from backend.trainers import examples, loading, packing

    target = loading.Target("cpu", torch.float32, torch.float32)
    model = loading.load_base(base_model, target).eval()
    batch = examples.collate(rows((9, 31)), 0)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        before = model(**inputs).logits
        assert packing.enable(model, target)
        after = model(**inputs).logits
    keep = inputs["attention_mask"].bool()
    torch.testing.assert_close(before[keep], after[keep])


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_cut_in_parts_learns_what_a_whole_one_does(
    base_model: Path, data: dict[str, Path], packed: bool
) -> None:
    """Through the trainer itself, without dropout: losses of two epochs, by how many tokens fit at once."""
    import dataclasses

    from backend.trainers import building, memory
    from backend.trainers.config import Hyperparams, TrainConfig
    from backend.trainers.events import Events
    from backend.trainers.process import Cancellation
    from tests.trainers.tiny import Recorder

    histories = []
    for number, tokens in enumerate((10_000, 60, 1)):
        config = TrainConfig(
            run_dir=data["train"].parent / f"parts-{packed}-{number}",
            base_model=base_model,
            base_model_id="example/tiny",
            train_file=data["train"],
            hyperparams=Hyperparams(
                num_epochs=2, learning_rate=1e-3, per_device_batch_size=4, gradient_accumulation_steps=2, lora_dropout=0
            ),
            device="cpu",
            threads=1,
        )
        events = Events(Recorder())  # type: ignore[arg-type]
        parts = memory.Parts(tokens=tokens)
        prepared = dataclasses.replace(building.prepare(config, events, parts), packed=packed)
        trainer = prepared.trainer(config, events, Cancellation(), parts)
        trainer.train()  # type: ignore[attr-defined]
        histories.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    whole, some, single = histories
    assert len(whole) == 4
    assert some == pytest.approx(whole, rel=0.02)
    assert single == pytest.approx(whole, rel=0.02)


@pytest.mark.gpu
def test_packed_batches_are_exact_on_a_gpu(base_model: Path) -> None:
    import torch

    from backend.trainers import loading, packing

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    target = loading.choose_target("cuda")
    assert packing.enable(loading.load_base(base_model, target), target)
