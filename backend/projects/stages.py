"""The stages of a project's pipeline, as the studio face shows them."""

from enum import StrEnum


class Stage(StrEnum):
    DRAFT = "draft"  # nothing in it yet
    READY = "ready"  # has contents
    CHUNKING = "chunking"
    CHUNKED = "chunked"
    GENERATING = "generating"
    DATASET_READY = "dataset_ready"
    TRAINING = "training"
    TRAINED = "trained"
    ERROR = "error"  # the last step failed; the job says why
