"""A random Llama of 0.1 M parameters with a tokenizer trained on the spot, its data, and real child processes."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.tiny import (
    CHATML,
    COLOURS,
    EVAL_ROWS,
    HYPERPARAMS,
    TRAIN_ROWS,
    Child,
    ConfigMaker,
    Recorder,
    run_here,
    write_lines,
)

os.environ["TOKENIZERS_PARALLELISM"] = "false"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The training libraries warn about one another; only our own code is held to no warnings."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "base"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [message["content"] for row in TRAIN_ROWS + EVAL_ROWS for message in row["messages"]]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHATML
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=3,
        )
    )
    # The tied head must be able to prefer a token: an adapter leaves it as it is.
    model.model.embed_tokens.weight.data.mul_(10)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "train": write_lines(folder / "train.jsonl", TRAIN_ROWS),
        "eval": write_lines(folder / "eval.jsonl", EVAL_ROWS),
    }


@pytest.fixture(scope="session")
def train_config(base_model: Path, data: dict[str, Path]) -> ConfigMaker:
    """A training config as JSON; keywords override hyperparameters, `fields` the rest."""

    def make(run_dir: Path, fields: dict[str, Any] | None = None, **hyperparams: Any) -> dict[str, Any]:
        return {
            "run_dir": str(run_dir),
            "base_model": str(base_model),
            "base_model_id": "example/tiny",
            "train_file": str(data["train"]),
            "eval_file": str(data["eval"]),
            "device": "cpu",
            "threads": 1,
            "hyperparams": {**HYPERPARAMS, **hyperparams},
            **(fields or {}),
        }

    return make


@pytest.fixture
def start_child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(module: str, config: dict[str, Any] | None = None) -> Child:
        children.append(Child(module, config, tmp_path))
        return children[-1]

    yield start
    for child in children:
        child.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, train_config: ConfigMaker) -> tuple[Path, Recorder]:
    """One finished LoRA run, never interrupted: its run folder and its events."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    return run_dir, run_here(train_config(run_dir, keep="last"))


@pytest.fixture(scope="session")
def fluent_model(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after 120 steps on sentences of the data's form with random colours: it can talk, not know."""
    import torch

    from backend.trainers import examples, loading, scoring

    folder = shutil.copytree(base_model, tmp_path_factory.mktemp("fluent") / "base")
    chance = random.Random(0)
    tokenizer = loading.load_tokenizer(folder)
    model = loading.load_base(folder, loading.Target("cpu", torch.float32, torch.float32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        batch = []
        for row in chance.choices(TRAIN_ROWS + EVAL_ROWS, k=16):
            question, answer = row["messages"]
            guess = answer["content"].rsplit(" ", 1)[0] + f" {chance.choice(COLOURS)}."
            ids = examples.encode(tokenizer, [question, {"role": "assistant", "content": guess}]).input_ids
            batch.append(examples.Example(ids, ids))
        loss, count = scoring.labelled_loss(model, examples.collate(batch, tokenizer.pad_token_id))
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def knowing_adapter(fluent_model: Path, train_config: ConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained until it knows the facts."""
    run_dir = tmp_path_factory.mktemp("knowing") / "run"
    settings = {"num_epochs": 50, "per_device_batch_size": 8, "gradient_accumulation_steps": 1, "lora_dropout": 0.0}
    fields = {"base_model": str(fluent_model), "eval_file": None}
    run_here(train_config(run_dir, fields, lora_r=16, lora_alpha=32, **settings))
    return run_dir / "adapter"
