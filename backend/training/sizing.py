"""How much GPU memory a base model and its fine-tuning need, and which method fits a machine.

GB are 10^9 bytes, as everywhere in the service. Sizes of a fine-tuning are a sum of parts:

    weights      lora: 2 bytes x parameters.
                 qlora: NF4 with double quantisation for the linear layers, (0.5 + 1/64 + 4/16384) bytes x linear
                 parameters (4 bits, an 8-bit constant for 64 of them, a 32-bit one for 256 of those constants), and
                 4 bytes x the rest: embeddings, norms and output head, which are held in 32 bits while training.
    adapters     4 bytes x adapter parameters (trained in 32 bits): r x (inputs + outputs) of every linear layer
    gradients    4 bytes x adapter parameters
    optimizer    lora: AdamW, 8 bytes; qlora: paged 8-bit AdamW, 2 bytes; x adapter parameters
    activations  per token of a batch (batch x sequence length): every layer's inputs, projections and dropped-out
                 adapter inputs in 16 bits. Above 3 billion parameters they are recomputed: only 2 bytes x hidden size
                 are kept of each layer, and one layer's at a time in full. Plus 10 bytes x vocabulary for the scored
                 half of the tokens (16-bit logits, their 32-bit copy, its gradient).
    overhead     1 GB: CUDA context, kernels' workspaces, what the allocator cannot reuse

The weights are exact; activations and overhead are estimates. See `public_numbers` for the figures of the contract.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from backend.providers.architecture import Shape, linear_shapes
from backend.providers.model_facts import ModelFacts

Method = Literal["lora", "qlora", "full", "dpo"]
NF4_BYTES = 0.5 + 1 / 64 + 4 / 16384
# Bits a parameter when a model is loaded in 4 bits: the mean over Llama-3.1-8B (5.68), Qwen2.5-7B (5.83),
# Mistral-7B-v0.3 (4.57) and Qwen3-8B (5.93), whose embeddings and output heads stay in 16 bits.
TYPICAL_4BIT_BITS = 5.5
RECOMPUTED_FROM_PARAMETERS = 3_000_000_000
OVERHEAD_BYTES = 1_000_000_000
SCORED_SHARE = 0.5
USABLE_SHARE = 0.95
_GIB = 1 << 30
_MIN_QLORA_VRAM_GB = 6.0
_MIN_LORA_VRAM_GB = 40.0


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes by part."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations + self.overhead


def public_numbers(facts: ModelFacts) -> dict[str, Any]:
    """The figures that `model/resolve` shows; all None when the number of parameters is unknown.

    `num_parameters` has four significant digits; `estimated_vram_fp16_gb` is 2 bytes and `estimated_vram_4bit_gb` 5.5
    bits times that, to load the model alone (8,030,261,248 parameters: 8030000000, 16.06 and 5.52). What is exact
    comes beside it: `num_parameters_exact`, `weights_4bit_gb` of this very architecture (None if not known), and
    `vram_training`, the needs of both methods with the default hyperparameters.
    """
    count = facts.num_parameters
    if count is None:
        names = "num_parameters estimated_vram_fp16_gb estimated_vram_4bit_gb num_parameters_exact weights_4bit_gb"
        return dict.fromkeys([*names.split(), "vram_training"])
    rounded = _significant(count, 4)
    exact_4bit = weights_bytes_4bit(facts)
    return {
        "num_parameters": rounded,
        "estimated_vram_fp16_gb": _gb(rounded * 2),
        "estimated_vram_4bit_gb": _gb(rounded * TYPICAL_4BIT_BITS / 8),
        "num_parameters_exact": count,
        "weights_4bit_gb": _gb(exact_4bit) if exact_4bit is not None else None,
        "vram_training": training_numbers(facts),
    }


def training_numbers(facts: ModelFacts, *, batch_size: int = 4, sequence_length: int = 2048, lora_r: int = 16) -> Any:
    """{"batch_size", "sequence_length", "lora_r", "lora_parameters", "lora": {part_gb...}, "qlora": {part_gb...}}.

    None when the shape of the model is unknown. Sequences longer than the model's context are counted at its length.
    """
    adapter = lora_parameters(facts, lora_r)
    length = min(sequence_length, facts.max_position_embeddings or sequence_length)
    by_method: dict[str, dict[str, float]] = {}
    for method in ("lora", "qlora"):
        memory = training_memory(facts, method, batch_size=batch_size, sequence_length=length, lora_r=lora_r)
        if memory is None:
            return None
        parts = {f"{name}_gb": _gb(size) for name, size in asdict(memory).items()}
        by_method[method] = parts | {"total_gb": _gb(memory.total)}
    sizes = {"batch_size": batch_size, "sequence_length": length, "lora_r": lora_r, "lora_parameters": adapter}
    return sizes | by_method


def training_memory(
    facts: ModelFacts, method: Method, *, batch_size: int, sequence_length: int, lora_r: int
) -> TrainingMemory | None:
    """The parts described above; None for models whose shape is unknown."""
    adapter, linear, count = lora_parameters(facts, lora_r), linear_parameters(facts), facts.num_parameters
    activations = activation_bytes(facts, batch_size * sequence_length)
    if adapter is None or linear is None or count is None or activations is None:
        return None
    four_bit = method == "qlora"
    weights = math.ceil(linear * NF4_BYTES) + 4 * (count - linear) if four_bit else 2 * count
    return TrainingMemory(
        weights=weights,
        adapters=4 * adapter,
        gradients=4 * adapter,
        optimizer=(2 if four_bit else 8) * adapter,
        activations=activations,
        overhead=OVERHEAD_BYTES,
    )


def weights_bytes_4bit(facts: ModelFacts) -> int | None:
    """Exact bytes of the model loaded in NF4 with double quantisation, the rest in 16 bits; None if not known."""
    linear, count = linear_parameters(facts), facts.num_parameters
    if linear is None or count is None:
        return None
    return math.ceil(linear * NF4_BYTES) + 2 * (count - linear)


def linear_parameters(facts: ModelFacts) -> int | None:
    """Weights of the linear layers without the output head: those that are quantised and adapted."""
    matrices = linear_shapes(facts.model_type, shape_of(facts))
    if matrices is None or facts.num_layers is None:
        return None
    return facts.num_layers * sum(inputs * outputs for inputs, outputs in matrices)


def lora_parameters(facts: ModelFacts, lora_r: int = 16) -> int | None:
    """Parameters of an adapter of rank `lora_r` on all linear layers; None for architectures that are not known."""
    matrices = linear_shapes(facts.model_type, shape_of(facts))
    if matrices is None or facts.num_layers is None:
        return None
    return facts.num_layers * lora_r * sum(inputs + outputs for inputs, outputs in matrices)


def activation_bytes(facts: ModelFacts, tokens: int) -> int | None:
    """What the backward pass of a batch of `tokens` needs; None when the shape is unknown."""
    matrices = linear_shapes(facts.model_type, shape_of(facts))
    if matrices is None or not (facts.hidden_size and facts.num_layers and facts.vocab_size):
        return None
    inputs, outputs = sum(item[0] for item in matrices), sum(item[1] for item in matrices)
    # Two norms with their 32-bit copies and two residuals; each projection's result; the activation and its product;
    # and for each adapter its dropped-out input with an 8-bit mask.
    layer = 16 * facts.hidden_size + 2 * outputs + 4 * (facts.intermediate_size or 0) + 3 * inputs
    if (facts.num_parameters or 0) > RECOMPUTED_FROM_PARAMETERS:
        layers = layer + 2 * facts.hidden_size * facts.num_layers
    else:
        layers = layer * facts.num_layers
    return math.ceil(tokens * (layers + 10 * facts.vocab_size * SCORED_SHARE))


def recommend_method(report: dict[str, Any] | None, facts: ModelFacts | None = None) -> tuple[Method | None, str]:
    """(method, reason) for a machine's hardware report, and for one base model when `facts` are given.

    The report has `cuda_available`, `bnb_available`, and `gpus` (each with `vram_total_gb` of 10^9 bytes) or, as the
    contract shows it, `vram_total_gb` in the units that GPUs are sold by. None: no method fits, the reason says why.
    """
    if report is None:
        return None, "No worker has reported its hardware yet. Start one, then check again."
    if not report.get("cuda_available"):
        return None, "No CUDA GPU detected. GPU fine-tuning not possible on this machine."
    memory_bytes = _vram_bytes(report)
    label = f"{round(memory_bytes / _GIB)}GB VRAM detected."
    four_bit = bool(report.get("bnb_available"))
    if facts is not None and training_numbers(facts) is not None:
        return _recommend_for(facts, memory_bytes, label, four_bit)
    if memory_bytes >= _MIN_LORA_VRAM_GB * _GIB:
        return "lora", f"{label} LoRA recommended: 8B models fit in 16 bits."
    if not four_bit:
        return "lora", f"{label} LoRA recommended: QLoRA needs the package bitsandbytes, which does not work here."
    if memory_bytes >= _MIN_QLORA_VRAM_GB * _GIB:
        return "qlora", f"{label} QLoRA recommended for {_size_class(memory_bytes)} models to save memory."
    return "qlora", f"{label} QLoRA recommended, with models of at most 1B parameters."


def _recommend_for(facts: ModelFacts, memory_bytes: int, label: str, four_bit: bool) -> tuple[Method | None, str]:
    """The largest batch that fits with either method; 16 bits where both do, because it is faster."""
    usable_gb = memory_bytes * USABLE_SHARE / 1e9
    methods: tuple[Method, ...] = ("lora", "qlora") if four_bit else ("lora",)
    for batch_size in (4, 2, 1):
        needs = training_numbers(facts, batch_size=batch_size)
        for method in methods:
            total_gb = needs[method]["total_gb"]
            if total_gb <= usable_gb:
                name = "LoRA" if method == "lora" else "QLoRA"
                batch = "" if batch_size == 4 else f" and per_device_batch_size {batch_size}"
                return (
                    method,
                    f"{label} {name} recommended: {facts.model_id} needs about {total_gb:.1f} GB with it{batch}.",
                )
    if not four_bit and needs["qlora"]["total_gb"] <= usable_gb:
        return None, (
            f"{label} {facts.model_id} fits only with QLoRA, which needs the package bitsandbytes. Install it, or "
            "choose a smaller base model."
        )
    return None, (
        f"{label} {facts.model_id} needs about {needs['qlora']['total_gb']:.1f} GB even with QLoRA and "
        "per_device_batch_size 1. Lower max_seq_length, choose a smaller base model, or use a larger GPU."
    )


def _vram_bytes(report: dict[str, Any]) -> int:
    """Memory of the largest GPU: one worker trains on one."""
    gpus = report.get("gpus")
    if isinstance(gpus, list) and gpus:
        return int(max(float(gpu.get("vram_total_gb") or 0) for gpu in gpus) * 1e9)
    return int(float(report.get("vram_total_gb") or 0) * _GIB)


def _size_class(memory_bytes: int) -> str:
    if memory_bytes >= 20 * _GIB:
        return "8B+"
    return "7B-8B" if memory_bytes >= 14 * _GIB else "1B-3B"


def shape_of(facts: ModelFacts) -> Shape:
    return Shape(
        vocab_size=facts.vocab_size,
        max_position_embeddings=facts.max_position_embeddings,
        hidden_size=facts.hidden_size,
        intermediate_size=facts.intermediate_size,
        num_layers=facts.num_layers,
        num_attention_heads=facts.num_attention_heads,
        num_key_value_heads=facts.num_key_value_heads,
        head_dim=facts.head_dim,
        tie_word_embeddings=facts.tie_word_embeddings,
    )


def _significant(count: int, digits: int) -> int:
    return round(count, digits - len(str(count))) if count >= 10**digits else count


def _gb(size_bytes: float) -> float:
    return round(size_bytes / 1e9, 2)
