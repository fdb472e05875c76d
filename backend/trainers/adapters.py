"""LoRA layers as one product each: 16 bits then keep the small additions that an adapter learns first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch.nn import functional

_NAME = "default"


class _OneProduct(torch.autograd.Function):
    """[inputs, reduced] times [weight, up] transposed; gradients for inputs, reduced and up, none for the weight.

    Apart, the base layer's result is rounded to 16 bits, and a new adapter's small addition to it is then lost in the
    rounding. In one product both are summed in 32 bits, and rounded once.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, reduced: torch.Tensor, weight: torch.Tensor, up: torch.Tensor, bias: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(reduced, weight, up)
        return functional.linear(torch.cat([inputs, reduced], dim=-1), _joined(weight, up), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        reduced, weight, up = ctx.saved_tensors
        both = gradient @ _joined(weight, up)
        width = weight.shape[1]
        of_up = gradient.flatten(0, -2).t() @ reduced.flatten(0, -2)
        return both[..., :width], both[..., width:], None, of_up.to(up.dtype), None


def fuse(model: torch.nn.Module) -> int:
    """Let each plain LoRA layer of `model` over 16-bit weights compute in one product; returns how many there are."""
    layers = [item for item in model.modules() if _is_plain(item)]
    for layer in layers:
        layer.forward = _in_one_product(layer, layer.forward)
    return len(layers)


def _in_one_product(layer: Any, apart: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(inputs: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if layer.disable_adapters or layer.merged or layer.active_adapters != [_NAME]:
            return apart(inputs, *arguments, **options)
        base = layer.base_layer
        inputs = inputs.to(base.weight.dtype)
        down = layer.lora_A[_NAME].weight.to(base.weight.dtype)
        reduced = functional.linear(layer.lora_dropout[_NAME](inputs), down)
        up = layer.lora_B[_NAME].weight * layer.scaling[_NAME]
        output: torch.Tensor = _OneProduct.apply(inputs, reduced, base.weight, up, base.bias)
        return output

    return forward


def _is_plain(layer: Any) -> bool:
    """A LoRA layer without variants (DoRA) over an unquantised linear layer in bf16."""
    return (
        type(layer) is LoraLinear
        and type(layer.base_layer) is torch.nn.Linear
        and layer.base_layer.weight.dtype == torch.bfloat16
        and not layer.lora_variant.get(_NAME)
        and not layer.fan_in_fan_out
        and layer.lora_B[_NAME].bias is None
    )


def _joined(weight: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.cat([weight, up.to(weight.dtype)], dim=1)
