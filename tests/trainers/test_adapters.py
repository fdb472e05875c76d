"""LoRA layers in one product: peft's results and gradients, but for the rounding that loses a new adapter's work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def adapted(base_model: Path, *, dtype: Any, **settings: Any) -> Any:
    """The tiny model with an adapter whose B is as small as after a step or two."""
    import torch
    from peft import LoraConfig, get_peft_model

    from backend.trainers import loading

    model = loading.load_base(base_model, loading.Target("cpu", dtype, dtype))
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(5)
    for name, item in model.named_parameters():
        if "lora_" in name:
            item.data = torch.randn(item.shape, generator=generator) * (0.1 if "lora_A" in name else 5e-5)
    return model.train()


def layer_results(layer: Any, inputs: Any) -> tuple[Any, Any, Any, Any]:
    """Output, and the gradients of inputs, A and B, in 32 bits."""
    import torch

    inputs = inputs.detach().clone().to(layer.base_layer.weight.dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inputs.dtype == torch.bfloat16):
        output = layer(inputs)
    layer.zero_grad()
    (output.float() * torch.linspace(-1, 1, output.shape[-1])).sum().backward()
    gradients = (inputs.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad)
    return output.detach().float(), *(item.float().clone() for item in gradients)


def test_one_product_gives_what_32_bits_give_and_two_products_do_not(base_model: Path) -> None:
    import torch

    from backend.trainers import adapters

    exact_model, apart_model, fused_model = (
        adapted(base_model, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    assert adapters.fuse(fused_model) == 14
    path = "base_model.model.model.layers.1.mlp.up_proj"
    exact, apart, fused = (model.get_submodule(path) for model in (exact_model, apart_model, fused_model))
    exact.base_layer.weight.data = apart.base_layer.weight.data.float()
    inputs = torch.randn(1, 400, 64, generator=torch.Generator().manual_seed(6)).bfloat16().float()
    wanted, theirs, ours = (layer_results(layer, inputs) for layer in (exact, apart, fused))
    for one, other in zip(ours, wanted, strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
    without = torch.nn.functional.linear(inputs, exact.base_layer.weight)
    addition = (wanted[0] - without).flatten()

    def kept(output: Any) -> float:
        """How much of the adapter's addition is left in an output, 1 for all of it."""
        return float((output[0] - without).flatten() @ addition / (addition @ addition))

    assert kept(ours) == pytest.approx(1, abs=0.1)
    assert kept(theirs) < 0.8


def test_switched_off_the_base_answers(base_model: Path) -> None:
    import torch

    from backend.trainers import adapters, loading

    model = adapted(base_model, dtype=torch.bfloat16).eval()
    adapters.fuse(model)
    base = loading.load_base(base_model, loading.Target("cpu", torch.bfloat16, torch.bfloat16)).eval()
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_other_layers_are_left_as_they_are(base_model: Path) -> None:
    import torch

    from backend.trainers import adapters

    assert adapters.fuse(adapted(base_model, dtype=torch.float32)) == 0
    assert adapters.fuse(adapted(base_model, dtype=torch.bfloat16, use_dora=True)) == 0
