"""Sealing secrets at rest: AES-GCM, bound to whose they are, under keys that can be changed without an outage."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE_BYTES = 12
_MINIMUM_SECRET_BYTES = 32


class CannotUnseal(Exception):
    """The text was sealed for somebody else, under a key that is no longer listed, or has been changed."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """`ciphertext`: 12 bytes of nonce, then the text with its tag. `key_id` names the key and tells nothing of it."""

    key_id: str
    ciphertext: bytes


class Sealer:
    """Seals under the first of its keys, and opens what any of them sealed."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys or any(len(key.encode()) < _MINIMUM_SECRET_BYTES for key in keys):
            raise ValueError(
                f"Each of ENCRYPTION_KEYS (or SECRET_KEY without them) must have at least {_MINIMUM_SECRET_BYTES} "
                "bytes. Make one with: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
            )
        self._keys = {_id_of(key): AESGCM(_derived(key)) for key in keys}
        self.newest = _id_of(keys[0])

    def seal(self, text: str, *, bound_to: str) -> Sealed:
        """`bound_to` says whose it is; the same words are needed to open it."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._keys[self.newest].encrypt(nonce, text.encode(), bound_to.encode())
        return Sealed(self.newest, nonce + sealed)

    def open(self, sealed: Sealed, *, bound_to: str) -> str:
        """Raises CannotUnseal."""
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise CannotUnseal(f"No key {sealed.key_id} among ENCRYPTION_KEYS.")
        nonce, text = sealed.ciphertext[:_NONCE_BYTES], sealed.ciphertext[_NONCE_BYTES:]
        try:
            return key.decrypt(nonce, text, bound_to.encode()).decode()
        except (InvalidTag, ValueError):
            raise CannotUnseal("The sealed text does not belong here, or was changed.") from None


def _derived(key: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"finetuneflow sealed secrets").derive(key.encode())


def _id_of(key: str) -> str:
    return hashlib.sha256(b"finetuneflow key id" + key.encode()).hexdigest()[:16]
