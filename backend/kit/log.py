"""Structured logs with the request id or job id of whatever is being done."""

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

_as_json = False
_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def configure_logging(level: str = "INFO", *, json: bool = False) -> None:
    """Sends both structlog's and the standard library's records through one formatter to stderr."""
    global _as_json
    _as_json = json
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=False,
            # The rich one shows local variables, and those hold passwords and keys.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    final: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if json:
        final.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_SHARED, processors=[*final, renderer]))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def write_access(*, method: str, path: str, status: int, elapsed_ms: float, request_id: str) -> None:
    """One line per request, written straight: the way through the log handlers costs a tenth of a small request."""
    if not logging.getLogger("backend.access").isEnabledFor(logging.INFO):
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    elapsed = round(elapsed_ms, 1)
    if _as_json:
        fields = {"timestamp": now, "level": "info", "event": "request", "method": method, "path": path}
        line = orjson.dumps({**fields, "status": status, "elapsed_ms": elapsed, "request_id": request_id}).decode()
    else:
        # repr keeps a path with control characters on its own line.
        shown = path if path.isprintable() else repr(path)
        line = f"{now} [info     ] {method} {shown} {status} {elapsed} ms request_id={request_id}"
    sys.stderr.write(line + "\n")


def bind(**values: Any) -> None:
    """Adds fields to every record of the present request or task."""
    structlog.contextvars.bind_contextvars(**values)


def unbind_all() -> None:
    structlog.contextvars.clear_contextvars()
