"""What an evaluation found so far, on disk line by line, so that a killed one goes on instead of starting again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from backend.trainers.config import EvaluateConfig, Variant


class Notes:
    """`losses` by (variant, example), summed over the labelled tokens; `answers` by example; `seconds` of answering.

    `pairs` by (variant, pair): the summed losses of its preferred and of its rejected answer.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.losses: dict[tuple[Variant, int], float] = {}
        self.answers: dict[int, dict[str, str]] = {}
        self.pairs: dict[tuple[Variant, int], tuple[float, float]] = {}
        self.seconds = 0.0
        self._path = path
        self._fingerprint = fingerprint
        self._file: TextIO | None = None

    @classmethod
    def of(cls, config: EvaluateConfig) -> Notes:
        """Those of the same models and examples; notes of others are thrown away."""
        digest = hashlib.sha256()
        weights = sorted(config.adapter.glob("*.safetensors"))
        files = [config.eval_file, *([config.pairs_file] if config.pairs_file is not None else [])]
        for path in (*weights, *files, config.base_model / "config.json"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        digest.update(f"{config.max_seq_length} {config.max_new_tokens} {config.load_in_4bit}".encode())
        digest.update(config.long_examples.encode())
        return cls(config.output_file.with_suffix(".notes"), digest.hexdigest())

    def __enter__(self) -> Notes:
        lines = self._read()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Written anew: the last line of a killed process may be torn.
        self._file = self._path.open("w", encoding="utf-8")
        self._write({"fingerprint": self._fingerprint})
        for line in lines:
            self._take(line)
            self._write(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add_losses(self, variant: Variant, losses: dict[int, float]) -> None:
        self._keep({"variant": variant, "losses": [[number, loss] for number, loss in losses.items()]})

    def add_pairs(self, variant: Variant, pairs: dict[int, tuple[float, float]]) -> None:
        self._keep({"variant": variant, "pairs": [[number, *losses] for number, losses in pairs.items()]})

    def add_answers(self, answers: dict[int, dict[str, str]], seconds: float) -> None:
        self._keep({"answers": [[number, pair] for number, pair in answers.items()], "seconds": seconds})

    def _keep(self, line: dict[str, Any]) -> None:
        self._take(line)
        self._write(line)

    def _take(self, line: dict[str, Any]) -> None:
        for number, loss in line.get("losses", []):
            self.losses[line["variant"], number] = loss
        for number, preferred, rejected in line.get("pairs", []):
            self.pairs[line["variant"], number] = preferred, rejected
        for number, pair in line.get("answers", []):
            self.answers[number] = pair
        self.seconds += line.get("seconds", 0.0)

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None, "notes are open within a with block"
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self) -> list[dict[str, Any]]:
        try:
            texts = self._path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return []
        lines = []
        for text in texts:
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        same = bool(lines) and lines[0] == {"fingerprint": self._fingerprint}
        return lines[1:] if same else []
