"""Datasets with examples, put straight into the tables, for tests that look at what happens to them afterwards."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select

from backend.datasets.fingerprints import fingerprint
from backend.datasets.models import Dataset, Example
from backend.kit.db import Database
from backend.projects.models import Project
from tests.conftest import Tenant


@dataclass
class Planted:
    """A project of a tenant with one ready dataset; `ids` are the examples' public ids in their order."""

    tenant: Tenant
    project: str
    dataset_id: int
    ids: list[str]

    @property
    def path(self) -> str:
        return f"/projects/{self.project}/dataset"

    async def get(self, rest: str, status: int = 200, **params: Any) -> Any:
        answer = await self.tenant.client.get(f"{self.path}{rest}", params=params)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def send(self, method: str, rest: str, body: Any = None, status: int = 200) -> Any:
        answer = await self.tenant.client.request(method, f"{self.path}{rest}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    async def patch(self, number: int, body: Any, status: int = 200) -> Any:
        return await self.send("PATCH", f"/examples/{self.ids[number]}", body, status)


def example(dataset_id: int, number: int, **fields: Any) -> Example:
    """A valid training example unless the fields say otherwise."""
    values = {
        "split": "train",
        "instruction": f"Question {number}?",
        "input": "",
        "output": f"Answer {number}.",
        "token_count": 10 + number,
        **fields,
    }
    texts = [values[name] for name in ("instruction", "input", "output")]
    return Example(dataset_id=dataset_id, fingerprint=fingerprint(*texts, values.get("history")), **values)


async def plant(db: Database, tenant: Tenant, rows: list[dict[str, Any]]) -> Planted:
    """One example for each dict of fields."""
    project = await tenant.make_project()
    async with db.transaction() as session:
        owner = (await session.scalars(select(Project).where(Project.public_id == UUID(project)))).one()
        dataset = Dataset(project_id=owner.id, name="Planted", status="ready")
        session.add(dataset)
        await session.flush()
        examples = [example(dataset.id, number, **fields) for number, fields in enumerate(rows)]
        session.add_all(examples)
        await session.flush()
        return Planted(tenant, project, dataset.id, [str(row.public_id) for row in examples])
