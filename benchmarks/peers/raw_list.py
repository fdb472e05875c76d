"""The limit for a list: bare Starlette, raw asyncpg with the product's own SQL, orjson; no login, no errors."""

import contextlib
import os
from collections.abc import AsyncIterator

import asyncpg
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backend.projects import queries

_NAMES = ("id", "name", "task_type", "status", "base_model_id", "created_at", "updated_at")
_STATS = ("file_count", "chunk_count", "example_count", "last_job_status")


async def list_projects(request: Request) -> Response:
    user = int(request.query_params["user"])
    async with request.app.state.pool.acquire() as connection:
        rows = await connection.fetch(queries.LIST, user, None, 50, 0)
    items = []
    for row in rows:
        values = tuple(row)
        items.append({**dict(zip(_NAMES, values, strict=False)), "stats": dict(zip(_STATS, values[7:], strict=False))})
    body = {"items": items, "total": rows[0]["total"], "limit": 50, "offset": 0}
    return Response(orjson.dumps(body, default=str, option=orjson.OPT_UTC_Z), media_type="application/json")


async def health(_: Request) -> Response:
    return Response("ok")


@contextlib.asynccontextmanager
async def lifespan(application: Starlette) -> AsyncIterator[None]:
    url = os.environ["DATABASE_URL"].replace("+asyncpg", "")
    async with asyncpg.create_pool(url, min_size=4, max_size=10) as pool:
        application.state.pool = pool
        yield


app = Starlette(routes=[Route("/projects", list_projects), Route("/health", health)], lifespan=lifespan)
