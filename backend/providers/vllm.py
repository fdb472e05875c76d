"""A vLLM server with multi-LoRA: its bases, adapters that it is told to load, and streamed answers."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from backend.kit.errors import DomainError

# A base's first answer compiles; after that tokens come by the tens a second.
_READ_SECONDS = 60.0
_CONNECT_SECONDS = 3.0
_WORDS = 300


class VllmUnavailable(DomainError):
    status = 503
    code = "VLLM_UNAVAILABLE"
    template = "The vLLM server failed: {words}. Try again later, or look at VLLM_BASE_URL."
    retryable = True

    def __init__(self, words: str) -> None:
        super().__init__(words=words)


class VllmRefused(DomainError):
    code = "VLLM_REFUSED"
    template = "The vLLM server refused the question: {words}."

    def __init__(self, words: str) -> None:
        super().__init__(words=words)


class AdapterUnknown(Exception):
    """The server knows no such adapter: it was never told, or has been started again since."""


class VllmServer:
    """One server at `base_url`, which ends in /v1. Methods raise VllmUnavailable, VllmRefused."""

    def __init__(self, base_url: str) -> None:
        timeout = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
        # Not through a proxy of the environment: the server is one of ours.
        self._client = httpx.AsyncClient(base_url=base_url.rstrip("/") + "/", timeout=timeout, trust_env=False)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def bases(self) -> set[str]:
        """The names of the base models that it serves."""
        async with _translated():
            answer = await self._client.get("models", timeout=_CONNECT_SECONDS)
            _require_ok(answer)
            entries = answer.json()["data"]
            # Adapters have a parent; a base may be served under another name than its own.
            return {
                str(name) for entry in entries if not entry.get("parent") for name in (entry["id"], entry.get("root"))
            }

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Tells it to load an adapter from a folder that it sees under the same path; once more does no harm."""
        async with _translated():
            answer = await self._client.post("load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
            if answer.status_code == 400 and "already" in answer.text:
                return
            _require_ok(answer)

    async def stream(self, model: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a chat completion. Raises AdapterUnknown before the first one."""
        wanted = {**body, "model": model, "stream": True, "stream_options": {"include_usage": True}}
        async with _translated(), self._client.stream("POST", "chat/completions", json=wanted) as answer:
            if answer.status_code != 200:
                await answer.aread()
                if answer.status_code == 404:
                    raise AdapterUnknown
                _require_ok(answer)
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise VllmUnavailable(_quoted(chunk["error"]))
                yield chunk


def _require_ok(answer: httpx.Response) -> None:
    if answer.status_code < 400:
        return
    try:
        said = answer.json()
        words = said.get("message") or said.get("error") or said
    except ValueError:
        words = answer.text
    if answer.status_code in (400, 422):
        raise VllmRefused(_quoted(words))
    raise VllmUnavailable(f"status {answer.status_code}, {_quoted(words)}")


def _quoted(words: Any) -> str:
    text = words.get("message", words) if isinstance(words, dict) else words
    return " ".join(str(text).split())[:_WORDS].rstrip(". ")


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise VllmUnavailable(f"{type(error).__name__} {error}".strip()) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VllmUnavailable("its answer cannot be understood") from error
