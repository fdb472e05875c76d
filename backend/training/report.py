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
        f"- {_result(fine_tuning)}, {metrics.get('adapter_bytes', 0) / 1e6:.1f} MB",
        *_memory(fine_tuning.memory or {}),
        "",
        "## Did it get better?",
        "",
        *evaluation_section(metrics),
        *_documents((metrics.get("evaluation") or {}).get("documents") or []),
        *_answers(metrics.get("samples") or []),
        "## Hyperparameters",
        "",
        "| name | value |",
        "| --- | --- |",
        *[f"| {name} | {value} |" for name, value in sorted(fine_tuning.hyperparameters.items())],
        "",
        *_usage(fine_tuning),
    ]
    return "\n".join(lines)


def _result(fine_tuning: FineTuning) -> str:
    return "Model: `model.safetensors`" if fine_tuning.method == "full" else "Adapter: `adapter_model.safetensors`"


def _memory(memory: dict[str, Any]) -> list[str]:
    measured, known = memory.get("measured_bytes"), memory.get("forecast")
    if measured is None:
        return []
    said = f"- Memory: {measured / 1e9:.2f} GB at most"
    if known is not None:
        said += f"; the forecast was {known['comparable_bytes'] / 1e9:.2f} GB ({memory['error_pct']:+.1f} %)"
    return [said]


def _usage(fine_tuning: FineTuning) -> list[str]:
    if fine_tuning.method == "full":
        loading = ['model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")']
        needed: list[str] = []
    else:
        needed = ["from peft import PeftModel"]
        loading = [
            f'base = AutoModelForCausalLM.from_pretrained("{fine_tuning.model}")',
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        ]
    return [
        "## How to use the adapter" if needed else "## How to use the model",
        "",
        "```python",
        *needed,
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        *loading,
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        "```",
        "",
    ]


def evaluation_section(metrics: dict[str, Any]) -> list[str]:
    """Verdict and table, as lines of Markdown; the model card shows the same."""
    evaluation = metrics.get("evaluation") or {}
    base, tuned = evaluation.get("base") or {}, evaluation.get("tuned") or {}
    preferences = evaluation.get("preferences") or {}
    if base and metrics.get("perplexity_base") is None:
        # The trainer's own loss of a run on preferences is of pairs, not of answers.
        source, loss = {"base": base, "tuned": tuned}, "loss of the preferred answers"
    else:
        names = {"loss": "eval_loss", "perplexity": "perplexity"}
        source = {
            model: {name: metrics.get(f"{metric}_{model}") for name, metric in names.items()}
            for model in ("base", "tuned")
        }
        loss = "loss"
    figures = [
        (shown, source["base"].get(name), source["tuned"].get(name), _number)
        for shown, name in ((loss, "loss"), ("perplexity", "perplexity"))
    ]
    if preferences:
        accuracies = preferences["accuracy_base"], preferences["accuracy_tuned"]
        figures.insert(0, ("preferred answer found likelier", *accuracies, _share))
    if evaluation.get("answers"):
        figures += [
            ("token F1 of the answers", base["token_f1"], tuned["token_f1"], _number),
            ("exact answers", base["exact_match"], tuned["exact_match"], _share),
        ]
    return [
        *_verdict(metrics),
        "",
        "| held-out examples | base | tuned |",
        "| --- | --- | --- |",
        *[f"| {name} | {show(before)} | {show(after)} |" for name, before, after, show in figures],
        "",
        *_how(evaluation),
    ]


def _how(evaluation: dict[str, Any]) -> list[str]:
    """On what the figures rest, and what the judge thinks."""
    if not evaluation.get("examples"):
        return []
    lines = [f"Losses: {evaluation['examples']} held-out examples. Answers: {evaluation['answers']}, greedy."]
    if evaluation["examples_skipped"]:
        lines.append(f"{evaluation['examples_skipped']} examples were too long and are not counted.")
    if evaluation["answers_cut_by_time"]:
        left_out = evaluation["questions_asked"] - evaluation["answers"]
        lines.append(f"{left_out} more questions were left out because time was up (EVALUATION_MAX_SECONDS).")
    difference = evaluation["f1_difference"]
    if difference:
        lines.append(
            f"F1 difference: {difference['mean']:+.3f}, 95 % interval {difference['low']:+.3f} to "
            f"{difference['high']:+.3f} (paired bootstrap)."
        )
    if preferences := evaluation.get("preferences"):
        margin = preferences["reward_margin"]
        lines.append(
            f"Preferences: {preferences['pairs']} held-out pairs, reward margin {margin['mean']:+.3f}, 95 % interval "
            f"{margin['low']:+.3f} to {margin['high']:+.3f}; in {_share(preferences['reward_accuracy'])} of them the "
            "preferred answer gained more than the rejected one."
        )
    judge = evaluation.get("judge")
    if judge:
        lines.append(judge["sentence"])
    return [" ".join(lines), ""]


def _documents(documents: list[dict[str, Any]]) -> list[str]:
    if not documents:
        return []
    rows = [
        f"| {_cell(item['name'] or 'no document')} | {item['examples']} | {_number(item['loss_base'])} | "
        f"{_number(item['loss_tuned'])} | {_number(item['f1_base'])} | {_number(item['f1_tuned'])} |"
        for item in documents
    ]
    head = ["| document | examples | loss, base | loss, tuned | F1, base | F1, tuned |", "| --- " * 6 + "|"]
    return ["## By document", "", *head, *rows, ""]


def _dataset(version: VersionName | None) -> list[str]:
    if version is None:
        return []
    return [f"- Dataset: `{version.dataset_id}`, version {version.version}, SHA-256 `{version.sha256}`"]


def _verdict(metrics: dict[str, Any]) -> list[str]:
    if "evaluation" in metrics:
        return [f"**{_TITLES[metrics['evaluation']['verdict']]}** {metrics['evaluation']['sentence']}"]
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


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


_TITLES = {"better": "Yes.", "no_better": "No.", "worse": "No, it got worse.", "unproven": "Not proven."}
