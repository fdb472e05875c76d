"""Engines that turn speech into text, behind one Protocol: faster-whisper, and openai-whisper on torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from backend.trainers.errors import BASE_MODEL_UNUSABLE, DEVICE_UNAVAILABLE, TrainerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE_RATE = 16_000
# HuggingFace's names of a Whisper model's tensors, part by part, and those of openai-whisper.
_NAMES = (
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("self_attn_layer_norm", "attn_ln"),
    ("encoder_attn", "cross_attn"),
    ("self_attn", "attn"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("final_layer_norm", "mlp_ln"),
    ("embed_positions.weight", "positional_embedding"),
    ("embed_tokens", "token_embedding"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
    ("layers", "blocks"),
)


class Spoken(NamedTuple):
    """Text with its start and end in seconds from the first sample."""

    start: float
    end: float
    text: str


class SpeechEngine(Protocol):
    """A loaded model."""

    def transcribe(self, samples: NDArray[np.float32], language: str | None) -> tuple[str, Iterator[Spoken]]:
        """What is said in `samples` (mono, 16 kHz, -1 to 1) piece by piece, and its language (ISO 639-1).

        `language` None: it is detected. Silence has no text.
        """
        ...


class FasterWhisper:
    """Whisper by CTranslate2, in int8 on a CPU and float16 on a GPU; silence is found and left out first."""

    def __init__(self, model: Path, *, device: str, threads: int) -> None:
        from faster_whisper import WhisperModel

        self._model = _loaded(
            model,
            lambda: WhisperModel(
                str(model),
                device=device,
                compute_type="float16" if device == "cuda" else "int8",
                cpu_threads=threads,
                local_files_only=True,
            ),
        )

    def transcribe(self, samples: NDArray[np.float32], language: str | None) -> tuple[str, Iterator[Spoken]]:
        segments, info = self._model.transcribe(
            samples, language=language, vad_filter=True, condition_on_previous_text=False
        )
        return info.language, (Spoken(item.start, item.end, item.text.strip()) for item in segments)


class OpenAIWhisper:
    """Whisper as OpenAI published it, on torch; its weights come from a safetensors file, never from a pickle."""

    def __init__(self, model: Path, *, device: str, threads: int) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise TrainerError(DEVICE_UNAVAILABLE, "There is no CUDA device here. Set TRANSCRIPTION_DEVICE=cpu.")
        if threads:
            torch.set_num_threads(threads)
        self._half = device == "cuda"
        self._model = _loaded(model, lambda: _read_openai(model).to(device))

    def transcribe(self, samples: NDArray[np.float32], language: str | None) -> tuple[str, Iterator[Spoken]]:
        from whisper.transcribe import transcribe

        # It knows no silence and makes up words for it.
        if np.abs(samples).max(initial=0.0) < 0.003:
            return language or "en", iter(())
        found = transcribe(
            self._model, samples, language=language, fp16=self._half, condition_on_previous_text=False, verbose=None
        )
        spoken = [Spoken(item["start"], item["end"], item["text"].strip()) for item in found["segments"]]
        return str(found["language"]), iter([item for item in spoken if item.text])


ENGINES: dict[str, type[FasterWhisper] | type[OpenAIWhisper]] = {
    "faster-whisper": FasterWhisper,
    "openai-whisper": OpenAIWhisper,
}


def _loaded(model: Path, load: Any) -> Any:
    try:
        return load()
    except TrainerError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        words = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        message = f"The Whisper model in {model.name} cannot be loaded ({words}). Set WHISPER_MODEL to another one."
        raise TrainerError(BASE_MODEL_UNUSABLE, message) from error


def _read_openai(folder: Path) -> Any:
    """A model in HuggingFace's layout (config.json, model.safetensors) as openai-whisper's own class."""
    from safetensors.torch import load_file
    from whisper.model import ModelDimensions, Whisper

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Whisper(
        ModelDimensions(
            n_mels=config["num_mel_bins"],
            n_audio_ctx=config["max_source_positions"],
            n_audio_state=config["d_model"],
            n_audio_head=config["encoder_attention_heads"],
            n_audio_layer=config["encoder_layers"],
            n_vocab=config["vocab_size"],
            n_text_ctx=config["max_target_positions"],
            n_text_state=config["d_model"],
            n_text_head=config["decoder_attention_heads"],
            n_text_layer=config["decoder_layers"],
        )
    )
    tensors = load_file(folder / "model.safetensors")
    # The output layer is the embedding turned around, and is not stored twice.
    weights = {_openai_name(name): tensor for name, tensor in tensors.items() if not name.startswith("proj_out")}
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return model.eval()


def _openai_name(name: str) -> str:
    name = name.removeprefix("model.")
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name
