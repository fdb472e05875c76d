"""The model card that travels with an export: a README.md with the Hub's front matter, every figure from the run."""

import json

from backend.datasets.versions import VersionName
from backend.projects.models import Project
from backend.training.export_formats import FILE_OF, Format
from backend.training.models import FineTuning
from backend.training.report import evaluation_section

_LOADING: dict[Format, str] = {
    "adapter": """### Adapter

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
base = AutoModelForCausalLM.from_pretrained({model})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
""",
    "merged": """### Merged model

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder/merged")
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder/merged")
```
""",
}
_GGUF = """### `{file}`

With llama.cpp: `llama-server -m {file}`. With Ollama: a Modelfile with the line `FROM ./{file}`.
The chat template is inside.
"""


def render_card(
    project: Project,
    fine_tuning: FineTuning,
    version: VersionName | None,
    formats: list[Format],
    license_name: str | None,
) -> str:
    """Markdown. `license_name` is the base model's, when it is known."""
    metrics = fine_tuning.metrics
    model = json.dumps(fine_tuning.model)
    front = [
        "---",
        f"base_model: {model}",
        *([f"license: {license_name}"] if license_name else []),
        f"library_name: {'transformers' if 'merged' in formats or fine_tuning.method == 'full' else 'peft'}",
        "pipeline_tag: text-generation",
        "tags:",
        f"- {fine_tuning.method}",
        "- fine-tuned",
        "---",
    ]
    dataset = (
        [f"- Dataset: `{version.dataset_id}`, version {version.version}, SHA-256 `{version.sha256}`"] if version else []
    )
    known = (
        f"The base model's licence is `{license_name}`; it holds for this model as well."
        if license_name
        else "The base model's licence is not known here. It holds for this model as well: read it at its origin."
    )
    lines = [
        *front,
        "",
        f"# {project.name}",
        "",
        f"`{fine_tuning.model}`, fine-tuned ({fine_tuning.method}) on pairs from a project's documents.",
        "",
        *dataset,
        f"- Examples: {metrics.get('train_examples', 0)} to train, {metrics.get('eval_examples', 0)} held out",
        f"- Steps: {metrics.get('steps', 0)}",
        "",
        "## Intended use",
        "",
        "Answers to questions about those documents. Outside of them it is the base model, with its limits and biases.",
        "It may state wrong things with confidence: check what matters.",
        "",
        "## Evaluation",
        "",
        *evaluation_section(metrics),
        "## How to load it",
        "",
        *[_loading(kind, model, whole=fine_tuning.method == "full") for kind in formats],
        "## Hyperparameters",
        "",
        "| name | value |",
        "| --- | --- |",
        *[f"| {name} | {value} |" for name, value in sorted(fine_tuning.hyperparameters.items())],
        "",
        "## Licence",
        "",
        known,
        "",
    ]
    return "\n".join(lines)


def _loading(kind: Format, model: str, *, whole: bool) -> str:
    """`whole`: the run trained all weights, so that the folder itself is the model."""
    if whole and kind == "adapter":
        return _LOADING["merged"].replace("/merged", "").replace("Merged model", "Model")
    return _LOADING[kind].format(model=model) if kind in _LOADING else _GGUF.format(file=FILE_OF[kind])
