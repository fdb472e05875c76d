"""Chunks of a project's documents."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedProject, WindowDep
from backend.api.studio.schemas import EnqueuedOut, enqueued
from backend.contents import queries, service

router = APIRouter(prefix="/projects/{project_id}/chunks", tags=["chunks"], route_class=IdempotentRoute)


class ChunksIn(BaseModel):
    chunk_size_tokens: int = Field(default=512, ge=32, le=8192)
    chunk_overlap_tokens: int = Field(default=50, ge=0, le=4096)


class ChunkOut(BaseModel):
    id: UUID
    source_file_id: UUID
    chunk_index: int
    content: str
    token_count: int
    metadata: dict[str, Any]


class ChunkListOut(BaseModel):
    items: list[ChunkOut]
    total: int


@router.post("/generate", status_code=202, responses=error_responses(400, 404, 409))
async def generate_chunks(
    project: OwnedProject, session: SessionDep, services: ServicesDep, body: ChunksIn | None = None
) -> EnqueuedOut:
    sizes = body or ChunksIn()
    job = await service.start_chunking(
        session,
        services.broker,
        project,
        chunk_size_tokens=sizes.chunk_size_tokens,
        chunk_overlap_tokens=sizes.chunk_overlap_tokens,
    )
    return enqueued(job, "Chunking job enqueued")


@router.get("", responses=error_responses(404))
async def list_chunks(
    project: OwnedProject,
    session: SessionDep,
    window: WindowDep,
    source_file_id: Annotated[UUID | None, Query()] = None,
) -> ChunkListOut:
    page = await queries.page_chunks(session, project, window, source_file=source_file_id)
    items = [
        ChunkOut(
            id=row.public_id,
            source_file_id=row.source_file_id,
            chunk_index=row.chunk_index,
            content=row.text,
            token_count=row.token_count,
            metadata=row.meta,
        )
        for row in page.items
    ]
    return ChunkListOut(items=items, total=page.total)
