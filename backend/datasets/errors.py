"""What can go wrong with datasets."""

from backend.kit.errors import Conflict, DomainError, NotFound


class ExampleNotFound(NotFound):
    code = "EXAMPLE_NOT_FOUND"
    template = "There is no such example in this project's dataset."


class VersionNotFound(NotFound):
    code = "VERSION_NOT_FOUND"
    template = (
        "The dataset has no version {number}. GET /projects/{{project_id}}/dataset/versions lists those that it has."
    )


class DatasetNotFound(NotFound):
    code = "DATASET_NOT_FOUND"
    template = (
        "There is no such dataset in this project. GET /projects/{{project_id}}/dataset/versions names those "
        "that have versions."
    )


class UnknownDataset(NotFound):
    code = "DATASET_NOT_FOUND"
    template = "There is no such dataset. GET /api/datasets lists yours."


class PairNotFound(NotFound):
    code = "PAIR_NOT_FOUND"
    template = "There is no such pair in this dataset. GET /api/datasets/{{dataset_id}}/pairs lists those that it has."


class DuplicatePair(Conflict):
    code = "DUPLICATE_PAIR"
    template = "The dataset has this question with this answer already, as pair {duplicate_of}. Change one of the two."


class SameAnswers(DomainError):
    code = "SAME_ANSWERS"
    template = (
        "The rejected answer is the same as the preferred one, so nothing can be learned from the two. "
        "Change one of them, or leave the rejected one out."
    )


class PairRefused(DomainError):
    code = "PAIR_REFUSED"
    template = "The pair cannot be kept: {reason}"


class DatasetFailed(Conflict):
    code = "DATASET_FAILED"
    template = "Making this dataset failed, so it takes no pairs. Make another with POST /api/datasets."


class DatasetInUse(Conflict):
    code = "DATASET_IN_USE"
    template = "The dataset cannot be deleted: {reason}"


class ContentNotReady(DomainError):
    code = "CONTENT_NOT_READY"
    template = (
        "These contents could not be read and have no text: {content_ids}. "
        "Their error_message says why; leave them out or replace them."
    )


class ContentNotADocument(DomainError):
    code = "CONTENT_NOT_A_DOCUMENT"
    template = (
        "These contents are uploaded datasets, whose rows are imported as they are: {content_ids}. "
        "Name documents, pages or videos."
    )


class ContentsPending(DomainError):
    """For a job that waits for them: it is tried again later."""

    code = "CONTENT_NOT_READY"
    retryable = True
    template = "{count} of the contents are still being read. Give them time, or make the dataset without them."


class ExportLimits(DomainError):
    code = "EXPORT_LIMITS"
    template = "{provider} would not take this file. {broken}"


class ExportShape(DomainError):
    code = "EXPORT_SHAPE"
    template = "A provider's file is always jsonl: leave `format` out. `model` goes with a `provider` only."


class PreviewHasNoSplit(DomainError):
    code = "PREVIEW_HAS_NO_SPLIT"
    template = (
        "A preview example is only a sample and belongs to no split. "
        "Make the dataset with POST /projects/{{project_id}}/dataset/generate, and move its examples."
    )


class NoChunks(DomainError):
    code = "NO_CHUNKS"
    template = "The project has no chunks. Make them with POST /projects/{project_id}/chunks/generate first."


class NoDataset(DomainError):
    code = "NO_DATASET"
    template = (
        "The project has no finished dataset with training examples. "
        "Make one with POST /projects/{project_id}/dataset/generate first."
    )


class NoModelForGeneration(DomainError):
    status = 503
    code = "LLM_NOT_CONFIGURED"
    template = (
        "No language model is configured for generation. Set LLM_BASE_URL and LLM_MODEL, or name a model of a provider "
        "that you have a key of, such as anthropic/MODEL, and start again."
    )


class NothingGenerated(DomainError):
    code = "NOTHING_GENERATED"
    template = (
        "The model wrote no usable example from {chunks} chunks. Try a stronger model (LLM_BASE_URL and LLM_MODEL), "
        "or documents with more running text."
    )
