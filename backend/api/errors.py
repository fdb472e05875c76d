"""Every failure as {detail, error_code, context}, on both faces, in English or French."""

import errno
import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from itertools import zip_longest
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from backend.kit import language, messages
from backend.kit.errors import DomainError

log = logging.getLogger(__name__)

_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "VALIDATION_ERROR",
    429: "RATE_LIMITED",
    503: "SERVICE_UNAVAILABLE",
}
# For what the framework itself refuses; its own words are a status line.
_SENTENCES = {
    404: "There is nothing at this address. GET /docs lists what there is.",
    405: "This address does not take this method; the Allow header names those that it takes.",
}
# PostgreSQL's classes and codes (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_BAD_DATA, _GONE, _COLLISIONS = "22", "23503", ("40001", "40P01")


class ErrorOut(BaseModel):
    detail: str
    error_code: str
    context: dict[str, Any] = {}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses=`: the error body under each of its statuses."""
    return {status: {"model": ErrorOut} for status in statuses}


class ErrorAnswer(Response):
    """An English answer that becomes a French one when it is sent to a reader who wants that.

    Only then is the request known, so that middleware and exception handlers need not hand its language on.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        code: str,
        context: Mapping[str, Any],
        headers: Mapping[str, str],
        values: Sequence[Mapping[str, Any]] = (),
        spoken: language.Language = "en",
    ) -> None:
        body = {"detail": detail, "error_code": code, "context": context}
        try:
            content = orjson.dumps(body, default=str)
        except TypeError:  # a lone surrogate or a huge number that was quoted from the request
            content = json.dumps(body, default=str).encode("ascii")
        headers = {**headers, "Content-Language": spoken}
        super().__init__(content, status_code=status, headers=headers, media_type="application/json")
        self.headers.add_vary_header("Accept-Language")
        self._parts = (code, context, headers, values)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wishes = ",".join(Headers(scope=scope).getlist("accept-language"))
        answer = self._in_french() if language.choose(wishes) == "fr" else None
        await Response.__call__(answer or self, scope, receive, send)

    def _in_french(self) -> "ErrorAnswer | None":
        """None where there is no French sentence for it."""
        code, context, headers, values = self._parts
        if code == "VALIDATION_ERROR" and "errors" in context:
            context = {**context, "errors": _problems_in_french(context["errors"], values)}
            fields = {**context, "problems": _listed(context["errors"], " : ", " ; ")}
        else:
            fields = dict(context)
        detail = messages.french_sentence(code, fields)
        if detail is None:
            return None
        if "advice" in context:
            context = {**context, "advice": messages.french_advice(code, context) or context["advice"]}
        return ErrorAnswer(self.status_code, detail, code, context, headers, spoken="fr")


def render(
    status: int,
    detail: str,
    code: str,
    context: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    values: Sequence[Mapping[str, Any]] = (),
) -> Response:
    """The answer of a failure. `values`: for each of `context.errors` what its message holds (pydantic's ctx)."""
    headers = {**(headers or {}), **({"WWW-Authenticate": "Bearer"} if status == 401 else {})}
    return ErrorAnswer(status, detail, code, context or {}, headers, values)


def _listed(problems: Sequence[Mapping[str, Any]], colon: str, separator: str) -> str:
    """The first five problems in one sentence."""
    return separator.join(f"{problem['field']}{colon}{problem['message']}" for problem in problems[:5])


def _problems_in_french(
    problems: Sequence[Mapping[str, Any]], values: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    return [
        {
            **problem,
            "message": messages.french_problem(problem["type"], problem["message"], known or {}) or problem["message"],
        }
        for problem, known in zip_longest(problems, values)
    ]


def render_unexpected(error: Exception) -> Response:
    log.error("unexpected error", exc_info=error)
    return render(
        500,
        "The service made an error. Try again; if it happens again, report it with the X-Request-ID of this answer.",
        "INTERNAL_ERROR",
    )


def install(app: FastAPI) -> None:
    _install_refusals(app)
    _install_outages(app)
    # Any other exception is rendered by the RequestId middleware, whose header the answer then has.


def _install_refusals(app: FastAPI) -> None:
    """What is wrong with the request."""

    @app.exception_handler(DomainError)
    async def domain_error(_: Request, error: DomainError) -> Response:
        headers: Mapping[str, str] | None = getattr(error, "headers", None)
        return render(error.status, error.detail, error.code, error.context, headers)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        problems = [
            {"field": ".".join(str(part) for part in item["loc"]), "message": item["msg"], "type": item["type"]}
            for item in found
        ]
        detail = f"The request is not valid. {_listed(problems, ': ', '; ')}."
        values = [item.get("ctx", {}) for item in found]
        return render(422, detail, "VALIDATION_ERROR", {"errors": problems}, values=values)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        status = error.status_code
        detail = str(error.detail)
        if detail == HTTPStatus(status).phrase:
            detail = _SENTENCES.get(status, detail)
        headers = dict(error.headers or {})
        if status == 405 and (methods := _methods_at(app, request.url.path)):
            headers["Allow"] = ", ".join(methods)
        return render(status, detail, _CODES.get(status, "ERROR"), headers=headers)

    @app.exception_handler(StaleDataError)
    @app.exception_handler(ObjectDeletedError)
    async def stale(_: Request, __: Exception) -> Response:
        return _changed_meanwhile()

    @app.exception_handler(ClientDisconnect)
    async def client_left(_: Request, error: ClientDisconnect) -> Response:
        # Nobody reads this answer; it only keeps an upload that was broken off from looking like an error of ours.
        return render(400, "The body ends before it is complete. Send it again.", "BODY_INCOMPLETE")


def _methods_at(app: FastAPI, path: str) -> list[str]:
    """Those of all routes at an address; the framework itself names those of the first one alone."""
    found: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        if compile_path(template)[0].match(path):
            found |= {method.upper() for method in operations}
    return sorted(found)


def _install_outages(app: FastAPI) -> None:
    """What is wrong with the servers and the disk that this one needs."""

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(DBAPIError)
    async def database_error(_: Request, error: DBAPIError) -> Response:
        state = str(getattr(error.orig, "sqlstate", None) or "")
        if state.startswith(_BAD_DATA):
            return render(422, "The request holds a value that cannot be stored. Correct it.", "VALIDATION_ERROR")
        if state == _GONE:
            return _changed_meanwhile()
        if state in _COLLISIONS:
            return render(503, "Another request was in the way. Try again.", "SERVICE_UNAVAILABLE")
        if not error.connection_invalidated and not isinstance(error, (OperationalError, InterfaceError)):
            return render_unexpected(error)
        log.error("database is not available: %s", error.orig)
        return _no_database()

    @app.exception_handler(PoolTimeout)
    @app.exception_handler(TimeoutError)
    async def database_busy(_: Request, error: Exception) -> Response:
        log.error("no answer in time: %s", error)
        return _no_database()

    @app.exception_handler(ConnectionError)
    async def connection_error(_: Request, error: ConnectionError) -> Response:
        log.error("a server that this one needs is not available: %s", error)
        return render(503, "The service is starting or restarting. Try again in a moment.", "SERVICE_UNAVAILABLE")

    @app.exception_handler(OSError)
    async def disk_error(_: Request, error: OSError) -> Response:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return render_unexpected(error)
        log.error("the disk is full: %s", error)
        return render(507, "The service has no disk space left. Delete files, or tell its operator.", "DISK_FULL")

    @app.exception_handler(RedisError)
    async def redis_error(_: Request, error: RedisError) -> Response:
        log.error("redis is not available: %s", error)
        return render(503, "Redis does not answer. Try again in a moment.", "REDIS_UNAVAILABLE")


def _no_database() -> Response:
    return render(503, "The database does not answer. Try again in a moment.", "DATABASE_UNAVAILABLE")


def _changed_meanwhile() -> Response:
    return render(409, "It was changed or deleted meanwhile. Read it again, then repeat the request.", "CONFLICT")
