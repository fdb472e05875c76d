"""How far an exported model drifts from the one that was trained, over the same prompts, and when that is too far.

A probe is a prompt with the answer that base plus adapter give, and for each token of the answer the likeliest
tokens there. An export is walked along the same answer and must find the same tokens about as likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backend.trainers.errors import EXPORT_DRIFTED, TrainerError

# (token, log-probability), the likeliest first.
Top = list[tuple[int, float]]


@dataclass(frozen=True)
class Probe:
    """`reference` holds, for each of `answer_ids`, the tokens that were likeliest in its place; the first is it."""

    messages: list[dict[str, str]]
    prompt: str
    prompt_ids: list[int]
    answer_ids: list[int]
    reference: list[Top]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Probe:
        reference = [[(int(token), float(value)) for token, value in top] for top in found["reference"]]
        return cls(**{**found, "reference": reference})


@dataclass(frozen=True)
class Limits:
    """The least share of places with the same choice, and the largest mean difference of log-probabilities."""

    agreement: float
    logprob_drift: float
    # Tokens about as likely as the best one in the reference are as good a choice.
    tie: float


LIMITS = {
    "merged": Limits(agreement=0.97, logprob_drift=0.03, tie=0.05),
    "gguf-f16": Limits(agreement=0.97, logprob_drift=0.03, tie=0.05),
    "gguf-q8_0": Limits(agreement=0.94, logprob_drift=0.1, tie=0.2),
}


@dataclass(frozen=True)
class Drift:
    """`prompts_equal`: the share of prompts that the export's own tokenizer and template make the same; None unknown.

    `logprob_drift`, `largest_drift`: mean and largest difference of the log-probability of the answer's tokens.
    """

    places: int
    agreement: float
    logprob_drift: float
    largest_drift: float
    prompts_equal: float | None = None


def drift(
    probes: Sequence[Probe], found: Sequence[Sequence[Top]], *, tie: float, prompts_equal: float | None = None
) -> Drift:
    """Compare what an export `found` in each place of each probe's answer.

    A token that it does not name counts as its last one; a place of which it says nothing is left out.
    """
    same, gaps = 0, []
    for probe, tops in zip(probes, found, strict=True):
        for token, reference, top in zip(probe.answer_ids, probe.reference, tops, strict=True):
            if not top:
                continue
            known = dict(reference)
            best = known[token]
            same += known.get(top[0][0], -float("inf")) >= best - tie
            gaps.append(abs(dict(top).get(token, top[-1][1]) - best))
    if 2 * len(gaps) < sum(len(probe.answer_ids) for probe in probes):
        return Drift(len(gaps), 0.0, float("inf"), float("inf"), prompts_equal)
    # A value that is no number is no agreement.
    gaps = [gap if gap == gap else float("inf") for gap in gaps]
    return Drift(
        places=len(gaps),
        agreement=same / len(gaps),
        logprob_drift=sum(gaps) / len(gaps),
        largest_drift=max(gaps),
        prompts_equal=prompts_equal,
    )


def require_same(kind: str, found: Drift) -> None:
    """Raise TrainerError EXPORT_DRIFTED, with what was measured, when an export computes something else."""
    limits = LIMITS[kind]
    if found.prompts_equal is not None and found.prompts_equal < 1:
        raise TrainerError(
            EXPORT_DRIFTED,
            f"The export '{kind}' was refused: its tokenizer or chat template writes {1 - found.prompts_equal:.0%} of "
            "the prompts otherwise than training did. Export the formats adapter and merged instead.",
        )
    if found.agreement >= limits.agreement and found.logprob_drift <= limits.logprob_drift:
        return
    raise TrainerError(
        EXPORT_DRIFTED,
        f"The export '{kind}' was refused: it chooses the same token in {found.agreement:.1%} of {found.places} places "
        f"(at least {limits.agreement:.0%}), and its log-probabilities differ by {found.logprob_drift:.3f} on average "
        f"(at most {limits.logprob_drift}). Export the adapter itself, or another format.",
    )
