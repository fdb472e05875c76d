"""What an evaluation's figures mean: tables by model and by document, and one sentence that the figures carry."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from backend.training.answer_scores import Difference, exact_match, paired_difference, token_f1
from backend.training.preference_verdicts import PreferenceResult

Verdict = Literal["better", "no_better", "worse", "unproven"]
Scored = dict[str, Any]
_MODELS = ("base", "tuned")
# With fewer answers an interval says more about luck than about the models.
FEWEST_ANSWERS = 5
_MOST_DOCUMENTS = 100
NOTHING_HELD_OUT = (
    "There were no held-out examples, so nothing could be proven. Generate a larger dataset, or hold more of it out."
)


@dataclass(frozen=True, slots=True)
class Document:
    """Where an example comes from; None for one whose source is gone, or that was written by hand."""

    id: str | None
    name: str | None


def score(samples: Sequence[Mapping[str, Any]]) -> list[Scored]:
    """Each pair of answers with its F1 and exact match."""
    return [
        {
            **sample,
            **{f"f1_{model}": round(token_f1(sample[model], sample["expected"]), 4) for model in _MODELS},
            **{f"exact_{model}": exact_match(sample[model], sample["expected"]) for model in _MODELS},
        }
        for sample in samples
    ]


def summarise(
    found: Mapping[str, Any],
    scored: Sequence[Scored],
    documents: Sequence[Document],
    preferences: PreferenceResult | None = None,
) -> dict[str, Any]:
    """The evaluation as it is stored and shown; `found` is what the evaluating child wrote.

    A run on preferences is judged by these; losses and answers are told all the same.
    """
    losses = found["losses"]
    loss = f1 = None
    if losses:
        tokens = [float(item["tokens"]) for item in losses]
        base, tuned = ([item[model] / max(item["tokens"], 1) for item in losses] for model in _MODELS)
        loss = paired_difference(base, tuned, tokens)
    if scored:
        base, tuned = ([item[f"f1_{model}"] for item in scored] for model in _MODELS)
        f1 = paired_difference(base, tuned)
    figures = {model: _figures(found, scored, model) for model in _MODELS}
    if preferences is None:
        verdict, sentence = _verdict(figures, len(scored), f1, loss)
    else:
        verdict, sentence = preferences.verdict, f"{preferences.sentence}{_of_preferred_answers(figures, loss)}"
    return {
        "verdict": verdict,
        "sentence": sentence,
        "examples": found["examples"],
        "examples_skipped": found["examples_skipped"],
        "answers": len(scored),
        "questions_asked": found["questions_asked"],
        "answers_cut_by_time": len(scored) < found["questions_asked"],
        "answer_seconds": found["answer_seconds"],
        **figures,
        "f1_difference": _rounded(f1),
        "loss_difference": _rounded(loss),
        "preferences": preferences.figures if preferences is not None else None,
        "documents": _by_document(losses, scored, documents),
        "judge": None,
    }


def unproven(sentence: str) -> dict[str, Any]:
    """The evaluation of a run that has none, and why."""
    return {"verdict": "unproven", "sentence": sentence, "examples": 0, "answers": 0, "documents": [], "judge": None}


def _figures(found: Mapping[str, Any], scored: Sequence[Scored], model: str) -> dict[str, float | None]:
    return {
        "loss": found[f"eval_loss_{model}"],
        "perplexity": found[f"perplexity_{model}"],
        "token_f1": round(fmean(item[f"f1_{model}"] for item in scored), 4) if scored else None,
        "exact_match": round(fmean(item[f"exact_{model}"] for item in scored), 4) if scored else None,
    }


def _verdict(
    figures: Mapping[str, Mapping[str, float | None]], answers: int, f1: Difference | None, loss: Difference | None
) -> tuple[Verdict, str]:
    """By the answers when there are enough of them, else by the loss. Chance counts as no difference."""
    losses = _losses(figures, loss)
    if f1 is not None and answers >= FEWEST_ANSWERS:
        scores = (
            f"token F1 {figures['base']['token_f1']:.2f} -> {figures['tuned']['token_f1']:.2f} on {answers} held-out "
            f"questions (difference {f1.mean:+.2f}, 95 % interval {f1.low:+.2f} to {f1.high:+.2f})"
        )
        if f1.low > 0:
            return "better", f"The tuned model answers better than its base: {scores}.{losses}"
        if f1.high < 0:
            return "worse", f"The tuned model answers worse than its base: {scores}.{losses} {_ADVICE}"
        return "no_better", (
            f"The tuned model's answers are no better than its base's, as far as chance allows to tell: "
            f"{scores}.{losses} {_ADVICE}"
        )
    if loss is None:
        return "unproven", NOTHING_HELD_OUT
    few = f" Only {answers} answers were compared, too few to judge by." if answers else " No answers were compared."
    if loss.high < 0:
        return "better", f"The tuned model finds the held-out answers likelier than its base does.{losses}{few}"
    if loss.low > 0:
        return (
            "worse",
            f"The tuned model finds the held-out answers less likely than its base does.{losses}{few} {_ADVICE}",
        )
    return "no_better", f"The tuned model is no better than its base on held-out examples.{losses}{few} {_ADVICE}"


def _losses(figures: Mapping[str, Mapping[str, float | None]], difference: Difference | None) -> str:
    base, tuned = figures["base"]["loss"], figures["tuned"]["loss"]
    if base is None or tuned is None or difference is None:
        return ""
    sure = "" if difference.high < 0 or difference.low > 0 else ", which may be chance"
    change = "fell" if tuned < base else "rose"
    return f" The loss {change} from {base:.3f} to {tuned:.3f}{sure}."


def _of_preferred_answers(figures: Mapping[str, Mapping[str, float | None]], difference: Difference | None) -> str:
    """Training on preferences may make both answers less likely: that is said, and decides nothing."""
    told = _losses(figures, difference)
    return told.replace(" The loss ", " The loss of the preferred answers ", 1)


def _by_document(
    losses: Sequence[Mapping[str, Any]], scored: Sequence[Scored], documents: Sequence[Document]
) -> list[dict[str, Any]]:
    """Those with the most examples first."""
    rows: dict[Document, list[Mapping[str, Any]]] = defaultdict(list)
    answers: dict[Document, list[Scored]] = defaultdict(list)
    for item in losses:
        rows[_document(documents, item["index"])].append(item)
    for sample in scored:
        answers[_document(documents, sample["index"])].append(sample)
    found = []
    for document in sorted(rows.keys() | answers.keys(), key=lambda item: (-len(rows[item]), item.name or "~")):
        tokens = sum(item["tokens"] for item in rows[document])
        given = answers[document]
        entry: dict[str, Any] = {**asdict(document), "examples": len(rows[document]), "answers": len(given)}
        for model in _MODELS:
            total = sum(item[model] for item in rows[document])
            entry[f"loss_{model}"] = round(total / tokens, 4) if tokens else None
            entry[f"f1_{model}"] = round(fmean(item[f"f1_{model}"] for item in given), 4) if given else None
        found.append(entry)
    return found[:_MOST_DOCUMENTS]


def _document(documents: Sequence[Document], index: int) -> Document:
    return documents[index] if index < len(documents) else Document(None, None)


def _rounded(difference: Difference | None) -> dict[str, float] | None:
    return {name: round(value, 4) for name, value in asdict(difference).items()} if difference is not None else None


_ADVICE = "More or cleaner examples, fewer epochs or a lower learning rate may help."
