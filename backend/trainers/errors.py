"""Failures of a trainer that its user can act on, and the mapping from library exceptions to them."""

from __future__ import annotations

OUT_OF_MEMORY = "OUT_OF_MEMORY"
BASE_MODEL_UNUSABLE = "BASE_MODEL_UNUSABLE"
ADAPTER_UNUSABLE = "ADAPTER_UNUSABLE"
DATASET_UNUSABLE = "DATASET_UNUSABLE"
DATASET_TOO_LONG = "DATASET_TOO_LONG"
DEVICE_UNAVAILABLE = "DEVICE_UNAVAILABLE"
EXPORT_DRIFTED = "EXPORT_DRIFTED"
EXPORT_UNSUPPORTED = "EXPORT_UNSUPPORTED"
INVALID_CONFIG = "INVALID_CONFIG"
PROMPT_REFUSED = "PROMPT_REFUSED"
RUN_FOLDER_BUSY = "RUN_FOLDER_BUSY"
RUN_FOLDER_MISMATCH = "RUN_FOLDER_MISMATCH"
TRAINING_DIVERGED = "TRAINING_DIVERGED"
TRAINING_FAILED = "TRAINING_FAILED"

_CPU_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    # What oneDNN, which multiplies on CPUs, says of its own scratch space.
    "could not create a primitive",
    "could not create a memory",
)
_CUDA_OUT_OF_MEMORY = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class TrainerError(Exception):
    """A failure with a stable code and a sentence that tells the user what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cancelled(BaseException):
    """A signal asked the process to stop; not an Exception, so that no library swallows it."""


def from_exception(error: BaseException) -> TrainerError:
    """Map any exception to the error that is reported; unknown ones become TRAINING_FAILED with their own words."""
    if isinstance(error, TrainerError):
        return error
    text = str(error)
    # torch.OutOfMemoryError is recognised by name: this module must load before torch does.
    if type(error).__name__ == "OutOfMemoryError" or any(part in text for part in _CUDA_OUT_OF_MEMORY):
        return TrainerError(OUT_OF_MEMORY, f"The GPU ran out of memory. {_MEMORY_ADVICE}")
    if isinstance(error, MemoryError) or any(part in text for part in _CPU_OUT_OF_MEMORY):
        return TrainerError(OUT_OF_MEMORY, f"The machine ran out of memory. {_MEMORY_ADVICE}")
    if isinstance(error, OSError) and error.errno == 28:
        return TrainerError(TRAINING_FAILED, "The disk is full. Free some space, then start the run again: it resumes.")
    # By name as well: a chat template raises it for a system message that it has no place for, or turns out of order.
    if any(kind.__name__ == "TemplateError" for kind in type(error).__mro__):
        return prompt_refused(error)
    first_line = text.strip().splitlines()[0][:300] if text.strip() else "no details"
    return TrainerError(
        TRAINING_FAILED, f"Stopped by {type(error).__name__}: {first_line}. The worker's log holds the full trace."
    )


def prompt_refused(error: BaseException) -> TrainerError:
    """Of a chat template's own error: what it says of the messages, and what to do."""
    reason = str(error).strip().rstrip(".") or type(error).__name__
    return TrainerError(
        PROMPT_REFUSED,
        f"The model's chat template does not take these messages ({reason[:200]}). Let user and assistant take "
        "turns, and put instructions into the first question instead of a system message.",
    )


_MEMORY_ADVICE = (
    "Lower per_device_batch_size (and raise gradient_accumulation_steps by the same factor), lower max_seq_length, use "
    "the method qlora, or choose a smaller base model."
)
