"""What can go wrong with training, evaluation and export."""

from types import MappingProxyType

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


class ModelTooLarge(DomainError):
    code = "MODEL_TOO_LARGE"
    template = (
        "The method full trains all weights of models with up to 1B parameters, and '{model_id}' has {billions:.1f}B. "
        "Use lora or qlora, or choose a smaller base model."
    )


class DoesNotFit(DomainError):
    code = "DOES_NOT_FIT"
    template = (
        "'{model_id}' with the method {method} needs at least {needed_gb:.1f} GB of memory, and the largest worker has "
        "{usable_gb:.1f} GB for it ({device}). {remedy}"
    )


class WorkerTooSmall(DomainError):
    """Another worker has room: the job goes back to the queue."""

    code = "WORKER_TOO_SMALL"
    retryable = True
    # The other one may be at work for hours.
    costs_attempt = False
    template = (
        "This worker has {usable_gb:.1f} GB for the run, which needs {needed_gb:.1f} GB. Another one has enough, and "
        "may take it next."
    )


class TooFewPreferences(DomainError):
    code = "TOO_FEW_PREFERENCES"
    template = (
        "The method dpo learns from examples with a preferred and a rejected answer. It needs {least} of them to train "
        "on, and the dataset has {pairs}. Rate answers (POST to the dataset's preferences), give examples a `rejected` "
        "answer, or upload rows with prompt, chosen and rejected."
    )


class NothingRatedYet(TooFewPreferences):
    template = (
        "The method dpo learns from rated answers, and here a new dataset is made, of which nobody has rated any. Use "
        "lora, qlora or full; rate answers with POST /api/datasets/{{dataset_id}}/preferences, and then train on them "
        "with POST /api/fine-tunings."
    )


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


class NoEvaluation(NotFound):
    code = "NO_EVALUATION"
    template = "The run has no evaluated answers: only local runs that completed with held-out examples have some."


class NoJudge(DomainError):
    code = "NO_JUDGE"
    template = "No model judges answers here. Set LLM_BASE_URL and LLM_JUDGE_MODEL."


class ExportNoSpace(DomainError):
    status = 507
    code = "EXPORT_NO_SPACE"
    template = (
        "The export needs {needed_gb:.1f} GB of disk, and {free_gb:.1f} GB are free. Choose fewer formats (gguf-q8_0 "
        "is the smallest model), or free some space."
    )


class ExportNotFound(NotFound):
    code = "EXPORT_NOT_FOUND"
    template = "There is no export file '{filename}'. Make the export with POST /projects/{{project_id}}/export first."

    def __init__(self, filename: str) -> None:
        super().__init__(filename=filename)


class FineTuningNotFound(NotFound):
    code = "FINE_TUNING_NOT_FOUND"
    template = "There is no such fine-tuning. GET /api/fine-tunings lists yours."


class DatasetNotReady(DomainError):
    code = "DATASET_NOT_READY"
    template = "Dataset {dataset_id} cannot be trained on yet: it is '{state}'. Wait until it is 'ready'."


class DatasetTooSmall(DomainError):
    code = "DATASET_TOO_SMALL"
    template = (
        "{provider} takes no fewer than {least} training examples, and the dataset has {examples}. Add pairs first."
    )


class DatasetTooLarge(DomainError):
    code = "DATASET_TOO_LARGE"
    template = (
        "{provider} takes no more than {most} training examples, and the dataset has {examples}. "
        "Remove some, or train elsewhere."
    )


class FineTuningEnded(Conflict):
    code = "FINE_TUNING_ENDED"
    template = "The fine-tuning is over ({state}); there is nothing to cancel."


class FineTuningStillEnding(Conflict):
    code = "FINE_TUNING_STILL_ENDING"
    template = "The fine-tuning is being cancelled first. Delete it again once its status is no longer changing."


class FineTuningNotFinished(DomainError):
    code = "FINE_TUNING_NOT_FINISHED"
    template = "The fine-tuning has no model to ask: it is '{state}'. Wait until it is 'completed'."


class NoAnswerInTime(DomainError):
    status = 503
    code = "PLAYGROUND_TIMEOUT"
    template = "The model gave no answer within {seconds:g} seconds. Other work may be in front of it: try again later."


class AnswerFailed(DomainError):
    """The job that asked the model failed; code and sentence are its own."""

    status = 503
    code = "PLAYGROUND_FAILED"
    template = "The model could not be asked: {reason}"


class TooManyQuestions(DomainError):
    status = 429
    code = "TOO_MANY_QUESTIONS"
    template = "You have {limit} questions under way already. Wait for an answer, then ask the next one."
    headers = MappingProxyType({"Retry-After": "2"})


class ServingBusy(DomainError):
    status = 503
    code = "SERVING_BUSY"
    template = "Too many questions are waiting for the models. Try again in some seconds."
    headers = MappingProxyType({"Retry-After": "5"})


class NoServingHost(DomainError):
    status = 503
    code = "SERVING_NOT_RUNNING"
    template = "Nobody is there to answer with local models. Start `finetuneflow serve` on a machine that trains."


class VllmTakesAdapters(NoServingHost):
    template = (
        "The run trained all weights, and VLLM_BASE_URL is asked for adapters only. Start `finetuneflow serve` on a "
        "machine that trains, which answers with whole models."
    )


class ServingInterrupted(DomainError):
    status = 503
    code = "SERVING_INTERRUPTED"
    template = "The process that was answering ended in the middle. Ask again."


class PromptTooLong(DomainError):
    code = "PROMPT_TOO_LONG"
    template = "The messages are longer than what the model takes together with its answer. Shorten them."


class PromptRefused(DomainError):
    """The model's chat template does not take the messages; the sentence is the trainer's own."""

    code = "PROMPT_REFUSED"
    template = "The model's chat template does not take these messages."


class ParameterUnsupported(DomainError):
    code = "PARAMETER_UNSUPPORTED"
    template = "'{parameter}' is not supported {where}. Leave it out."

    def __init__(self, parameter: str, where: str = "here") -> None:
        super().__init__(parameter=parameter, where=where)


class ProviderJobFailed(DomainError):
    """The sentence is the provider's own, where it gives one."""

    code = "PROVIDER_JOB_FAILED"
    template = "{provider} says that the job failed: {words}"


class ProviderJobLost(DomainError):
    code = "PROVIDER_JOB_LOST"
    template = "{words} {provider} has no such job, so it can be started again."


class ProviderJobUnfollowed(DomainError):
    code = "PROVIDER_JOB_UNFOLLOWED"
    template = (
        "Asking {provider} failed {times} times in a row, and is given up. {words}. The job may still run there as "
        "{external_id}: look at it in your account."
    )


class ProviderJobUnsure(DomainError):
    code = "PROVIDER_JOB_UNSURE"
    template = (
        "Asking {provider} failed {times} times in a row, and is given up. {words}. Whether it took the job is not "
        "known: look at your account before you start it again."
    )


class ProviderKeyGone(DomainError):
    code = "PROVIDER_KEY_DELETED"
    template = (
        "Your key for {provider} was deleted while the job was there, so that it can no longer be followed. "
        "Look at it in your account at {provider}; for another run, add a key with POST /api/users/me/api-keys."
    )
