"""The report of a finished run: what was trained on what, and whether it got better."""

from typing import Any

from backend.datasets.versions import VersionName
from backend.projects.models import Project
from backend.training.models import FineTuning


def render_report(project: Project, fine_tuning: FineTuning, version: VersionName | None) -> str:
    """Markdown; every figure comes from the run's own metrics."""
    metrics = fine_tuning.metrics
    lines = [
        f"# {project.name}: fine-tuning report",
        "",
        f"- Base model: `{fine_tuning.model}`",
        f"- Method: {fine_tuning.method}, on {metrics.get('device', 'cpu')}",
        *_dataset(version),
        f"- Examples: {metrics.get('train_examples', 0)} to train, {metrics.get('eval_examples', 0)} held out",
        f"- Steps: {metrics.get('steps', 0)} in {metrics.get('train_seconds', 0):.0f} s",
        f"- Adapter: `adapter_model.safetensors`, {metrics.get('adapter_bytes', 0) / 1e6:.1f} MB",
        "",
        "## Did it get better?",
        "",
        *_verdict(metrics),
        "",
        "| held-out examples | base | tuned |",
        "| --- | --- | --- |",
        f"| loss | {_number(metrics.get('eval_loss_base'))} | {_number(metrics.get('eval_loss_tuned'))} |",
        f"| perplexity | {_number(metrics.get('perplexity_base'))} | {_number(metrics.get('perplexity_tuned'))} |",
        "",
        *_answers(metrics.get("samples") or []),
        "## Hyperparameters",
        "",
        "| name | value |",
        "| --- | --- |",
        *[f"| {name} | {value} |" for name, value in sorted(fine_tuning.hyperparameters.items())],
        "",
        "## How to use the adapter",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{fine_tuning.model}")',
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _dataset(version: VersionName | None) -> list[str]:
    if version is None:
        return []
    return [f"- Dataset: `{version.dataset_id}`, version {version.version}, SHA-256 `{version.sha256}`"]


def _verdict(metrics: dict[str, Any]) -> list[str]:
    base, tuned = metrics.get("eval_loss_base"), metrics.get("eval_loss_tuned")
    if base is None or tuned is None:
        return ["There were no held-out examples, so nothing can be said. Generate a larger dataset."]
    change = 100 * (base - tuned) / base
    if tuned < base:
        return [f"Yes: the loss on examples that were never trained on fell by {change:.0f} %."]
    return ["No: the loss on held-out examples did not fall. Use more examples, fewer epochs or a lower learning rate."]


def _answers(samples: list[dict[str, Any]]) -> list[str]:
    if not samples:
        return []
    lines = ["## Answers to held-out questions", ""]
    for sample in samples:
        lines += [
            f"**{_line(sample['messages'][-1]['content'])}**",
            "",
            f"- expected: {_line(sample['expected'])}",
            f"- base: {_line(sample['base'])}",
            f"- tuned: {_line(sample['tuned'])}",
            "",
        ]
    return lines


def _line(text: str) -> str:
    return " ".join(text.split())[:600]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
