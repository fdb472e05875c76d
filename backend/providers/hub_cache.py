"""Models of the Hub kept on disk, one folder a revision: facts for offline use, and files that are whole or absent."""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.providers.errors import NotEnoughDisk
from backend.providers.folder_lock import try_lock
from backend.providers.huggingface import PART_SUFFIX, HubClient, HubFile, HubModel, Stopped

_RECORD = ".record.json"
_NEWEST = "newest.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_LOCK_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class HubRecord:
    """What the Hub said of one revision; `config` is its config.json, None when it has none."""

    model: HubModel
    config: dict[str, Any] | None
    stored_at: str


class HubCache:
    """`folder`/<organisation>--<name>/<revision>/ holds the record and the files.

    `disk_reserve_bytes` stay free whatever is downloaded.
    """

    def __init__(self, folder: Path, *, disk_reserve_bytes: int) -> None:
        self._folder = folder
        self._disk_reserve_bytes = disk_reserve_bytes

    def path(self, model_id: str, revision: str) -> Path:
        """The folder of one revision. Raises ValueError for a revision that is no plain name."""
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", revision):
            raise ValueError(f"{revision!r} is no revision")
        return self._folder / model_id.replace("/", "--") / revision

    def store(self, model_id: str, model: HubModel, config: dict[str, Any] | None) -> HubRecord:
        """Keep a record and make it the newest one."""
        record = HubRecord(model, config, datetime.now(UTC).isoformat(timespec="seconds"))
        folder = self.path(model_id, model.revision)
        _write_json(folder / _RECORD, asdict(record))
        _write_json(folder.parent / _NEWEST, {"revision": model.revision})
        return record

    def find(self, model_id: str, revision: str | None = None) -> HubRecord | None:
        """The record of `revision`, or the newest one; None when there is none that can be read."""
        try:
            if revision is None:
                newest = self.path(model_id, "any").parent / _NEWEST
                revision = str(json.loads(newest.read_text(encoding="utf-8"))["revision"])
            data = json.loads((self.path(model_id, revision) / _RECORD).read_text(encoding="utf-8"))
            files = tuple(HubFile(**item) for item in data["model"].pop("files"))
            architectures = tuple(data["model"].pop("architectures"))
            model = HubModel(files=files, architectures=architectures, **data["model"])
            return HubRecord(model, data["config"], data["stored_at"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def missing(self, model_id: str, revision: str, files: list[HubFile]) -> list[HubFile]:
        """Those of `files` that are not on disk yet."""
        folder = self.path(model_id, revision)
        return [file for file in files if not (folder / file.name).is_file()]

    def fetch(
        self,
        hub: HubClient,
        model_id: str,
        revision: str,
        files: list[HubFile],
        *,
        report: Callable[[int, int], None],
        stop: Callable[[], bool],
    ) -> Path:
        """Download what is missing; blocks. `report` gets (bytes here, bytes in all). One process at a time does it.

        Raises NotEnoughDisk, Stopped, and what HubClient.download raises.
        """
        folder = self.path(model_id, revision)
        total = sum(file.size_bytes or 0 for file in files)
        while (lock := try_lock(folder)) is None:
            if stop():
                raise Stopped
            time.sleep(_LOCK_POLL_SECONDS)
        with lock:
            missing = self.missing(model_id, revision, files)
            done = total - sum(file.size_bytes or 0 for file in missing)
            self._require_space(model_id, folder, missing)
            for file in missing:
                before = done

                def advance(size_bytes: int, before: int = before) -> None:
                    report(before + size_bytes, max(total, before + size_bytes))

                try:
                    hub.download(model_id, revision, file, folder / file.name, advance=advance, stop=stop)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    raise self._no_space(model_id, folder, missing) from error
                done += file.size_bytes or 0
            report(total, total)
        return folder

    def _require_space(self, model_id: str, folder: Path, missing: list[HubFile]) -> None:
        if missing and _needed_bytes(folder, missing) + self._disk_reserve_bytes > shutil.disk_usage(folder).free:
            raise self._no_space(model_id, folder, missing)

    def _no_space(self, model_id: str, folder: Path, missing: list[HubFile]) -> NotEnoughDisk:
        needed = _needed_bytes(folder, missing) + self._disk_reserve_bytes
        free = shutil.disk_usage(folder).free
        return NotEnoughDisk(model_id=model_id, needed_gb=needed / 1e9, free_gb=free / 1e9)


def wanted_files(model: HubModel) -> list[HubFile]:
    """The files that training needs: safetensors weights, JSON, tokenizer, chat template; top level only.

    Never pickles (.bin, .pt), code (.py), or a second copy of the weights under another name.
    """
    top = [file for file in model.files if re.fullmatch(r"[A-Za-z0-9][\w.-]*", file.name)]
    single = [file for file in top if file.name == "model.safetensors"]
    weights = single or [file for file in top if _SHARD.fullmatch(file.name)]
    others = [
        file
        for file in top
        if file.name.endswith((".json", ".txt", ".jinja")) or file.name == "tokenizer.model"
        if not file.name.endswith((".bin.index.json", ".msgpack.index.json"))
    ]
    # Small ones first: what is wrong with them shows before the long download.
    return sorted(others, key=lambda file: file.name) + sorted(weights, key=lambda file: file.name)


def _needed_bytes(folder: Path, missing: list[HubFile]) -> int:
    parts = [folder / (file.name + PART_SUFFIX) for file in missing]
    here = sum(part.stat().st_size for part in parts if part.exists())
    return max(0, sum(file.size_bytes or 0 for file in missing) - here)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(value), encoding="utf-8")
    aside.replace(path)
