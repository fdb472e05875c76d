"""Fine-tunes a base model: `python -m backend.trainers.qlora CONFIG.json`; LoRA, QLoRA, all weights, or DPO.

Safe to start again after any interruption: it goes on from the last whole checkpoint, and a finished run reports its
result once more without training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.trainers import launching, process
from backend.trainers.config import TrainConfig
from backend.trainers.errors import OUT_OF_MEMORY, RUN_FOLDER_MISMATCH, Cancelled, TrainerError
from backend.trainers.events import Events

# Imported inside functions: torch and its company take seconds to load, and the event stream, the death signal and the
# handling of SIGTERM must stand before.
if TYPE_CHECKING:
    from backend.trainers.building import Prepared
    from backend.trainers.memory import Parts
    from backend.trainers.trainer import ResumableTrainer


def run(config: TrainConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Fine-tune here, or in several processes where there are several GPUs to use."""
    if not process.is_launched():
        size = launching.processes(config)
        if reason := launching.why_one(config):
            events.warning(reason)
        if size > 1:
            launching.launch(config, Path(sys.argv[1]), events, cancellation, size)
            return
        process.show_one_gpu()
    fine_tune(config, events, cancellation)


def fine_tune(config: TrainConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Train, evaluate and deliver the weights to `config.run_dir`; raises TrainerError or Cancelled.

    Out of memory, it goes on from the last whole checkpoint with half as much at once, twice at most. Of several
    processes the first holds the folder and writes; all end so that the launcher starts them anew.
    """
    from backend.trainers import checkpoints, memory, ranks

    events.stage("loading")
    ranks.join(config.device)
    with checkpoints.locked(config.run_dir) if ranks.is_first() else nullcontext():
        result, parts = ranks.from_first(lambda: (claim(config), memory.load_parts(config.run_dir)))
        if result is not None:
            events.emit("complete", **summary(result))
            return
        config = memory.fitted(config)
        while (smaller := attempt(config, events, cancellation, parts)) is not None:
            message = goes_on(config, smaller)
            if process.is_launched():
                events.emit(process.SMALLER, parts=asdict(smaller), message=message)
                process.leave(process.EXIT_SMALLER)
            memory.save_parts(config.run_dir, smaller)
            events.warning(message)
            memory.release()
            parts = smaller
        # Nobody leaves while another may still need its part of a weight.
        ranks.any_of(False)


def attempt(config: TrainConfig, events: Events, cancellation: process.Cancellation, parts: Parts) -> Parts | None:
    """One go from the last whole checkpoint to the end; returns smaller parts to go on with after OUT_OF_MEMORY.

    The error stays in here: its traceback would hold on to everything that filled the memory.
    """
    from backend.trainers import building, checkpoints, memory, ranks

    prepared: Prepared | None = None
    trainer: ResumableTrainer | None = None
    started = time.monotonic()
    try:
        prepared = building.prepare(config, events, parts)
        trainer = prepared.trainer(config, events, cancellation, parts)
        trainer.split()
        resumed_from = ranks.from_first(lambda: checkpoints.newest_whole(config.run_dir))
        base_loss = score_base(trainer, config, events, tell=resumed_from is None)

        events.stage("training")
        if resumed_from is not None:
            events.emit("resumed", step=checkpoints.step_of(resumed_from))
        with cancellation.deferred():
            mean_loss = trainer.train_on(resumed_from)
        if any(ranks.any_of(cancellation.requested)):
            events.emit("cancelled", step=trainer.state.global_step)
            raise Cancelled

        tuned_loss = choose_weights(trainer, config, events, base_loss)
        events.stage("saving")
        metrics = {
            **losses(trainer, mean_loss, base_loss, tuned_loss),
            **prepared.figures(),
            **effort(trainer, parts),
            "duration_seconds": round(time.monotonic() - started, 3),
            "versions": versions(),
            "history": trainer.state.log_history,
        }
        deliver(trainer, config, metrics)
        events.emit("complete", **summary(metrics))
        return None
    except Exception as error:
        failure = memory.ran_out(error)
        if failure is None or prepared is None:
            raise
        at_once = (trainer.most_tokens_at_once if trainer is not None else 0) or prepared.most_tokens
        if parts.halvings >= memory.RETRIES:
            raise TrainerError(OUT_OF_MEMORY, what_would_fit(failure, at_once, prepared.longest)) from None
        return parts.halved(at_once)


def goes_on(config: TrainConfig, smaller: Parts) -> str:
    """What is told of a run that ran out of memory."""
    from backend.trainers import checkpoints

    # Of several processes the first may just be writing one: nothing is tidied up here.
    found = config.run_dir.glob(f"{checkpoints.PREFIX}*")
    newest = max((checkpoints.step_of(folder) for folder in found if checkpoints.is_whole(folder)), default=0)
    params = config.hyperparams
    size = smaller.batch_size(params.per_device_batch_size, params.gradient_accumulation_steps)
    accumulation = smaller.accumulation(params.per_device_batch_size, params.gradient_accumulation_steps)
    return (
        f"Out of memory: the run goes on from step {newest} with "
        f"per_device_batch_size {size} and gradient_accumulation_steps {accumulation}, at most {smaller.tokens} tokens "
        f"at once{', and activations computed anew' if smaller.recomputes else ''}. What it computes stays the same."
    )


def what_would_fit(failure: TrainerError, at_once: int, longest: int) -> str:
    """The last failure in the words of someone who has tried to go on."""
    return (
        f"{failure} The run was tried again with its batches halved, and still has no room for {at_once} tokens at "
        f"once; its longest example has {longest}. A max_seq_length of {max(longest // 2, 16)} would halve it."
    )


def score_base(trainer: ResumableTrainer, config: TrainConfig, events: Events, *, tell: bool) -> float | None:
    """The base model's own loss on the held-out set, measured once a run; `tell` unless an attempt before did."""
    from backend.trainers import checkpoints, ranks

    if trainer.args.eval_strategy == "no":
        return None
    baseline_file = config.run_dir / "baseline.json"
    if baseline_file.is_file():
        loss: float | None = json.loads(baseline_file.read_text(encoding="utf-8"))["eval_loss"]
    else:
        events.stage("baseline")
        # A new adapter adds nothing yet, but a resumed run has none to trust: switch it off in any case.
        with trainer.without_training():
            loss = trainer.score()
        if ranks.is_first():
            checkpoints.write_json(baseline_file, {"eval_loss": loss})
    trainer.base_loss = loss
    if loss is not None and tell:
        events.evaluation(0, loss, trainer.perplexity_of(loss))
    return loss


def choose_weights(
    trainer: ResumableTrainer, config: TrainConfig, events: Events, base_loss: float | None
) -> float | None:
    """Score the last weights, go back to those that `prefers` kept; returns the loss of those delivered."""
    if trainer.args.eval_strategy == "no":
        return None
    events.stage("evaluating")
    loss = trainer.last_loss if trainer.last_scored_step == trainer.state.global_step else trainer.score()
    if loss is None:
        raise Cancelled
    if trainer.last_scored_step != trainer.state.global_step:
        events.evaluation(trainer.state.global_step, loss, trainer.perplexity_of(loss))
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
    trainer: ResumableTrainer, mean_train_loss: float, base_loss: float | None, tuned_loss: float | None
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
        "perplexity_base": trainer.perplexity_of(base_loss) if base_loss is not None else None,
        "perplexity_tuned": trainer.perplexity_of(tuned_loss) if tuned_loss is not None else None,
    }


def effort(trainer: ResumableTrainer, parts: Parts) -> dict[str, Any]:
    """What the run took; of several processes the highest figure, because each has memory of its own."""
    from backend.trainers import memory, ranks

    return {
        "stopped": trainer.stopped,
        "train_seconds": round(trainer.train_seconds, 3),
        "num_tokens": trainer.state.num_input_tokens_seen,
        "trainable_parameters": sum(item.numel() for item in trainer.model.parameters() if item.requires_grad),
        "most_tokens_at_once": ranks.most(trainer.most_tokens_at_once),
        "memory_halvings": parts.halvings,
        "peak_memory_bytes": ranks.most(memory.peak_bytes(trainer.target.device)),
        "device": trainer.target.device,
        "optimizer": str(trainer.args.optim.value),
        "attention": trainer.model.config._attn_implementation,
        "compute_dtype": str(trainer.target.compute_dtype).removeprefix("torch."),
    }


def deliver(trainer: ResumableTrainer, config: TrainConfig, metrics: dict[str, Any]) -> None:
    """Write the adapter (method full: the whole model in 16 bits) with its tokenizer, then metrics.json.

    Both lie in the folder `adapter`. That metrics.json is there says that the run is complete.
    """
    import torch

    from backend.trainers import checkpoints, memory, ranks, sharding
    from backend.trainers.trainer import save_weights

    weights = sharding.trained_weights(trainer.model) if trainer.sharded else None
    if not ranks.is_first():
        return
    adapter = config.run_dir / "adapter"
    with checkpoints.whole_folder(adapter) as folder:
        if config.method == "full" and weights is not None:
            weights = {name: item.to(torch.bfloat16) for name, item in weights.items()}
        elif config.method == "full":
            trainer.model.to(torch.bfloat16)
        else:
            # The path of this machine's copy means nothing elsewhere: the adapter names the public model.
            trainer.model.peft_config["default"].base_model_name_or_path = config.base_model_id
        save_weights(trainer.model, folder, weights)
        trainer.processing_class.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
    metrics["adapter_bytes"] = sum(path.stat().st_size for path in adapter.glob("*.safetensors"))
    checkpoints.write_json(config.run_dir / "metrics.json", metrics)
    checkpoints.keep_newest(config.run_dir, 0)
    memory.forget_parts(config.run_dir)
    (config.run_dir / "baseline.json").unlink(missing_ok=True)


def claim(config: TrainConfig) -> dict[str, Any] | None:
    """Write training_config.json, or check that this run folder was begun with the same settings and data.

    Returns the metrics of a run that is complete already. Raises TrainerError RUN_FOLDER_MISMATCH: going on with other
    settings would deliver a model that nobody asked for.
    """
    from backend.trainers import building, checkpoints

    files = {"train": config.train_file, "eval": config.eval_file}
    for path in filter(None, files.values()):
        building.read(config.method, path)
    described = {
        "base_model_id": config.base_model_id,
        "method": config.method,
        "hyperparams": asdict(config.hyperparams),
        "dataset_sha256": {name: checkpoints.sha256_of(path) for name, path in files.items() if path is not None},
    }
    described["fingerprint"] = fingerprint(described)
    path = config.run_dir / "training_config.json"
    if not path.is_file():
        shutil.rmtree(config.run_dir / "adapter", ignore_errors=True)
        checkpoints.write_json(path, described)
    elif json.loads(path.read_text(encoding="utf-8")).get("fingerprint") != described["fingerprint"]:
        message = "This run was begun with other settings or data. Start a new run instead of resuming this one."
        raise TrainerError(RUN_FOLDER_MISMATCH, message)
    metrics_file = config.run_dir / "metrics.json"
    return json.loads(metrics_file.read_text(encoding="utf-8")) if metrics_file.is_file() else None


def fingerprint(described: dict[str, Any]) -> str:
    """SHA-256 of what decides the result. How a step is cut is not part of it: each worker has memory of its own."""
    params = dict(described["hyperparams"])
    step = params.pop("per_device_batch_size") * params.pop("gradient_accumulation_steps")
    decisive = {**described, "hyperparams": {**params, "examples_per_step": step}}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """The `complete` event: all metrics but the long ones."""
    return {"status": "success", **{key: value for key, value in metrics.items() if key not in ("history", "versions")}}


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}


if __name__ == "__main__":
    code = process.run(TrainConfig, run, one_gpu=False)
    if process.is_launched():
        process.leave(code)
    sys.exit(code)
