"""Every failure as {detail, error_code, context}, on both faces."""

import logging
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import Response

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
}


class ErrorOut(BaseModel):
    detail: str
    error_code: str
    context: dict[str, Any] = {}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses=`: the error body under each of its statuses."""
    return {status: {"model": ErrorOut} for status in statuses}


def render(status: int, detail: str, code: str, context: dict[str, Any] | None = None) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    body = {"detail": detail, "error_code": code, "context": context or {}}
    content = orjson.dumps(body, default=str)
    return Response(content, status_code=status, headers=headers, media_type="application/json")


def install(app: FastAPI) -> None:
    @app.exception_handler(DomainError)
    async def domain_error(_: Request, error: DomainError) -> Response:
        return render(error.status, error.detail, error.code, error.context)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> Response:
        problems = [
            {"field": ".".join(str(part) for part in item["loc"]), "message": item["msg"], "type": item["type"]}
            for item in error.errors()
        ]
        sentence = "; ".join(f"{item['field']}: {item['message']}" for item in problems[:5])
        return render(422, f"The request is not valid. {sentence}.", "VALIDATION_ERROR", {"errors": problems})

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "ERROR")
        return render(error.status_code, str(error.detail), code)

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(DBAPIError)
    async def database_error(_: Request, error: DBAPIError) -> Response:
        if not error.connection_invalidated and not isinstance(error, (OperationalError, InterfaceError)):
            return _unexpected(error)
        log.error("database is not available: %s", error.orig)
        return render(503, "The database does not answer. Try again in a moment.", "DATABASE_UNAVAILABLE")

    @app.exception_handler(ConnectionError)
    async def connection_error(_: Request, error: ConnectionError) -> Response:
        log.error("a server that this one needs is not available: %s", error)
        return render(503, "The service is starting or restarting. Try again in a moment.", "SERVICE_UNAVAILABLE")

    @app.exception_handler(RedisError)
    async def redis_error(_: Request, error: RedisError) -> Response:
        log.error("redis is not available: %s", error)
        return render(503, "Redis does not answer. Try again in a moment.", "REDIS_UNAVAILABLE")

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return _unexpected(error)


def _unexpected(error: Exception) -> Response:
    log.error("unexpected error", exc_info=error)
    return render(
        500,
        "The service made an error. Try again; if it happens again, report it with the X-Request-ID of this answer.",
        "INTERNAL_ERROR",
    )
