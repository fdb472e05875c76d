"""What can go wrong with datasets."""

from backend.kit.errors import Conflict, DomainError, NotFound


class ExampleNotFound(NotFound):
    code = "EXAMPLE_NOT_FOUND"
    template = "There is no such example in this project's dataset."


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
    template = "No language model is configured for generation. Set LLM_BASE_URL and LLM_MODEL and start again."


class NothingGenerated(DomainError):
    code = "NOTHING_GENERATED"
    template = (
        "The model wrote no usable example from {chunks} chunks. Try a stronger model (LLM_BASE_URL and LLM_MODEL), "
        "or documents with more running text."
    )


class DatasetInUse(Conflict):
    code = "DATASET_IN_USE"
    template = "A training run is using this dataset. Wait for it to end, or cancel it, before you change its examples."
