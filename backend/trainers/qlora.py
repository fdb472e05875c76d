"""Fine-tunes a base model with LoRA or QLoRA: `python -m backend.trainers.qlora CONFIG.json`.

Safe to start again after any interruption: it goes on from the last whole checkpoint, and a finished run reports its
result once more without training.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from backend.trainers import process
from backend.trainers.config import TrainConfig
from backend.trainers.errors import RUN_FOLDER_MISMATCH, Cancelled, TrainerError
from backend.trainers.events import Events, perplexity

# Imported inside functions: torch and its company take seconds to load, and the event stream, the death signal and the
# handling of SIGTERM must stand before.
if TYPE_CHECKING:
    from backend.trainers.examples import EncodedSet
    from backend.trainers.loading import Target
    from backend.trainers.trainer import AdapterTrainer

MAX_EVALUATIONS = 10
CHECKPOINTED_PARAMETERS = 3_000_000_000


def fine_tune(config: TrainConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Train, evaluate and deliver the adapter to `config.run_dir`; raises TrainerError or Cancelled."""
    from backend.trainers import checkpoints

    events.stage("loading")
    with checkpoints.locked(config.run_dir):
        claim(config)
        metrics_file = config.run_dir / "metrics.json"
        if metrics_file.is_file():
            events.emit("complete", **summary(json.loads(metrics_file.read_text(encoding="utf-8"))))
            return
        trainer, train_set, base_loss = prepare(config, events, cancellation)
        started = time.monotonic()

        events.stage("training")
        resumed_from = checkpoints.newest_whole(config.run_dir)
        with cancellation.deferred():
            output = trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
        if cancellation.requested:
            events.emit("cancelled", step=trainer.state.global_step)
            raise Cancelled

        tuned_loss = choose_weights(trainer, config, events, base_loss)
        events.stage("saving")
        metrics = {
            **losses(trainer, output.training_loss, base_loss, tuned_loss),
            "train_seconds": round(trainer.train_seconds, 3),
            "duration_seconds": round(time.monotonic() - started, 3),
            "num_tokens": trainer.state.num_input_tokens_seen,
            "train_examples": len(train_set.examples),
            "train_examples_skipped": train_set.skipped,
            "eval_examples": len(trainer.held_out),
            "trainable_parameters": sum(item.numel() for item in trainer.model.parameters() if item.requires_grad),
            "device": trainer.target.device,
            "compute_dtype": str(trainer.target.compute_dtype).removeprefix("torch."),
            "versions": versions(),
            "history": trainer.state.log_history,
        }
        deliver(trainer, config, metrics)
        events.emit("complete", **summary(metrics))


def prepare(
    config: TrainConfig, events: Events, cancellation: process.Cancellation
) -> tuple[AdapterTrainer, EncodedSet, float | None]:
    """Everything up to the first step: data, model, trainer, and the base model's own loss on the held-out set."""
    from backend.trainers import checkpoints, examples, loading

    params = config.hyperparams
    target = loading.choose_target(config.device, config.threads)
    loading.refuse_unsafe(config.base_model)
    tokenizer = loading.load_tokenizer(config.base_model)
    train_set = examples.encode_set(tokenizer, config.train_file, params.max_seq_length)
    held_out = (
        examples.encode_set(tokenizer, config.eval_file, params.max_seq_length)
        if config.eval_file is not None
        else examples.EncodedSet([], 0, 0)
    )
    if skipped := train_set.skipped + held_out.skipped:
        events.warning(
            f"{skipped} examples are longer than max_seq_length={params.max_seq_length} and were left out; the longest "
            f"has {max(train_set.longest, held_out.longest)} tokens. Raise max_seq_length to use them."
        )
    trainer = build_trainer(config, target, tokenizer, train_set, held_out, events, cancellation)

    base_loss = None
    if held_out.examples:
        baseline_file = config.run_dir / "baseline.json"
        if baseline_file.is_file():
            base_loss = json.loads(baseline_file.read_text(encoding="utf-8"))["eval_loss"]
        else:
            events.stage("baseline")
            # A new adapter adds nothing yet, but a resumed run has none to trust: switch it off in any case.
            with trainer.model.disable_adapter():
                base_loss = trainer.score()
            checkpoints.write_json(baseline_file, {"eval_loss": base_loss})
        trainer.base_loss = base_loss
        events.evaluation(0, base_loss or math.nan)
    return trainer, train_set, base_loss


def build_trainer(
    config: TrainConfig,
    target: Target,
    tokenizer: Any,
    train_set: EncodedSet,
    held_out: EncodedSet,
    events: Events,
    cancellation: process.Cancellation,
) -> AdapterTrainer:
    """Load the base model, put a new adapter on all its linear layers, and set the trainer up."""
    from datasets import Dataset
    from peft import LoraConfig, prepare_model_for_kbit_training

    from backend.trainers import loading
    from backend.trainers.trainer import AdapterTrainer

    params = config.hyperparams
    four_bit = config.method == "qlora"
    model = loading.load_base(config.base_model, target, four_bit=four_bit)
    recompute = target.device == "cuda" and model.num_parameters() > CHECKPOINTED_PARAMETERS
    if four_bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recompute)
    return AdapterTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([asdict(example) for example in train_set.examples]),
        eval_dataset=Dataset.from_list([asdict(example) for example in held_out.examples])
        if held_out.examples
        else None,
        held_out=held_out.examples,
        target=target,
        events=events,
        cancellation=cancellation,
        keep=params.keep,
        peft_config=LoraConfig(
            r=params.lora_r,
            lora_alpha=params.lora_alpha,
            lora_dropout=params.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        args=trainer_settings(config, target, len(train_set.examples), recompute, evaluates=bool(held_out.examples)),
    )


def trainer_settings(config: TrainConfig, target: Target, examples: int, recompute: bool, *, evaluates: bool) -> Any:
    """The public hyperparameters under TRL's names (an SFTConfig), with what follows from data and hardware."""
    import torch
    from trl import SFTConfig

    params = config.hyperparams
    on_cuda = target.device == "cuda"
    steps_per_epoch = math.ceil(math.ceil(examples / params.per_device_batch_size) / params.gradient_accumulation_steps)
    total_steps = steps_per_epoch * params.num_epochs
    on_cuda_optimizer = "paged_adamw_8bit" if config.method == "qlora" else "adamw_torch_fused"
    return SFTConfig(
        output_dir=str(config.run_dir),
        num_train_epochs=params.num_epochs,
        learning_rate=params.learning_rate,
        per_device_train_batch_size=params.per_device_batch_size,
        per_device_eval_batch_size=params.per_device_batch_size * 2,
        gradient_accumulation_steps=params.gradient_accumulation_steps,
        warmup_steps=math.ceil(params.warmup_ratio * total_steps),
        weight_decay=params.weight_decay,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        optim=on_cuda_optimizer if on_cuda else "adamw_torch",
        seed=params.seed,
        data_seed=params.seed,
        max_length=None,  # the examples arrive encoded, and those too long are already out
        use_cpu=not on_cuda,
        bf16=target.compute_dtype == torch.bfloat16,
        fp16=target.compute_dtype == torch.float16,
        activation_checkpointing=recompute,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=params.eval_steps or max(steps_per_epoch, math.ceil(total_steps / MAX_EVALUATIONS)),
        save_strategy="steps" if params.save_steps else "no",
        save_steps=params.save_steps or total_steps,
        logging_steps=params.logging_steps,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=on_cuda,
        disable_tqdm=True,
        report_to="none",
    )


def choose_weights(
    trainer: AdapterTrainer, config: TrainConfig, events: Events, base_loss: float | None
) -> float | None:
    """Score the last weights, go back to those that `prefers` kept; returns the loss of those delivered."""
    if not trainer.held_out:
        return None
    events.stage("evaluating")
    loss = trainer.last_loss if trainer.last_scored_step == trainer.state.global_step else trainer.score()
    if loss is None:
        raise Cancelled
    if trainer.last_scored_step != trainer.state.global_step:
        events.evaluation(trainer.state.global_step, loss)
        trainer.consider_best(loss)
    kept = trainer.best_loss
    if kept is None or trainer.best_step == trainer.state.global_step:
        return loss
    if config.hyperparams.keep == "last":
        if base_loss is None or kept >= base_loss:
            return loss
        events.warning(
            f"The last weights score worse on held-out examples ({loss:.3f}) than the base model ({base_loss:.3f}), "
            f"so those of step {trainer.best_step} ({kept:.3f}) are delivered. Use fewer epochs or more examples."
        )
    trainer.restore_best()
    return kept


def losses(
    trainer: AdapterTrainer, mean_train_loss: float, base_loss: float | None, tuned_loss: float | None
) -> dict[str, Any]:
    """The figures that the report and the `complete` event show."""
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    kept_best = tuned_loss is not None and tuned_loss == trainer.best_loss
    return {
        "steps": trainer.state.global_step,
        "kept_step": trainer.best_step if kept_best else trainer.state.global_step,
        "final_train_loss": logged[-1] if logged else mean_train_loss,
        "eval_loss_base": base_loss,
        "eval_loss_tuned": tuned_loss,
        "perplexity_base": perplexity(base_loss) if base_loss is not None else None,
        "perplexity_tuned": perplexity(tuned_loss) if tuned_loss is not None else None,
    }


def deliver(trainer: AdapterTrainer, config: TrainConfig, metrics: dict[str, Any]) -> None:
    """Write the adapter with its tokenizer, then metrics.json, whose presence says that the run is complete."""
    from backend.trainers import checkpoints

    adapter = config.run_dir / "adapter"
    with checkpoints.whole_folder(adapter) as folder:
        # The path of this machine's copy means nothing elsewhere: the adapter names the public model.
        trainer.model.peft_config["default"].base_model_name_or_path = config.base_model_id
        trainer.model.save_pretrained(folder, save_embedding_layers=False)
        trainer.processing_class.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
    metrics["adapter_bytes"] = (adapter / "adapter_model.safetensors").stat().st_size
    checkpoints.write_json(config.run_dir / "metrics.json", metrics)
    checkpoints.keep_newest(config.run_dir, 0)
    (config.run_dir / "baseline.json").unlink(missing_ok=True)


def claim(config: TrainConfig) -> None:
    """Write training_config.json, or check that this run folder was begun with the same settings and data.

    Raises TrainerError RUN_FOLDER_MISMATCH: going on with other settings would deliver a model that nobody asked for.
    """
    from backend.trainers import checkpoints, examples

    files = {"train": config.train_file, "eval": config.eval_file}
    for path in filter(None, files.values()):
        examples.read_conversations(path)
    described = {
        "base_model_id": config.base_model_id,
        "method": config.method,
        "hyperparams": asdict(config.hyperparams),
        "dataset_sha256": {name: checkpoints.sha256_of(path) for name, path in files.items() if path is not None},
    }
    described["fingerprint"] = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    path = config.run_dir / "training_config.json"
    if not path.is_file():
        shutil.rmtree(config.run_dir / "adapter", ignore_errors=True)
        checkpoints.write_json(path, described)
    elif json.loads(path.read_text(encoding="utf-8")).get("fingerprint") != described["fingerprint"]:
        message = "This run was begun with other settings or data. Start a new run instead of resuming this one."
        raise TrainerError(RUN_FOLDER_MISMATCH, message)


def summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """The `complete` event: all metrics but the long ones."""
    return {"status": "success", **{key: value for key, value in metrics.items() if key not in ("history", "versions")}}


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}


if __name__ == "__main__":
    sys.exit(process.run(TrainConfig, fine_tune))
