"""Documents about lamps, and a project made of them: one chunk per section, facts of its own in each."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import func, select

from backend.datasets.models import ChunkMark
from backend.jobs.models import Job
from backend.kit.db import Database
from tests.conftest import Tenant

RunJobs = Callable[[str], Awaitable[dict[str, Any]]]
SECTIONS = 24
SIZES = {"chunk_size_tokens": 64, "chunk_overlap_tokens": 0}
# Words that tell sections apart: a document in which all sections say the same would leak whatever is held out.
_TOWNS = "Osterby Wendel Karstad Brunmoor Felling Tarnow Quellin Hartsee Morvik Lunden Pelham Strome".split()
_MAKERS = "smith potter weaver glazier miller cooper tanner sailor baker fisher carver joiner".split()
_PARTS = "shade wick handle chimney burner reservoir bracket collar valve gasket mantle ferrule".split()
_STUFF = "copper bronze walnut pewter marble linen cork ivory amber slate nickel wool".split()


def sentences(number: int) -> list[str]:
    """Two facts about lamp `number`, in words that few other lamps have."""
    town, maker = _TOWNS[number % 12], _MAKERS[(number * 5 + number // 12) % 12]
    part, stuff = _PARTS[(number * 7 + number // 12) % 12], _STUFF[(number * 11 + 3 * (number // 12)) % 12]
    return [
        f"The Lamp-{number} was first sold in {town} by an old {maker}.",
        f"A {part} made of {stuff} gives {number} turns of light to Lamp-{number} each night.",
    ]


def manual(sections: int = SECTIONS, start: int = 0) -> bytes:
    """A section per lamp, each with facts of its own."""
    parts = [f"# Lamp {number}\n\n{' '.join(sentences(number))}\n" for number in range(start, start + sections)]
    return "\n".join(parts).encode()


async def make_project(
    tenant: Tenant, run_jobs: RunJobs, content: bytes | None = None, *, name: str = "lamps.md", **fields: Any
) -> str:
    """A project with one document, chunked."""
    project = await tenant.make_project(**fields)
    assert (await tenant.upload(project, name, manual() if content is None else content)).status_code == 201
    await rechunk(tenant, project, run_jobs)
    return project


async def rechunk(tenant: Tenant, project: str, run_jobs: RunJobs) -> None:
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate", json=SIZES)).json()
    assert (await run_jobs(job["job_id"]))["state"] == "success"


async def start(tenant: Tenant, project: str, **body: Any) -> str:
    """Asks for the dataset; the job's public id."""
    answer = await tenant.client.post(f"/projects/{project}/dataset/generate", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


async def examples(tenant: Tenant, project: str, query: str = "") -> list[dict[str, Any]]:
    answer = await tenant.client.get(f"/projects/{project}/dataset/examples?limit=500{query}")
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def marks(db: Database, job_id: int) -> int:
    async with db.transaction() as session:
        return int(
            await session.scalar(select(func.count()).select_from(ChunkMark).where(ChunkMark.job_id == job_id)) or 0
        )


async def id_of(db: Database, public_id: str) -> int:
    async with db.transaction() as session:
        return (await session.scalars(select(Job.id).where(Job.public_id == public_id))).one()


def canary() -> str:
    """A word that nothing else contains."""
    return f"Zq{secrets.token_hex(6)}"
