"""What each method of training on our own workers asks of its input, looked at before there is a job."""

from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets import versions
from backend.datasets.models import DatasetVersion
from backend.projects.models import Project
from backend.providers.base_models import ModelLibrary
from backend.training import hyperparams
from backend.training.errors import (
    BadHyperparameter,
    BaseModelNotTrainable,
    ModelTooLarge,
    NothingRatedYet,
    TooFewPreferences,
)

PREFERENCES: Final = "dpo"
WHOLE_MODEL: Final = "full"
# As trainers/arguments.py has it: weights, gradients and both moments of AdamW in 32 bits are 16 GB.
WHOLE_MODEL_PARAMETERS: Final = 1_000_000_000
LEAST_PREFERENCES: Final = 2
NOTHING_HELD_OUT: Final = (
    "There are no held-out examples: the run cannot stop early, cannot choose its best weights, and its last ones are "
    "delivered."
)
NO_HELD_OUT_PREFERENCES: Final = (
    "No held-out example has a rejected answer: the run cannot stop early or choose its best weights, and nothing will "
    "prove that the model prefers better answers. Rate answers to held-out questions as well."
)


def settings_of(method: str, given: dict[str, Any], project: Project) -> dict[str, Any]:
    """All hyperparameters, with the method's defaults and the project's. Raises BadHyperparameter.

    `n_epochs`, the name that providers have, is taken as well.
    """
    if "n_epochs" in given:
        if "num_epochs" in given:
            accepted = ", ".join(hyperparams.NAMES)
            raise BadHyperparameter(problem="n_epochs and num_epochs are the same; give one.", accepted=accepted)
        given = {("num_epochs" if name == "n_epochs" else name): value for name, value in given.items()}
    return hyperparams.complete(given, method=method, max_seq_length=project.config.get("max_seq_length"))


async def require_base(library: ModelLibrary, project: Project, model: str, method: str) -> None:
    """Raises BaseModelNotTrainable, ModelTooLarge, ModelIdInvalid. What only the Hub knows is found out by the job."""
    if project.base_model_id == model and project.model_info is not None:
        info = project.model_info
        valid, reasons = info.get("valid", True), info.get("warnings", [])
        parameters = info.get("num_parameters_exact") or info.get("num_parameters")
    elif library.is_on_disk(model):
        facts = await library.resolve(model)
        valid, reasons, parameters = facts.trainable, facts.warnings, facts.num_parameters
    else:
        return
    if not valid:
        raise BaseModelNotTrainable(model_id=model, reasons=" ".join(reasons))
    if method == WHOLE_MODEL and parameters is not None and parameters > WHOLE_MODEL_PARAMETERS:
        raise ModelTooLarge(model_id=model, billions=parameters / 1e9)


async def require_preferences(session: AsyncSession, method: str, version: DatasetVersion) -> list[str]:
    """For training on preferences: what should be known about the rated pairs. Raises TooFewPreferences."""
    if method != PREFERENCES:
        return []
    counted = await versions.count_preferences(session, version)
    if counted["train"] < LEAST_PREFERENCES:
        raise TooFewPreferences(least=LEAST_PREFERENCES, pairs=counted["train"])
    return [] if counted["eval"] else [NO_HELD_OUT_PREFERENCES]


def nothing_held_out(method: str) -> str:
    """What a run says whose method has nothing to look at beside the training examples."""
    return NO_HELD_OUT_PREFERENCES if method == PREFERENCES else NOTHING_HELD_OUT


def require_rateable(method: str) -> None:
    """Of a run on a dataset that is still to be made, where nobody can have rated anything. Raises NothingRatedYet."""
    if method == PREFERENCES:
        raise NothingRatedYet()
