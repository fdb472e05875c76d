"""The evaluation of a run as both faces show it."""

from typing import Any, Literal

from pydantic import BaseModel

from backend.training import evaluation
from backend.training.models import FineTuning


class FiguresOut(BaseModel):
    """Of one model. Loss and perplexity over all held-out examples; F1 and exact answers over the answered ones."""

    loss: float | None
    perplexity: float | None
    token_f1: float | None
    exact_match: float | None


class DifferenceOut(BaseModel):
    """Tuned minus base, with the bounds of the 95 % interval."""

    mean: float
    low: float
    high: float


class DocumentOut(BaseModel):
    """The held-out examples that come from one document."""

    id: str | None
    name: str | None
    examples: int
    answers: int
    loss_base: float | None
    loss_tuned: float | None
    f1_base: float | None
    f1_tuned: float | None


class JudgeOut(BaseModel):
    model: str
    judged: int
    tuned_wins: int
    base_wins: int
    ties: int
    unjudged: int
    sentence: str


class PreferencesOut(BaseModel):
    """Of held-out pairs: how often each model finds the preferred answer likelier, and by how much training moved it.

    `reward_margin`: beta times what the log-probability of the preferred answer gained more than that of the rejected.
    `reward_accuracy`: the share of pairs where it did.
    """

    pairs: int
    pairs_skipped: int
    accuracy_base: float
    accuracy_tuned: float
    reward_accuracy: float
    reward_margin: DifferenceOut


class AnswerOut(BaseModel):
    question: str
    document: str | None
    expected: str
    base: str
    tuned: str
    f1_base: float
    f1_tuned: float
    exact_base: bool
    exact_tuned: bool


class EvaluationOut(BaseModel):
    """`unproven` when nothing was held out, or the run is not over; the sentence says which."""

    verdict: Literal["better", "no_better", "worse", "unproven"]
    sentence: str
    examples: int
    examples_skipped: int = 0
    questions_asked: int = 0
    answers_cut_by_time: bool = False
    base: FiguresOut | None = None
    tuned: FiguresOut | None = None
    f1_difference: DifferenceOut | None = None
    loss_difference: DifferenceOut | None = None
    # Of a run on preferences that had some to look at.
    preferences: PreferencesOut | None = None
    documents: list[DocumentOut]
    judge: JudgeOut | None
    answers: list[AnswerOut]


def evaluation_out(run: FineTuning, answers: list[dict[str, Any]]) -> EvaluationOut:
    return EvaluationOut(**{**evaluation.summary_of(run), "answers": answers})
