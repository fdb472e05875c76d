"""How much memory a run will take on a machine, part by part, from its config and the shape of its base model.

The figures follow what the trainer (backend/trainers) does. Bytes; P parameters of the base, L those of its linear
layers without the head, A those of the adapter; h hidden size, i inner size of the MLP, q and k the sizes of all query
heads and of all key heads, V vocabulary; T tokens of the largest forward pass (`tokens_at_once`), S those of them whose
successor is scored. `e` is 2 where the machine multiplies 16-bit numbers, else 4.

    weights      lora, dpo: e P. full: 4 P. qlora: NF4 as in sizing.py, and 4 bytes for what is not quantised.
    adapter      4 A, trained in 32 bits
    gradients    4 A; full: 4 P, which come as the activations go: beside all of these only where a step has several
                 passes
    optimizer    AdamW: 8 A, full: 8 P; paged 8-bit AdamW (qlora on CUDA): 2 A
    best         4 A, full: 4 P: the weights to deliver, kept aside on the CPU where there are held-out examples
    activations  what autograd keeps of T tokens, layer by layer, see `_layer_bytes`; and with recomputing, 2 bytes
                 x h of each layer and all of one
    casts        full where autocast computes in 16 bits: 2 (L + V h), kept for the backward pass. DoRA: for each layer
                 and pass 2 bytes x the inputs squared, and 2 L, because it multiplies the adapter with an identity
    logits       10 V S: 16-bit logits, their 32-bit copy, and its gradient. TRL's own head (CUDA, and dpo everywhere)
                 works in tiles instead of 4096 tokens x 32768 words: 31 bytes x that without Triton, else 2
    process      CPU: what the interpreter and the libraries take, measured. CUDA: the context and what the allocator
                 cannot reuse, 1 GB as in sizing.py
    heap         CPU: the share of activations, casts and logits that the C library's heap takes beyond them, measured

What autograd keeps was read off with torch.autograd.graph.saved_tensors_hooks for Llama and Qwen3 on a CPU, and
`./run bench memory` compares forecasts with measured peaks there. The CUDA figures come from the same terms; no GPU was
at hand to measure them.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from backend.providers.architecture import FAMILIES, linear_shapes
from backend.providers.model_facts import ModelFacts
from backend.training import sizing
from backend.training.sizing import Method

Device = Literal["cpu", "cuda"]
# backend.trainers.batches.BUSY_TOKENS, backend.trainers.arguments.RECOMPUTED_PARAMETERS: a test compares them.
BUSY_TOKENS: dict[Device, int] = {"cpu": 1024, "cuda": 4096}
RECOMPUTED_FROM_PARAMETERS = 3_000_000_000
# What the chat template adds to an example's own tokens: its marks of roles, and of some a system prompt.
TEMPLATE_TOKENS = 32
SCORED_SHARE = 0.5
# Python with torch, transformers, peft, trl and datasets loaded, on Linux with torch 2.13 for CPUs: the resident size
# of a run whose model has 3 million parameters.
PROCESS_BYTES = 670_000_000
# What glibc's heap holds beyond the tensors of a pass, because they leave it in another order than they came: a run of
# 1647 MB took 1465 MB with an allocator that gives each tensor back (MALLOC_MMAP_THRESHOLD_=65536).
HEAP_SHARE = 0.28
# backend.trainers.sharding: the share of a card above which a model is split over several.
_SPLIT_ABOVE = 0.5
_TILE_TOKENS, _TILE_WORDS = 4096, 32_768
_TILE_BYTES: dict[Device, int] = {"cpu": 31, "cuda": 2}


@dataclass(frozen=True, slots=True)
class Machine:
    """What one worker has: `memory_bytes` of its smallest GPU, or of the machine or container.

    `has_16_bit`: it multiplies 16-bit numbers. `has_4_bit`: quantised layers work. `gpus`: how many there are.
    """

    device: Device
    memory_bytes: int
    has_16_bit: bool = True
    has_4_bit: bool = True
    gpus: int = 0

    @classmethod
    def of(cls, report: dict[str, Any]) -> "Machine | None":
        """From a worker's hardware report; None for one that does not say how much memory there is."""
        gpus = report.get("gpus") or []
        on_gpu = bool(report.get("cuda_available")) and bool(gpus) and report.get("training_device") != "cpu"
        if on_gpu:
            # A run takes all of them, and each has to hold its share.
            size_gb = min(float(gpu.get("vram_total_gb") or 0) for gpu in gpus)
        else:
            size_gb = float(report.get("memory_usable_gb") or report.get("memory_total_gb") or 0)
        if not size_gb:
            return None
        return cls(
            device="cuda" if on_gpu else "cpu",
            memory_bytes=round(size_gb * 1e9),
            has_16_bit=on_gpu or bool(report.get("bf16_supported")),
            has_4_bit=bool(report.get("bnb_available")),
            gpus=len(gpus) if on_gpu else 0,
        )


@dataclass(frozen=True, slots=True)
class DataSize:
    """Of the examples that are trained on: the longest and the mean, in tokens, and the share that is the answers'."""

    longest: int
    mean: float
    scored_share: float = SCORED_SHARE
    has_held_out: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a run does, under the names of its hyperparameters.

    `data` None: unknown, so that every example may be as long as `max_seq_length`. `most_tokens` limits a forward pass
    further. `dora` and `dropout`: whether there are any.
    """

    method: Method
    per_device_batch_size: int
    gradient_accumulation_steps: int
    max_seq_length: int
    lora_r: int
    dora: bool = False
    dropout: bool = True
    recompute: bool = False
    most_tokens: int | None = None
    data: DataSize | None = None

    @classmethod
    def of(cls, method: Method, values: dict[str, Any], data: DataSize | None = None) -> "Work":
        """From complete hyperparameters."""
        return cls(
            method=method,
            per_device_batch_size=int(values["per_device_batch_size"]),
            gradient_accumulation_steps=int(values["gradient_accumulation_steps"]),
            max_seq_length=int(values["max_seq_length"]),
            lora_r=int(values["lora_r"]),
            dora=bool(values.get("use_dora")),
            # TRL switches it off for preferences.
            dropout=values.get("lora_dropout", 0.0) > 0 and method != "dpo",
            data=data,
        )

    @property
    def examples_a_step(self) -> int:
        return self.per_device_batch_size * self.gradient_accumulation_steps

    def limited_to(self, tokens: int) -> "Work":
        return replace(self, most_tokens=tokens)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes by part, and the `tokens` of the largest forward pass."""

    tokens: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    best: int
    activations: int
    casts: int
    logits: int
    process: int
    heap: int

    @property
    def parts(self) -> dict[str, int]:
        return {name: size for name, size in asdict(self).items() if name != "tokens"}

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def comparable(self, device: Device) -> int:
        """What the trainer's `peak_memory_bytes` counts of it: on a GPU tensors alone."""
        return self.total if device == "cpu" else self.total - self.process - self.best


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of one base model, with the names of this module's docstring."""

    parameters: int
    linear: int
    adapter: int
    h: int
    inner: int
    q: int
    k: int
    vocabulary: int
    layers: int
    matrices: list[tuple[int, int]]
    norms: int
    query_key_norms: bool

    @property
    def inputs(self) -> int:
        return sum(item[0] for item in self.matrices)

    @property
    def outputs(self) -> int:
        return sum(item[1] for item in self.matrices)


def forecast(facts: ModelFacts, work: Work, machine: Machine) -> Forecast | None:
    """The largest use of memory during the run; None for models whose shape is unknown."""
    sizes = _sizes(facts, work.lora_r)
    if sizes is None:
        return None
    tokens = tokens_at_once(work, machine.device, facts.max_position_embeddings)
    full, on_cuda = work.method == "full", machine.device == "cuda"
    wide = 2 if machine.has_16_bit else 4
    trained = sizes.parameters if full else sizes.adapter
    held_out = work.data is None or work.data.has_held_out
    activations = _activations(sizes, work, machine, tokens)
    gradients = 4 * trained
    if full:
        # Those of all weights come as the activations go; in a later pass the ones before are there already.
        later = activations * min(_step_tokens(work, tokens) / tokens - 1, 1)
        gradients = max(round(gradients + later - activations), 0)
    casts, logits = _casts(sizes, work, wide), _logits(sizes, work, machine, tokens)
    weights = _weights(sizes, work.method, wide)
    # Several GPUs hold a part of the model each where it is large (backend/trainers/sharding.py), and else all of it.
    split = machine.gpus > 1 and (full or (work.method == "lora" and weights > _SPLIT_ABOVE * machine.memory_bytes))
    share = machine.gpus if split else 1
    return Forecast(
        tokens=tokens,
        weights=weights // share,
        adapter=0 if full else 4 * trained // share,
        gradients=gradients // share,
        optimizer=(2 if on_cuda and work.method == "qlora" else 8) * trained // share,
        best=4 * trained if held_out else 0,
        activations=activations,
        casts=casts,
        logits=logits,
        process=sizing.OVERHEAD_BYTES if on_cuda else PROCESS_BYTES,
        heap=0 if on_cuda else round(HEAP_SHARE * (activations + casts + logits)),
    )


def tokens_at_once(work: Work, device: Device, context: int | None) -> int:
    """The tokens of the largest forward pass: backend.trainers.batches.tokens_at_once, and no more than a step has."""
    limit = min(work.max_seq_length, context or work.max_seq_length)
    data = work.data
    longest = min(data.longest, limit) if data is not None else limit
    batch = work.per_device_batch_size
    if work.method == "dpo":
        # Two answers to each prompt, padded to the longest.
        return 2 * batch * longest
    most = min(batch * limit, max(batch * longest, BUSY_TOKENS[device]))
    if work.most_tokens is not None:
        most = max(min(most, work.most_tokens), longest)
    if data is None:
        return most
    # The step that holds the longest example.
    return min(most, math.ceil(longest + (work.examples_a_step - 1) * min(data.mean, longest)))


def _step_tokens(work: Work, tokens: int) -> float:
    """Of all passes of an optimizer step, at least those of the largest."""
    if work.method == "dpo":
        return tokens * work.gradient_accumulation_steps
    mean = work.data.mean if work.data is not None else work.max_seq_length
    return max(work.examples_a_step * mean, tokens)


def _weights(sizes: _Sizes, method: Method, wide: int) -> int:
    if method == "full":
        return 4 * sizes.parameters
    if method == "qlora":
        return math.ceil(sizes.linear * sizing.NF4_BYTES) + 4 * (sizes.parameters - sizes.linear)
    return wide * sizes.parameters


def _activations(sizes: _Sizes, work: Work, machine: Machine, tokens: int) -> int:
    """Kept for the backward pass by all layers, or by one and the inputs of all."""
    layer = _layer_bytes(sizes, work, machine) * tokens
    if not (work.recompute or (machine.device == "cuda" and sizes.parameters > RECOMPUTED_FROM_PARAMETERS)):
        return layer * sizes.layers
    wide = 4 if work.method in ("full", "qlora") or not machine.has_16_bit else 2
    return layer + sizes.layers * wide * sizes.h * tokens


def _layer_bytes(sizes: _Sizes, work: Work, machine: Machine) -> int:
    """Of one layer and token. Norms keep their input in 32 bits; attention its queries, keys, values and result; the
    MLP the gate before and after its activation, and what it is multiplied with; each linear layer its input."""
    wide = 2 if machine.has_16_bit else 4
    h, inner, inputs = sizes.h, sizes.inner, sizes.inputs
    # Padded batches come with a mask, for which keys and values are repeated for all heads.
    attention = wide * (4 * sizes.q if work.method == "dpo" else 2 * (sizes.q + sizes.k))
    kept = attention + 3 * wide * inner + 4 * h * sizes.norms
    if sizes.query_key_norms:
        kept += 4 * (sizes.q + sizes.k)
    if work.method == "full":
        # The trained norms keep their result too. Autocast makes a copy for each linear layer.
        kept += 4 * h * sizes.norms + (2 * (sizes.q + sizes.k) if sizes.query_key_norms else 0)
        return kept + (2 * inputs if wide == 2 else 4 * (2 * h + sizes.q + inner))
    kept += wide * work.lora_r * len(sizes.matrices)
    if work.dora:
        kept += 2 * wide * sizes.outputs
    if work.method == "qlora":
        # The layers between the quantised ones compute in 32 bits.
        kept += (4 - wide) * 3 * inner
    fused = machine.device == "cpu" and work.method in ("lora", "dpo") and not work.dora
    if not work.dropout:
        return kept + (wide * (2 * h + sizes.q + inner) if fused else wide * inputs)
    if machine.device == "cuda":
        return kept + 3 * inputs  # an 8-bit mask, and the 16-bit copy
    # The noise has the width of what it is multiplied with: 32 bits, unless base and adapter are one product.
    return kept + ((wide if fused else 4) + wide) * inputs


def _casts(sizes: _Sizes, work: Work, wide: int) -> int:
    if work.method == "full":
        return 2 * (sizes.linear + sizes.vocabulary * sizes.h) if wide == 2 else 0
    if not work.dora:
        return 0
    squares = sum(inputs * inputs for inputs, _ in sizes.matrices)
    layers = 1 if work.recompute else sizes.layers
    return layers * wide * squares + wide * sizes.linear * layers // sizes.layers


def _logits(sizes: _Sizes, work: Work, machine: Machine, tokens: int) -> int:
    share = work.data.scored_share if work.data is not None else SCORED_SHARE
    if machine.device == "cuda" or work.method == "dpo":
        tile = min(tokens, _TILE_TOKENS) * min(sizes.vocabulary, _TILE_WORDS)
        size = _TILE_BYTES[machine.device] * tile
    else:
        size = math.ceil((10 if machine.has_16_bit else 8) * sizes.vocabulary * share * tokens)
    if work.method == "full":
        # The head's own gradient, before the layers give anything up.
        size += 4 * sizes.vocabulary * sizes.h
    return size


def _sizes(facts: ModelFacts, lora_r: int) -> _Sizes | None:
    matrices = linear_shapes(facts.model_type, sizing.shape_of(facts))
    linear, adapter = sizing.linear_parameters(facts), sizing.lora_parameters(facts, lora_r)
    if matrices is None or linear is None or adapter is None or facts.num_parameters is None:
        return None
    if not (facts.hidden_size and facts.intermediate_size and facts.vocab_size and facts.num_layers):
        return None
    assert facts.num_attention_heads is not None
    assert facts.num_key_value_heads is not None
    assert facts.head_dim is not None
    family = FAMILIES[str(facts.model_type)]
    return _Sizes(
        parameters=facts.num_parameters,
        linear=linear,
        adapter=adapter,
        h=facts.hidden_size,
        inner=facts.intermediate_size,
        q=facts.num_attention_heads * facts.head_dim,
        k=facts.num_key_value_heads * facts.head_dim,
        vocabulary=facts.vocab_size,
        layers=facts.num_layers,
        matrices=matrices,
        norms=family.norms_per_layer,
        query_key_norms=family.query_key_norms,
    )
