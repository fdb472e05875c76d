"""Where the Whisper model of an engine lies: a folder of this machine, or the HuggingFace Hub, fetched at first use."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backend.kit.errors import DomainError
from backend.providers.base_models import ModelLibrary, Progress
from backend.providers.errors import (
    HubTokenRefused,
    HubUnavailable,
    ModelIdInvalid,
    ModelNotFound,
    ModelNotTrainable,
)

_SIZES: Final = (
    "tiny tiny.en base base.en small small.en medium medium.en large-v1 large-v2 large-v3 large-v3-turbo".split()
)


@dataclass(frozen=True, slots=True)
class Engine:
    """`package` is imported by the child that runs it and comes with `extra`; `weights` must be in a model's folder."""

    name: str
    package: str
    extra: str
    weights: str
    files: frozenset[str]
    repositories: Mapping[str, str]


FASTER_WHISPER: Final = Engine(
    name="faster-whisper",
    package="faster_whisper",
    extra="speech",
    weights="model.bin",
    files=frozenset(
        {
            "config.json",
            "preprocessor_config.json",
            "model.bin",
            "tokenizer.json",
            "vocabulary.txt",
            "vocabulary.json",
        }
    ),
    repositories={size: f"Systran/faster-whisper-{size}" for size in _SIZES}
    | {"large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo"},
)
OPENAI_WHISPER: Final = Engine(
    name="openai-whisper",
    package="whisper",
    extra="whisper",
    weights="model.safetensors",
    files=frozenset({"config.json", "model.safetensors"}),
    repositories={size: f"openai/whisper-{size}" for size in _SIZES},
)
ENGINES: Final = {engine.name: engine for engine in (FASTER_WHISPER, OPENAI_WHISPER)}


class TranscriptionModelMissing(DomainError):
    """`reason` is a whole sentence."""

    status = 503
    code = "TRANSCRIPTION_MODEL_MISSING"
    template = (
        "The Whisper model '{model}' is not here. {reason} Set WHISPER_MODEL to the folder of a model for {engine}, or "
        "put one into MODELS_DIR/{model}; or upload the transcript as a text file."
    )


def is_installed(engine: Engine) -> bool:
    """With what decodes recordings; without importing it, which would take seconds."""
    return all(importlib.util.find_spec(name) is not None for name in (engine.package, "av"))


def folder_on_disk(engine: Engine, name: str, models_dir: Path) -> Path | None:
    """The folder that WHISPER_MODEL names: by its path, or by its name in `models_dir`."""
    own = Path(name).expanduser()
    folder = own if own.is_absolute() else models_dir / name
    return folder if (folder / engine.weights).is_file() and (folder / "config.json").is_file() else None


async def ensure_model(
    engine: Engine, name: str, models_dir: Path, library: ModelLibrary, on_progress: Progress
) -> Path:
    """The model's folder. `name` is a size (`base`), a folder, or a model of the Hub.

    Raises TranscriptionModelMissing, NotEnoughDisk, DownloadDamaged. A later call goes on with a download that was
    cancelled.
    """
    if (folder := folder_on_disk(engine, name, models_dir)) is not None:
        return folder
    repository = engine.repositories.get(name, name)
    if Path(name).expanduser().is_absolute() or "/" not in repository:
        reason = f"There is no folder of that name with {engine.weights} in it."
        raise TranscriptionModelMissing(model=name, engine=engine.name, reason=reason)
    try:
        folder = await library.ensure_files(repository, engine.files, on_progress)
    except (HubUnavailable, HubTokenRefused) as error:
        reason = "The HuggingFace Hub, where it would be downloaded, cannot be reached."
        raise TranscriptionModelMissing(model=name, engine=engine.name, reason=reason) from error
    except (ModelNotFound, ModelIdInvalid, ModelNotTrainable) as error:
        reason = f"The HuggingFace Hub does not give out {repository}."
        raise TranscriptionModelMissing(model=name, engine=engine.name, reason=reason) from error
    if not (folder / engine.weights).is_file():
        reason = f"{repository} has no {engine.weights}: it is a model for another engine."
        raise TranscriptionModelMissing(model=name, engine=engine.name, reason=reason)
    return folder
