"""The base models that can be fine-tuned: the bundled one, folders in MODELS_DIR, and the HuggingFace Hub."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from backend.kit.errors import DomainError
from backend.providers import bundled
from backend.providers.errors import HubUnavailable, ModelIdInvalid, ModelNotFound, ModelNotTrainable
from backend.providers.hub_cache import HubCache, HubRecord, wanted_files
from backend.providers.huggingface import GatedModel, HubClient, HubFile, HubModel, Stopped
from backend.providers.model_facts import ModelFacts, Source, describe, gated
from backend.providers.weights_headers import HeaderUnreadable, read_safetensors

Progress = Callable[[int, int], None]
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_REPORT_INTERVAL_SECONDS = 0.25


class ModelLibrary:
    """Finds base models by id and brings their files to this machine.

    An id is the bundled model's, the name of a folder in `models_dir`, or one of the Hub. Everything from the Hub is
    kept in `models_dir`/.cache, so that it works offline afterwards. `threads`: CPU threads to unpack the bundled one.
    """

    def __init__(
        self, models_dir: Path, hub: HubClient, *, threads: int = 0, disk_reserve_bytes: int = 1_000_000_000
    ) -> None:
        self._models_dir = models_dir
        self._hub = hub
        self._threads = threads
        self._cache = HubCache(models_dir / ".cache" / "hub", disk_reserve_bytes=disk_reserve_bytes)
        self._bundled_facts: ModelFacts | None = None

    async def resolve(self, model_id: str) -> ModelFacts:
        """Facts of a model, from its config and weight headers alone.

        A model that exists but cannot be fine-tuned here has `trainable` False and says why in `warnings`.
        Raises ModelIdInvalid, ModelNotFound, HubUnavailable (only when nothing is stored), HubTokenRefused,
        BundledModelMissing.
        """
        source = self._source(model_id)
        if source == "bundled":
            if self._bundled_facts is None:
                self._bundled_facts = await asyncio.to_thread(bundled.read_facts)
            return self._bundled_facts
        if source == "folder":
            return await asyncio.to_thread(_read_folder, model_id, self._models_dir / model_id)
        return await self._resolve_on_hub(model_id)

    async def recall(self, model_id: str) -> ModelFacts | None:
        """What is known of a model without asking the Hub; None for one of the Hub that nobody has looked at here.

        Raises ModelIdInvalid, ModelNotFound, BundledModelMissing.
        """
        if self._source(model_id) != "hub":
            return await self.resolve(model_id)
        record = await asyncio.to_thread(self._cache.find, model_id)
        return None if record is None else _facts_of(model_id, record)

    def is_on_disk(self, model_id: str) -> bool:
        """Whether it is the bundled model or a folder in `models_dir`, so that `resolve` asks nobody.

        Raises ModelIdInvalid, ModelNotFound.
        """
        return self._source(model_id) != "hub"

    async def tokenizer_file(self, model_id: str, revision: str | None = None) -> Path | None:
        """The model's tokenizer.json on disk, fetched from the Hub if need be (that file alone).

        None when it is not to be had: the model has none, is unknown, or the Hub is out of reach.
        """
        try:
            source = self._source(model_id)
            if source == "hub":
                return await self._fetch_tokenizer(model_id, revision)
        except (DomainError, GatedModel):
            return None
        folder = self._models_dir / model_id if source == "folder" else bundled.converted_folder(self._models_dir)
        path = folder / "tokenizer.json"
        return path if path.is_file() else None

    async def ensure_weights(
        self, model_id: str, revision: str | None = None, on_progress: Progress | None = None
    ) -> Path:
        """A folder with the model's config, safetensors weights and tokenizer; what is missing is fetched or unpacked.

        `revision` pins a commit of the Hub (None: the newest known). `on_progress` gets (bytes here, bytes in all) in
        the caller's loop. May take long; cancelling ends it, and a later call goes on where it stopped.
        Raises as `resolve`, and ModelNotTrainable, NotEnoughDisk, DownloadDamaged, ConversionFailed.
        """
        source = self._source(model_id)
        if source == "bundled":
            return await bundled.convert(self._models_dir, threads=self._threads)
        if source == "folder":
            (await self.resolve(model_id)).require_trainable()
            return self._models_dir / model_id
        try:
            record = await self._record(model_id, revision)
        except GatedModel as error:
            reason = " ".join(gated(model_id, revision).warnings)
            raise ModelNotTrainable(model_id=model_id, reason=reason) from error
        _facts_of(model_id, record).require_trainable()
        return await self._fetch(model_id, record, wanted_files(record.model), on_progress)

    async def ensure_files(self, model_id: str, names: Collection[str], on_progress: Progress | None = None) -> Path:
        """A folder with those of the named files that a model of the Hub has, whatever kind of model it is.

        Raises as `ensure_weights`, but never ConversionFailed.
        """
        self._source(model_id)
        try:
            record = await self._record(model_id, None)
        except GatedModel as error:
            raise ModelNotTrainable(model_id=model_id, reason=" ".join(gated(model_id, None).warnings)) from error
        files = [file for file in record.model.files if file.name in names]
        return await self._fetch(model_id, record, files, on_progress)

    def _source(self, model_id: str) -> Source:
        """Which kind of id it is; nothing outside `models_dir` is ever looked at."""
        if model_id == bundled.MODEL_ID:
            return "bundled"
        if ".." in model_id or "\\" in model_id or model_id.startswith(("/", "~", ".")) or model_id.count("/") > 1:
            raise ModelNotFound(model_id=model_id)
        parts = model_id.split("/")
        if not all(_NAME.fullmatch(part) for part in parts) or "--" in model_id or len(model_id) > 193:
            raise ModelIdInvalid(model_id=model_id[:200])
        if len(parts) == 1 and (self._models_dir / model_id / "config.json").is_file():
            return "folder"
        return "hub"

    async def _resolve_on_hub(self, model_id: str) -> ModelFacts:
        try:
            model = await self._hub.find_model(model_id)
        except GatedModel:
            return gated(model_id, None)
        except HubUnavailable:
            if (record := self._cache.find(model_id)) is None:
                raise
            note = f"The HuggingFace Hub cannot be reached now; this is what it said on {record.stored_at[:10]}."
            return _facts_of(model_id, record, note)
        try:
            return _facts_of(model_id, await self._keep(model_id, model))
        except GatedModel:
            return gated(
                model_id,
                model.revision,
                model_type=model.model_type,
                architecture=model.architectures[0] if model.architectures else None,
                num_parameters=model.num_parameters,
                license_name=model.license,
            )

    async def _record(self, model_id: str, revision: str | None) -> HubRecord:
        """What is stored of a revision, else what the Hub says. Raises as HubClient.find_model."""
        stored = self._cache.find(model_id, revision)
        return stored or await self._keep(model_id, await self._hub.find_model(model_id, revision))

    async def _keep(self, model_id: str, model: HubModel) -> HubRecord:
        """Store a listing with its config, which is fetched unless it is here: a revision never changes."""
        if (record := self._cache.find(model_id, model.revision)) is not None:
            config = record.config
        elif any(file.name == "config.json" for file in model.files):
            config = await self._hub.read_json(model_id, model.revision, "config.json")
        else:
            config = None
        return self._cache.store(model_id, model, config)

    async def _fetch_tokenizer(self, model_id: str, revision: str | None) -> Path | None:
        record = await self._record(model_id, revision)
        files = [file for file in record.model.files if file.name == "tokenizer.json"]
        if not files:
            return None
        return await self._fetch(model_id, record, files, None) / "tokenizer.json"

    async def _fetch(
        self, model_id: str, record: HubRecord, files: list[HubFile], on_progress: Progress | None
    ) -> Path:
        revision = record.model.revision
        if not self._cache.missing(model_id, revision, files):
            return self._cache.path(model_id, revision)
        stopped = threading.Event()
        report = _throttled(on_progress) if on_progress else lambda done, total: None

        def work() -> Path | None:
            with suppress(Stopped):
                return self._cache.fetch(self._hub, model_id, revision, files, report=report, stop=stopped.is_set)
            return None

        try:
            folder = await self._hub.in_thread(work)
        except GatedModel as error:
            reason = " ".join(gated(model_id, revision).warnings)
            raise ModelNotTrainable(model_id=model_id, reason=reason) from error
        finally:
            # After a cancel the thread ends by itself, within one read; it holds the folder's lock until then.
            stopped.set()
        assert folder is not None
        return folder


def _throttled(on_progress: Progress) -> Progress:
    """Carry reports from a thread to the running loop, not more than a few a second."""
    loop = asyncio.get_running_loop()
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= _REPORT_INTERVAL_SECONDS:
            last = now
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(on_progress, done, total)

    return report


def _facts_of(model_id: str, record: HubRecord, note: str | None = None) -> ModelFacts:
    model = record.model
    facts = describe(
        model_id,
        "hub",
        record.config,
        filenames=[file.name for file in model.files],
        revision=model.revision,
        num_parameters=model.num_parameters,
        license_name=model.license,
        size_bytes=sum(file.size_bytes or 0 for file in wanted_files(model)),
    )
    if note:
        facts.warnings.append(note)
    return facts


def _read_folder(model_id: str, folder: Path) -> ModelFacts:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    known: dict[str, Any] = config if isinstance(config, dict) else {}
    names = [path.name for path in folder.iterdir() if path.is_file()]
    refusals, count = [], None
    shape_says_tied = describe(model_id, "folder", known, filenames=names).tie_word_embeddings
    if any(name.endswith(".safetensors") for name in names):
        try:
            count = read_safetensors(folder, tied=shape_says_tied).num_parameters
        except HeaderUnreadable as error:
            refusals.append(f"Its weights are not complete ({error}). Copy the model's files anew.")
    return describe(
        model_id,
        "folder",
        known if config is not None else None,
        filenames=names,
        num_parameters=count,
        license_name=_license_of_card(folder / "README.md"),
        size_bytes=sum((folder / name).stat().st_size for name in names),
        refusals=refusals,
    )


def _license_of_card(path: Path) -> str | None:
    """The `license` in the front matter of a model card."""
    try:
        with path.open(encoding="utf-8", errors="replace") as card:
            text = card.read(20_000)
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:[ \t]*([\w.-]+)[ \t]*$", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else None
