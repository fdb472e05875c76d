"""The loss over labelled positions equals the model's own, value and gradients alike."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_labelled_loss_equals_the_models_own(base_model: Path, data: dict[str, Path]) -> None:
    import torch

    from backend.trainers import examples, loading, scoring

    target = loading.Target("cpu", torch.float32, torch.float32)
    tokenizer = loading.load_tokenizer(base_model)
    rows = examples.encode_set(tokenizer, data["train"], 128).examples
    batch = examples.collate(rows, tokenizer.pad_token_id)
    assert len({len(row.input_ids) for row in rows}) > 1, "without padding this would prove less"
    model = loading.load_base(base_model, target).train()

    model(**batch, use_cache=False).loss.backward()
    expected = {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}
    expected_loss = model(**batch, use_cache=False).loss.item()
    model.zero_grad()
    loss, count = scoring.labelled_loss(model, batch)
    (loss / count).backward()

    assert count == sum(label != -100 for row in rows for label in row.labels[1:])
    assert loss.item() / count == pytest.approx(expected_loss, rel=1e-5)
    assert expected
    for name, item in model.named_parameters():
        torch.testing.assert_close(item.grad, expected[name], rtol=1e-3, atol=1e-6)


def test_mean_loss_weighs_tokens_alike_whatever_the_batches(base_model: Path, data: dict[str, Path]) -> None:
    import torch

    from backend.trainers import examples, loading, scoring

    target = loading.Target("cpu", torch.float32, torch.float32)
    tokenizer = loading.load_tokenizer(base_model)
    rows = examples.encode_set(tokenizer, data["train"], 128).examples
    model = loading.load_base(base_model, target).train()
    pad = tokenizer.pad_token_id
    scores = [scoring.mean_loss(model, rows, target=target, pad_token_id=pad, batch_size=size) for size in (1, 3, 16)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    assert scores[2] == pytest.approx(scores[0], rel=1e-5)
    assert model.training
    stopped = scoring.mean_loss(model, rows, target=target, pad_token_id=pad, batch_size=3, stop=lambda: True)
    assert stopped is None
