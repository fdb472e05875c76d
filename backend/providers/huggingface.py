"""The HuggingFace Hub: a model's facts at a pinned revision, and its files with resume and verified hashes."""

import asyncio
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backend.providers.errors import DownloadDamaged, HubTokenRefused, HubUnavailable, ModelNotFound

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

ResultT = TypeVar("ResultT")
JSON_LIMIT_BYTES = 5_000_000
# In a row, each without one new byte.
DOWNLOAD_ATTEMPTS = 5
PART_SUFFIX = ".part"
_CHUNK_BYTES = 1 << 20


class GatedModel(Exception):
    """The model exists, but its licence must be accepted first, or HF_TOKEN lacks access."""


class Stopped(Exception):
    """The caller's `stop` asked a download to end; what has arrived stays for the next one."""


@dataclass(frozen=True)
class HubFile:
    """`sha256` is set for large files, `blob_id` (git's SHA-1 of the content) for the others."""

    name: str
    size_bytes: int | None = None
    sha256: str | None = None
    blob_id: str | None = None


@dataclass(frozen=True)
class HubModel:
    """What the Hub's API says of a model; `revision` is the commit. Public even for gated models."""

    revision: str
    files: tuple[HubFile, ...]
    num_parameters: int | None = None
    license: str | None = None
    model_type: str | None = None
    architectures: tuple[str, ...] = ()


class HubClient:
    """Calls run in threads of its own. `endpoint` "" is the public Hub; `token` "" is nobody, whatever the home
    folder holds. `timeout_seconds` bounds each call as a whole, all its attempts included; for downloads, each wait.
    """

    def __init__(
        self, endpoint: str = "", token: str = "", *, timeout_seconds: float = 10.0, attempts: int = 2
    ) -> None:
        self._endpoint = endpoint.rstrip("/") or None
        self._token: str | bool = token or False
        self._timeout_seconds = timeout_seconds
        self._attempts = attempts
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="hub")

    def close(self) -> None:
        """Let the threads end; calls that are under way finish within the timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def find_model(self, model_id: str, revision: str | None = None) -> HubModel:
        """The model at `revision` (None: the newest). Raises ModelNotFound, GatedModel, HubUnavailable,
        HubTokenRefused.
        """

        def ask(timeout_seconds: float) -> HubModel:
            from huggingface_hub import HfApi

            api = HfApi(endpoint=self._endpoint, token=self._token)
            return _read_info(api.model_info(model_id, revision=revision, timeout=timeout_seconds, files_metadata=True))

        return await self._bounded(model_id, ask)

    async def read_json(self, model_id: str, revision: str, filename: str) -> dict[str, Any] | None:
        """A small JSON file of the model; None when it has none or it holds no object. Raises as `find_model`."""

        def ask(timeout_seconds: float) -> dict[str, Any] | None:
            from huggingface_hub.errors import EntryNotFoundError

            try:
                content = self._read(model_id, revision, filename, timeout_seconds)
            except EntryNotFoundError:
                return None
            value = json.loads(content)
            return value if isinstance(value, dict) else None

        return await self._bounded(model_id, ask)

    async def in_thread(self, call: Callable[[], ResultT]) -> ResultT:
        """Run `call` (which may use `download`) in a thread of this client."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def download(
        self,
        model_id: str,
        revision: str,
        file: HubFile,
        target: Path,
        *,
        advance: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        """Fetch `file` to `target`, going on where an earlier call was cut off; blocks, so call it in a thread.

        `advance` gets the bytes on disk so far; `stop` is asked after each piece. The file appears
        under its name only when whole and verified. The library's own downloads start anew after a killed process,
        and do not compare hashes. Raises as `find_model`, and Stopped, DownloadDamaged.
        """
        part = target.with_name(target.name + PART_SUFFIX)
        failures = 0
        while True:
            before = _size(part)
            try:
                self._continue(model_id, revision, file, part, advance, stop)
                break
            except Stopped:
                raise
            except Exception as error:
                outcome = _translate(error, model_id)
                failures = failures + 1 if _size(part) <= before else 1
                if not isinstance(outcome, HubUnavailable) or failures >= DOWNLOAD_ATTEMPTS:
                    raise outcome from error
            _pause(min(0.25 * 2**failures, 4.0), stop)
        if not _is_intact(part, file, stop):
            part.unlink()
            raise DownloadDamaged(model_id=model_id, filename=file.name)
        part.replace(target)

    def _continue(
        self,
        model_id: str,
        revision: str,
        file: HubFile,
        part: Path,
        advance: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        from huggingface_hub import get_session, hf_raise_for_status

        start = _size(part)
        if file.size_bytes is not None and start >= file.size_bytes and part.exists():
            if start == file.size_bytes:
                return
            part.unlink()
            start = 0
        headers = self._headers() | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = self._url(model_id, revision, file.name)
        with get_session().stream("GET", url, headers=headers, timeout=self._timeout_seconds) as response:
            if response.status_code == 416:
                part.unlink(missing_ok=True)
            hf_raise_for_status(response)
            resumed = response.status_code == 206
            with part.open("ab" if resumed else "wb") as output:
                advance(output.tell())
                for chunk in response.iter_bytes():
                    output.write(chunk)
                    advance(output.tell())
                    if stop():
                        raise Stopped
                output.flush()
                os.fsync(output.fileno())
        if file.size_bytes is not None and _size(part) < file.size_bytes:
            raise ConnectionError(f"{file.name} ended early")

    async def _bounded(self, model_id: str, ask: Callable[[float], ResultT]) -> ResultT:
        """Run `ask` in a thread, again on passing failures, all within the timeout."""
        deadline = time.monotonic() + self._timeout_seconds

        def work() -> ResultT:
            for attempt in range(1, self._attempts + 1):
                remaining = deadline - time.monotonic()
                try:
                    return ask(max(0.05, min(remaining, self._timeout_seconds / self._attempts)))
                except Exception as error:
                    outcome = _translate(error, model_id)
                    wait = 0.2 * attempt
                    last = attempt == self._attempts or time.monotonic() + wait >= deadline
                    if last or not (isinstance(outcome, HubUnavailable) and _may_pass(error)):
                        raise outcome from error
                time.sleep(wait)
            raise AssertionError("at least one attempt is made")

        # A name that does not resolve and a server that drips bytes escape the socket's own timeout.
        try:
            async with asyncio.timeout(self._timeout_seconds + 0.5):
                return await self.in_thread(work)
        except TimeoutError as error:
            raise HubUnavailable(model_id=model_id, reason="it does not answer in time") from error

    def _read(self, model_id: str, revision: str, filename: str, timeout_seconds: float) -> bytes:
        from huggingface_hub import get_session, hf_raise_for_status

        content = b""
        deadline = time.monotonic() + timeout_seconds
        url = self._url(model_id, revision, filename)
        with get_session().stream("GET", url, headers=self._headers(), timeout=timeout_seconds) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > JSON_LIMIT_BYTES:
                    raise ValueError(f"{filename} is larger than {JSON_LIMIT_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{filename} arrives too slowly")
        return content

    def _url(self, model_id: str, revision: str, filename: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(model_id, filename, revision=revision, endpoint=self._endpoint)

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": "finetuneflow"}
        return headers | {"Authorization": f"Bearer {self._token}"} if self._token else headers


def _read_info(info: "ModelInfo") -> HubModel:
    # It becomes a folder's name.
    if not re.fullmatch(r"[0-9a-f]{40,64}", info.sha or "") or info.sha is None:
        raise ValueError("the answer names no commit")
    config: Any = info.config if isinstance(info.config, dict) else {}
    files = tuple(
        HubFile(item.rfilename, item.size, item.lfs.sha256 if item.lfs else None, item.blob_id)
        for item in info.siblings or ()
    )
    model_type = config.get("model_type")
    return HubModel(
        revision=info.sha,
        files=files,
        num_parameters=info.safetensors.total if info.safetensors else None,
        license=_license(info),
        model_type=str(model_type) if model_type else None,
        architectures=tuple(map(str, config.get("architectures") or ())),
    )


def _license(info: "ModelInfo") -> str | None:
    card = info.card_data
    for field in ("license_name", "license"):
        value = getattr(card, field, None)
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if value and not (field == "license_name" and getattr(card, "license", None) != "other"):
            return str(value)
    return next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), None)


def _translate(error: Exception, model_id: str) -> Exception:
    """The library's many errors as the few that matter here."""
    import httpx2
    from huggingface_hub import errors as hub_errors

    if isinstance(error, hub_errors.GatedRepoError):
        return GatedModel(model_id)
    if isinstance(error, hub_errors.RepositoryNotFoundError | hub_errors.RevisionNotFoundError):
        return ModelNotFound(model_id=model_id)
    if isinstance(error, hub_errors.EntryNotFoundError | hub_errors.DisabledRepoError | hub_errors.HFValidationError):
        return ModelNotFound(model_id=model_id)
    if isinstance(error, hub_errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            # The Hub names what is missing or gated by a header; without one it is the token.
            return HubTokenRefused()
        if status == 403:
            return GatedModel(model_id)
        return HubUnavailable(model_id=model_id, reason=f"it answers {status}")
    if isinstance(error, hub_errors.OfflineModeIsEnabled):
        return HubUnavailable(model_id=model_id, reason="HF_HUB_OFFLINE is set")
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return HubUnavailable(model_id=model_id, reason="it does not answer in time")
    if isinstance(error, httpx2.HTTPError | ConnectionError):
        return HubUnavailable(model_id=model_id, reason="no connection")
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError):
        return HubUnavailable(model_id=model_id, reason="its answer is not the Hub's; check HF_ENDPOINT and any proxy")
    return error


def _may_pass(error: Exception) -> bool:
    """Whether asking again has a point."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    return isinstance(error, httpx2.TransportError | TimeoutError)


def _is_intact(path: Path, file: HubFile, stop: Callable[[], bool]) -> bool:
    size = path.stat().st_size
    if file.size_bytes is not None and size != file.size_bytes:
        return False
    if file.sha256 is not None:
        digest, wanted = hashlib.sha256(), file.sha256
    elif file.blob_id is not None:
        digest, wanted = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), file.blob_id
    else:
        return True
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            if stop():
                raise Stopped
    return digest.hexdigest() == wanted


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _pause(seconds: float, stop: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if stop():
            raise Stopped
        time.sleep(0.05)
