"""JSON Web Tokens behind one wrapper that closes python-jose's open doors: one algorithm, all claims required."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from jose import JOSEError, jws, jwt

from backend.users.errors import BadToken

TokenType = Literal["access", "refresh"]

ALGORITHM = "HS256"
ISSUER = "finetuneflow"
AUDIENCE = "finetuneflow-api"
MINIMUM_KEY_BYTES = 32
# What personal access tokens begin with, so that they are told from JSON Web Tokens, and found by scanners of secrets.
PERSONAL_PREFIX = "ftf_"
_REQUIRED = ("exp", "iat", "aud", "iss", "sub", "sid", "jti", "typ")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says: whose it is, of which login, and until when."""

    user: UUID
    session: UUID
    token_id: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class PersonalToken:
    """A personal access token that a request carries, by its digest; not yet looked up."""

    digest: str


class TokenSigner:
    """Signs and verifies tokens with one key and one algorithm."""

    def __init__(self, key: str) -> None:
        if len(key.encode()) < MINIMUM_KEY_BYTES:
            raise ValueError(
                f"SECRET_KEY must have at least {MINIMUM_KEY_BYTES} bytes. "
                "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
            )
        self._key = key

    def sign(self, kind: TokenType, *, user: UUID, session: UUID, lifetime: timedelta) -> str:
        now = datetime.now(UTC)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user),
            "sid": str(session),
            "jti": secrets.token_urlsafe(16),
            "typ": kind,
            "iat": now,
            "exp": now + lifetime,
        }
        return str(jwt.encode(claims, self._key, algorithm=ALGORITHM))

    def verify(self, kind: TokenType, token: str) -> Claims:
        """Raises BadToken unless the token is ours, whole, of this kind and not expired."""
        try:
            header = jws.get_unverified_header(token)
            # python-jose ignores critical extensions that it does not know, and would take any listed algorithm.
            if header.get("alg") != ALGORITHM or "crit" in header or "kid" in header:
                raise BadToken()
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={
                    "leeway": 0,
                    **{f"require_{name}": True for name in ("exp", "iat", "aud", "iss", "sub", "jti")},
                },
            )
            if any(name not in claims for name in _REQUIRED) or claims["typ"] != kind:
                raise BadToken()
            return Claims(
                user=UUID(claims["sub"]),
                session=UUID(claims["sid"]),
                token_id=str(claims["jti"]),
                expires_at=float(claims["exp"]),
            )
        except (JOSEError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadToken() from error


def digest(token: str) -> str:
    """What is stored of a token: its SHA-256, hexadecimal. It is random and long enough to need no salt."""
    return hashlib.sha256(token.encode()).hexdigest()
