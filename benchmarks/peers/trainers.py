"""One epoch of LoRA by our trainer as the worker runs it, and by TRL's SFTTrainer: seconds, tokens, steps, loss."""

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.training_pairs import Kind

RANK, ALPHA, DROPOUT, RATE = 16, 32, 0.05, 2e-4


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch took. `cpu_seconds` counts all threads, and no other process of a busy machine."""

    seconds: float
    cpu_seconds: float
    tokens: int
    steps: int
    loss: float


def prepare() -> None:
    """Settings that the libraries read on import; the same for both."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_WAIT_POLICY="PASSIVE")


def ours(base: Path, pairs: list[Any], batch_size: int) -> Epoch:
    """The path of a job, from its files on; only the training itself is timed."""
    from backend.trainers import building, memory
    from backend.trainers.config import Hyperparams, TrainConfig
    from backend.trainers.events import Events
    from backend.trainers.process import Cancellation

    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as name:
        folder = Path(name)
        data = folder / "train.jsonl"
        data.write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in pairs), encoding="utf-8")
        config = TrainConfig(
            run_dir=folder / "run",
            base_model=base,
            base_model_id="bench/base",
            train_file=data,
            device="cpu",
            hyperparams=Hyperparams(
                num_epochs=1,
                learning_rate=RATE,
                per_device_batch_size=batch_size,
                gradient_accumulation_steps=1,
                lora_r=RANK,
                lora_alpha=ALPHA,
                lora_dropout=DROPOUT,
                weight_decay=0.0,
                seed=0,
            ),
        )
        events = Events(io.StringIO())
        prepared = building.prepare(config, events, memory.Parts())
        trainer: Any = prepared.trainer(config, events, Cancellation(), memory.Parts())
        tokens = sum(len(example.input_ids) for example in trainer.examples)
        return _timed(trainer, tokens)


def trl(base: Path, pairs: list[Any], batch_size: int, **settings: Any) -> Epoch:
    """SFTTrainer with its defaults but for what the comparison fixes: data, batch size, adapter, rate, seed.

    The weights are given to it in bf16, as ours are; computing in bf16 is its own default.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from backend.trainers.loading import choose_target, load_tokenizer

    target = choose_target("cpu")
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    assert tokenizer.chat_template == load_tokenizer(base).chat_template
    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(base, dtype=target.weights_dtype, local_files_only=True),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": pair[:-1], "completion": pair[-1:]} for pair in pairs]),
            peft_config=LoraConfig(
                r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=1,
                learning_rate=RATE,
                per_device_train_batch_size=batch_size,
                seed=0,
                use_cpu=True,
                bf16=target.compute_dtype == torch.bfloat16,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                **settings,
            ),
        )
        return _timed(trainer, sum(len(ids) for ids in trainer.train_dataset["input_ids"]))


def _timed(trainer: Any, tokens: int) -> Epoch:
    trainer.remove_callback(_printer())
    started, spent = time.perf_counter(), time.process_time()
    output = trainer.train()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - spent
    return Epoch(seconds, cpu_seconds, tokens, trainer.state.global_step, output.training_loss)


def _printer() -> type:
    from transformers import PrinterCallback

    return PrinterCallback  # type: ignore[no-any-return]


Contender = Callable[[Path, list[Any], int], Epoch]
KINDS: dict[Kind, tuple[int, int]] = {"short": (32, 8), "long": (6, 2)}  # pairs, pairs a step
