"""What can go wrong with training, evaluation and export."""

from typing import Any

from backend.kit.errors import Conflict, DomainError, NotFound


class TrainingAlreadyRunning(Conflict):
    code = "TRAINING_ALREADY_RUNNING"
    template = "A training job is already running for this project"
    advice = "Wait for it to end, or stop it with POST /projects/{project_id}/train/cancel."


class NoTrainingRun(NotFound):
    code = "NO_TRAINING_RUN"
    template = "The project has no training run yet. Start one with POST /projects/{project_id}/train/start."


class NoTrainingRunning(Conflict):
    code = "NO_TRAINING_RUNNING"
    template = "No training job is running for this project; there is nothing to cancel."


class NoBaseModel(DomainError):
    code = "NO_BASE_MODEL"
    template = "Choose a base model first with POST /projects/{project_id}/model/resolve."


class BaseModelNotTrainable(DomainError):
    code = "MODEL_NOT_TRAINABLE"
    template = "'{model_id}' cannot be fine-tuned here: {reasons} Choose another base model."


class BadHyperparameter(DomainError):
    code = "BAD_HYPERPARAMETER"
    template = "{problem} Accepted hyperparameters: {accepted}."


class TrainerFailed(DomainError):
    """The trainer reported an error; code and sentence are its own."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class TrainerKilled(DomainError):
    """The trainer ended without a word: killed, most likely for its memory. The next attempt resumes."""

    code = "TRAINER_KILLED"
    retryable = True
    template = (
        "The trainer was killed (exit {exit_code}), most likely for lack of memory. "
        "Use a smaller per_device_batch_size or max_seq_length, method qlora, or a smaller base model."
    )


class TrainerKeepsBeingKilled(TrainerKilled):
    code = "TRAINER_KILLED"
    retryable = False


class RunFolderBusy(DomainError):
    """The trainer of an attempt that was lost is still saving; it ends by itself within seconds."""

    code = "RUN_FOLDER_BUSY"
    retryable = True
    template = "Another attempt of this run is still ending."


class NothingToExport(DomainError):
    code = "NOTHING_TO_EXPORT"
    template = "The project has no completed training run. Train first with POST /projects/{project_id}/train/start."


class ExportNotFound(NotFound):
    code = "EXPORT_NOT_FOUND"

    def __init__(self, filename: str, **context: Any) -> None:
        detail = (
            f"There is no export file '{filename}'. Make the export with POST /projects/{{project_id}}/export first."
        )
        super().__init__(detail, **context)
