"""How the demo ends: the table of base and tuned, what to make of it, and the line for programs."""

import json
import math
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from backend.demo.flow import Answer, Outcome

LONGEST_ANSWER = 140


def show_results(console: Console, outcome: Outcome, *, embedded_model: bool) -> None:
    """Print tables and notes. `embedded_model`: whether the bundled small model wrote the dataset."""
    console.print()
    console.print(losses_table(outcome))
    console.print()
    console.print(answers_table(outcome.answers))
    console.print(Padding(Group(*notes(outcome, embedded_model=embedded_model)), (1, 0, 1, 1)))


def json_line(outcome: Outcome, total_seconds: float) -> str:
    """One line of JSON. Losses in nats a token, `pages` null where the format has none, `zip` an absolute path."""
    fields = {
        "document": outcome.document,
        "pages": outcome.pages,
        "chunks": outcome.chunks,
        "examples_train": outcome.examples_train,
        "examples_eval": outcome.examples_eval,
        "eval_loss_base": round(outcome.eval_loss_base, 4),
        "eval_loss_tuned": round(outcome.eval_loss_tuned, 4),
        "train_seconds": round(outcome.train_seconds, 1),
        "adapter_bytes": outcome.adapter_bytes,
        "zip": str(outcome.zip),
        "total_seconds": round(total_seconds, 1),
    }
    return json.dumps(fields, ensure_ascii=False)


def losses_table(outcome: Outcome) -> Table:
    base, tuned = outcome.eval_loss_base, outcome.eval_loss_tuned
    table = Table(title=f"{outcome.examples_eval} held-out examples, never trained on", title_justify="left")
    table.add_column("lower is better")
    for name in ("base", "tuned", "change"):
        table.add_column(name, justify="right")
    better = "green" if tuned < base else "red"
    for name, left, right in (("loss", base, tuned), ("perplexity", math.exp(base), math.exp(tuned))):
        change = Text(f"{100 * (right - left) / left:+.0f} %", style=better)
        table.add_row(name, f"{left:.3f}", Text(f"{right:.3f}", style=f"bold {better}"), change)
    return table


def answers_table(answers: Sequence[Answer]) -> Table:
    """Three columns of equal width: the question with the expected answer, then both models side by side."""
    table = Table(title="The same questions to both models", title_justify="left", show_lines=True, expand=True)
    table.add_column("question", ratio=1)
    table.add_column("base", ratio=1)
    table.add_column("tuned", ratio=1)
    for answer in answers:
        tag = Text("held out", style="magenta") if answer.held_out else Text("seen in training", style="cyan")
        question: RenderableType = Group(
            tag, Text(answer.question, style="bold"), Text(f"Expected: {answer.expected}", style="dim")
        )
        tuned = Text(shortened(answer.tuned))
        if answer.right:
            tuned = Text("✔ ", style="bold green").append(tuned.plain, style="green")
        table.add_row(question, Text(shortened(answer.base)), tuned)
    return table


def notes(outcome: Outcome, *, embedded_model: bool) -> list[Text]:
    seen = [answer for answer in outcome.answers if not answer.held_out]
    held_out = [answer for answer in outcome.answers if answer.held_out]
    lines = []
    if seen:
        lines.append(
            f"The tuned model gives the expected answer, word for word, to {_count(seen)} questions from the training "
            f"set and to {_count(held_out)} held-out ones: it learns what it is shown, and cannot know a fact that it "
            f"was never shown."
        )
    if outcome.eval_loss_tuned < outcome.eval_loss_base:
        lines.append("The lower loss on held-out examples comes from the style and the words of the document.")
    else:
        lines.append("The held-out loss did not fall: too few examples, or too different ones. Try another document.")
    if embedded_model:
        lines.append(
            "[yellow]Starter quality:[/] the questions were written by the embedded model, which has 135 million "
            "parameters, and the tuned model is as small. For real use set [bold]LLM_BASE_URL[/] and "
            "[bold]LLM_MODEL[/] to any OpenAI-compatible server (Ollama, vLLM, llama.cpp, LM Studio), and choose a "
            "larger base model in your project."
        )
    lines.append(f"The adapter: {escape(str(outcome.zip))}")
    return [Text.from_markup(line) for line in lines]


def shortened(text: str) -> str:
    """One paragraph of at most LONGEST_ANSWER characters, cut at a word."""
    text = " ".join(text.split()) or "(no answer)"
    if len(text) <= LONGEST_ANSWER:
        return text
    return text[:LONGEST_ANSWER].rsplit(" ", 1)[0] + " ..."


def _count(answers: Sequence[Answer]) -> str:
    return f"{sum(answer.right for answer in answers)} of {len(answers)}"
