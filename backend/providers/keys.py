"""Keys of outside providers: what they look like, how they are shown, and one cheap call that tells if one works."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import httpx

from backend.kit.errors import DomainError

_SECONDS: Final = 10.0
_LONGEST_WORDS: Final = 500


class UnknownProvider(DomainError):
    code = "UNKNOWN_PROVIDER"
    template = "'{provider}' takes no keys. Providers with keys: {accepted}."


class BadKeyFormat(DomainError):
    code = "BAD_API_KEY_FORMAT"
    template = "This is not the form of a key of {provider}: {form}."


class KeyRefused(DomainError):
    code = "API_KEY_REFUSED"
    template = "{provider} refuses this key: {words}"


@dataclass(frozen=True, slots=True)
class KeyKind:
    """`form` is a sentence for people; `prefix` is what may be shown of a key, before its last four characters."""

    pattern: re.Pattern[str]
    form: str
    prefix: str
    check_path: str | None


_KINDS: Final[dict[str, KeyKind]] = {
    "openai": KeyKind(
        re.compile(r"sk[-_](?!ant-)[A-Za-z0-9_-]{8,250}"), "it begins with sk- and not with sk-ant-", "sk-", "/models"
    ),
    "anthropic": KeyKind(re.compile(r"sk-ant-[A-Za-z0-9_-]{8,250}"), "it begins with sk-ant-", "sk-ant-", "/v1/models"),
    "mistral": KeyKind(re.compile(r"[A-Za-z0-9]{32,64}"), "32 letters and digits", "", "/v1/models"),
    "together": KeyKind(
        re.compile(r"(?:tgp_v1_[A-Za-z0-9_-]{20,200}|[0-9a-f]{64})"),
        "it begins with tgp_v1_, or is 64 hexadecimal digits",
        "",
        "/models",
    ),
    "fireworks": KeyKind(re.compile(r"fw_[A-Za-z0-9]{16,200}"), "it begins with fw_", "fw_", "/models"),
    "huggingface": KeyKind(re.compile(r"hf_[A-Za-z0-9]{16,200}"), "it begins with hf_", "hf_", "/api/whoami-v2"),
    "bedrock": KeyKind(
        re.compile(r"\{.*\}", re.DOTALL),
        'a JSON object with "access_key_id", "secret_access_key", "region", "role_arn" and "bucket"',
        "",
        None,
    ),
}
PROVIDERS: Final = tuple(_KINDS)
_BEDROCK_FIELDS: Final = ("access_key_id", "secret_access_key", "region", "role_arn", "bucket")


def checked(provider: str, key: str) -> str:
    """The key without white space around it. Raises UnknownProvider, BadKeyFormat."""
    kind = kind_of(provider)
    key = key.strip()
    if not kind.pattern.fullmatch(key) or (provider == "bedrock" and not _is_bedrock(key)):
        # The key itself is no part of the error: what is refused may still be somebody's secret.
        raise BadKeyFormat(provider=provider, form=kind.form)
    return key


def masked(provider: str, key: str) -> str:
    """What may be shown: the provider's prefix and the last four characters."""
    if provider == "bedrock":
        identity = str(json.loads(key)["access_key_id"])
        return f"{identity[:4]}...{identity[-4:]}"
    return f"{_KINDS[provider].prefix}...{key[-4:]}"


def kind_of(provider: str) -> KeyKind:
    """Raises UnknownProvider."""
    if provider not in _KINDS:
        raise UnknownProvider(provider=provider, accepted=", ".join(PROVIDERS))
    return _KINDS[provider]


async def verify(provider: str, key: str, *, base_url: str) -> bool:
    """Asks the provider for its list of models. True when the key works, False when nobody could be asked.

    Raises KeyRefused with the provider's own words when it answers 401 or 403.
    """
    kind = kind_of(provider)
    if kind.check_path is None or not base_url:
        return False
    try:
        async with httpx.AsyncClient(timeout=_SECONDS, follow_redirects=False) as client:
            answer = await client.get(base_url.rstrip("/") + kind.check_path, headers=_headers(provider, key))
    except httpx.HTTPError:
        return False
    if answer.status_code in (401, 403):
        raise KeyRefused(provider=provider, words=_words(answer, key))
    return answer.is_success


def _headers(provider: str, key: str) -> dict[str, str]:
    if provider == "anthropic":
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}
    return {"Authorization": f"Bearer {key}"}


def _words(answer: httpx.Response, key: str) -> str:
    """The provider's own sentence, without the key should it quote it."""
    try:
        body: Any = answer.json()
        error = body.get("error", body) if isinstance(body, dict) else body
        found = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except ValueError:
        found = answer.text
    words = str(found or answer.reason_phrase).replace(key, "[key]")
    return words[:_LONGEST_WORDS]


def _is_bedrock(key: str) -> bool:
    try:
        fields = json.loads(key)
    except ValueError:
        return False
    return isinstance(fields, dict) and all(
        isinstance(fields.get(name), str) and fields[name] for name in _BEDROCK_FIELDS
    )
