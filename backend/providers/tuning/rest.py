"""A bounded HTTP client for providers that are reached by plain REST: one try a call, and typed errors."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from backend.providers.answers import quoted, retry_after_seconds, words_of
from backend.providers.tuning.base import (
    ProviderAnswerBroken,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnavailable,
    TuningError,
)

SECONDS: Final = 30.0
UPLOAD_SECONDS: Final = 900.0
ANSWER_SECONDS: Final = 120.0
_LARGEST_ANSWER: Final = 16 * 1024 * 1024
_TRANSIENT: Final = {408, 425}


class RestClient:
    """JSON over HTTP with a bearer key. Nothing is retried in here: whoever calls knows what may be done twice."""

    def __init__(self, provider: str, base_url: str, key: str, *, seconds: float = SECONDS) -> None:
        self._provider = provider
        self._key = key
        self._seconds = seconds
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}", "Accept": "application/json"},
            timeout=httpx.Timeout(seconds),
            follow_redirects=False,
        )

    def __repr__(self) -> str:
        return f"RestClient({self._provider!r})"

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        query: dict[str, Any] | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """The JSON object of a 2xx answer. Raises TuningErrors."""
        async with self._bounded(seconds or self._seconds):
            request = self._http.build_request(method, path.lstrip("/"), json=body, params=query)
            return await self._exchange(request)

    async def call_unless_refused(
        self, method: str, path: str, statuses: Collection[int], *, body: dict[str, Any] | None = None
    ) -> None:
        """A call whose work may have been done before: an answer with one of the statuses says so, and is no error."""
        try:
            await self.call(method, path, body=body)
        except ProviderRefused as error:
            if error.provider_status not in statuses:
                raise

    async def upload(self, path: str, file: Path, *, name: str, fields: dict[str, str] | None = None) -> dict[str, Any]:
        """Sends a file as multipart form, streamed from disk. Raises TuningErrors."""
        async with self._bounded(UPLOAD_SECONDS):
            with file.open("rb") as content:
                request = self._http.build_request(
                    "POST",
                    path.lstrip("/"),
                    files={"file": (name, content, "application/jsonl")},
                    data=fields or {},
                    timeout=httpx.Timeout(self._seconds, write=UPLOAD_SECONDS, read=UPLOAD_SECONDS),
                )
                return await self._exchange(request)

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a stream of server-sent events, until its `[DONE]` or its end."""
        # No asyncio.timeout: whoever reads a generator may end it from another task.
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            async with self._http.stream("POST", path.lstrip("/"), json=body) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise self._status_error(answer)
                async for line in answer.aiter_lines():
                    data = line[5:].strip() if line.startswith("data:") else ""
                    if data == "[DONE]":
                        return
                    if data:
                        yield self._parsed(data.encode())
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._unreachable(error) from None

    def text_in(self, fields: dict[str, Any], name: str) -> str:
        """A text that an answer must have. Raises ProviderAnswerBroken."""
        value = fields.get(name)
        if not isinstance(value, str) or not value:
            raise self.broken(f"it has no {name}")
        return value

    def broken(self, what: str) -> ProviderAnswerBroken:
        return ProviderAnswerBroken(self._provider, quoted(what, self._key))

    async def _exchange(self, request: httpx.Request) -> dict[str, Any]:
        answer = await self._http.send(request, stream=True)
        try:
            content = bytearray()
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > _LARGEST_ANSWER:
                    raise self.broken("an answer of more than 16 MB")
        finally:
            await answer.aclose()
        if not answer.is_success:
            raise self._status_error(answer, bytes(content))
        # Some answer a cancel or a delete with nothing at all.
        return self._parsed(bytes(content)) if content.strip() else {}

    @asynccontextmanager
    async def _bounded(self, seconds: float) -> AsyncIterator[None]:
        """One bound on the whole exchange: httpx's own restarts with every byte."""
        try:
            async with asyncio.timeout(seconds):
                yield
        # `from None`: the cause holds the request with its headers, and would be printed with a traceback.
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ProviderUnavailable:
        what = "no answer in time" if isinstance(error, TimeoutError | httpx.TimeoutException) else str(error)
        return ProviderUnavailable(self._provider, quoted(what or type(error).__name__, self._key))

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            found = json.loads(content)
        except ValueError:
            raise self.broken("it is no JSON") from None
        if not isinstance(found, dict):
            raise self.broken("it is no JSON object")
        return found

    def _status_error(self, answer: httpx.Response, content: bytes | None = None) -> TuningError:
        raw = answer.content if content is None else content
        words = quoted(words_of(raw) or answer.reason_phrase or f"status {answer.status_code}", self._key)
        return error_of(self._provider, answer.status_code, words, answer.headers.get("retry-after"))


def error_of(provider: str, status: int, words: str, retry_after: str | None) -> TuningError:
    """The typed error of an answer that is no success."""
    if status == 429:
        return ProviderRateLimited(provider, words, retry_after_seconds(retry_after))
    if status >= 500 or status in _TRANSIENT:
        return ProviderUnavailable(provider, f"{words} (status {status})")
    if status >= 400:
        return ProviderRefused(provider, words, status)
    return ProviderAnswerBroken(provider, f"status {status}")
