"""How a generation meets its target: what is refused is asked for again, and what cannot be had is said."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import func, select, update

from backend.datasets import keeping
from backend.datasets.models import ChunkMark, Example
from backend.jobs.models import Job
from backend.kit.db import Database
from tests.conftest import Tenant
from tests.datasets.lamps import SECTIONS, RunJobs, examples, id_of, make_project, manual, marks, rechunk, start
from tests.llm_server import LLMServer

Answers = Callable[[str, int, bool], list[dict[str, str]]]
_TOPICS = "keeper trader winter summer garden harbour bridge market church school forest island".split()


@pytest.fixture
async def server(llm_server: LLMServer) -> AsyncIterator[LLMServer]:
    llm_server.requests.clear()
    yield llm_server
    llm_server.mode, llm_server.delay_seconds = "good", 0.0


@pytest.fixture
async def project(tenant: Tenant, run_jobs: RunJobs) -> str:
    return await make_project(tenant, run_jobs)


def passage_of(prompt: str) -> str:
    return prompt.split("<document>")[1].split("</document>")[0].strip()


def example(sentence: str, question: str) -> dict[str, str]:
    return {"quote": sentence, "instruction": question, "input": "", "output": sentence}


def inventive(per_request: int = 99) -> Answers:
    """A model that has always another question about a passage."""
    number = itertools.count()

    def answer(prompt: str, most: int, _: bool) -> list[dict[str, str]]:
        found = passage_of(prompt)
        sentence = found[found.index("The Lamp-") :].split(". ")[0].rstrip(".") + "."
        name = sentence.split()[1]
        return [
            example(sentence, f"What would a {_TOPICS[next(number) % 12]} number {next(number)} ask about the {name}?")
            for _ in range(min(most, per_request))
        ]

    return answer


def answers_with(monkeypatch: pytest.MonkeyPatch, answer: Answers) -> None:
    """The imitated server's model from now on."""
    monkeypatch.setattr("tests.llm_server._free", answer)


async def test_the_target_is_met_although_a_third_is_refused(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = itertools.count()
    model = inventive()

    def every_third_invents(prompt: str, most: int, unstorable: bool) -> list[dict[str, str]]:
        found = model(prompt, most, unstorable)
        return [{**one, "quote": "This sentence is nowhere."} if next(turn) % 3 == 0 else one for one in found]

    answers_with(monkeypatch, every_third_invents)
    job = await run_jobs(await start(tenant, project, num_examples_target=60))
    assert job["state"] == "success", job["error_message"]
    found = job["result"]
    assert 57 <= found["valid"] <= 63
    assert found["shortfall"] is None
    assert 2 <= found["rounds"] <= 5
    assert found["total_generated"] > found["valid"]
    assert found["tokens"]["prompt"] == 100 * len(server.requests)


async def test_a_model_that_repeats_itself_is_asked_for_other_questions_and_then_left_alone(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer
) -> None:
    """The imitated model has two answers for each chunk and gives them again and again."""
    job = await run_jobs(await start(tenant, project, num_examples_target=90))
    assert job["state"] == "success", job["error_message"]
    found = job["result"]
    assert found["valid"] == 2 * SECTIONS
    short = found["shortfall"]
    assert (short["wanted"], short["valid"]) == (90, 2 * SECTIONS)
    assert "90" in short["reason"]
    assert (
        short["invalid"] == (await tenant.client.get(f"/projects/{project}/dataset/stats")).json()["validation_errors"]
    )
    assert short["chunks_exhausted"] == SECTIONS
    # The second round told it what there is; a third one was not worth the money.
    assert len(server.requests) <= 2 * SECTIONS
    stats = (await tenant.client.get(f"/projects/{project}/dataset/stats")).json()
    assert stats["report"]["shortfall"] == short


async def test_later_rounds_name_the_questions_that_are_there(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []
    from backend.datasets import asking

    original = asking.generate_for_chunk

    async def listening(model: Any, strategy: Any, chunk: Any, wanted: int) -> Any:
        seen.append(chunk.avoid)
        return await original(model, strategy, chunk, wanted)

    monkeypatch.setattr(asking, "generate_for_chunk", listening)
    answers_with(monkeypatch, inventive(per_request=1))
    job = await run_jobs(await start(tenant, project, num_examples_target=2 * SECTIONS))
    assert job["result"]["valid"] == 2 * SECTIONS
    assert seen[:SECTIONS] == [()] * SECTIONS
    assert all("ask about the Lamp-" in "".join(avoid) for avoid in seen[SECTIONS:])


async def test_a_target_far_beyond_the_documents_is_said_to_be_so(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = await make_project(tenant, run_jobs, manual(3))
    answers_with(monkeypatch, inventive())
    job = await run_jobs(await start(tenant, project, num_examples_target=100_000))
    assert job["state"] == "success", job["error_message"]
    assert job["result"]["shortfall"]["wanted"] == 100_000
    # Two facts carry four questions: no chunk is squeezed for thirty thousand.
    assert job["result"]["valid"] == 12
    assert len(server.requests) <= 9


async def test_a_target_of_one_gives_one(tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer) -> None:
    job = await run_jobs(await start(tenant, project, num_examples_target=1))
    assert (job["state"], job["result"]["valid"], job["result"]["shortfall"]) == ("success", 1, None)
    assert len(server.requests) == 1


async def test_without_a_target_each_chunk_gives_its_count(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer
) -> None:
    job = await run_jobs(await start(tenant, project, examples_per_chunk=1))
    assert (job["result"]["valid"], job["result"]["rounds"]) == (SECTIONS, 1)
    assert len(server.requests) == SECTIONS


async def test_the_count_for_each_chunk_is_a_cap_where_there_is_a_target(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, monkeypatch: pytest.MonkeyPatch, db: Database
) -> None:
    answers_with(monkeypatch, inventive())
    job = await run_jobs(await start(tenant, project, num_examples_target=90, examples_per_chunk=3))
    async with db.transaction() as session:
        counts = await session.execute(
            select(func.count())
            .where(Example.dataset_id == job["params"]["dataset_id"], Example.is_valid)
            .group_by(Example.chunk_id)
        )
        assert max(counts.scalars()) == 3
    assert job["result"]["valid"] == 3 * SECTIONS
    assert job["result"]["shortfall"]["wanted"] == 90


async def test_near_duplicates_of_other_chunks_are_dropped_and_named(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fillers = itertools.cycle(("please", "kindly", "briefly", "in short", "if you can"))

    def same_story(prompt: str, most: int, _: bool) -> list[dict[str, str]]:
        found = passage_of(prompt)
        sentence = found[found.index("The Lamp-") :].split(". ")[0]
        story = "careful owners clean the glass of such a lamp with warm water and a soft cloth before they sleep"
        one = example(f"{sentence}.", f"Tell me {next(fillers)} what {story}, and why is this so?")
        return [{**one, "output": f"It was first sold so that {story}."}][:most]

    answers_with(monkeypatch, same_story)
    job = await run_jobs(await start(tenant, project, num_examples_target=SECTIONS))
    stats = (await tenant.client.get(f"/projects/{project}/dataset/stats")).json()
    refused = await examples(tenant, project, "&is_valid=false")
    reasons = Counter(item["invalid_reason"] for item in refused)
    assert reasons[keeping.NEAR_DUPLICATE] >= 2
    assert stats["validation_errors"] == dict(reasons), job
    for item in refused:
        if item["invalid_reason"] == keeping.NEAR_DUPLICATE:
            twin = item["metadata"]["duplicate_of"]
            assert twin in {one["id"] for one in await examples(tenant, project, "&is_valid=true")}


async def test_nothing_usable_is_a_failure_that_says_what_to_do(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_with(monkeypatch, lambda *_: [example("This sentence is nowhere at all.", "What is nowhere at all?")])
    job = await run_jobs(await start(tenant, project, num_examples_target=10))
    assert (job["state"], job["error_code"]) == ("failed", "NOTHING_GENERATED")
    assert "stronger model" in job["error_message"]


async def test_a_run_that_ends_between_rounds_goes_on_without_asking_twice(
    tenant: Tenant,
    project: str,
    run_jobs: RunJobs,
    server: LLMServer,
    monkeypatch: pytest.MonkeyPatch,
    db: Database,
) -> None:
    answers_with(monkeypatch, inventive(per_request=1))
    public_id = await start(tenant, project, num_examples_target=3 * SECTIONS)
    job_id = await id_of(db, public_id)
    original = keeping.Keeper.keep
    stops = iter([(2, 5), (3, 5)])
    stop = next(stops)

    async def cut_off(self: keeping.Keeper, batch: Any, current: keeping.Round) -> None:
        await original(self, batch, current)
        if current.number == stop[0] and current.finished >= stop[1]:
            raise ConnectionError("the database went away")

    monkeypatch.setattr(keeping.Keeper, "keep", cut_off)
    for _ in range(2):
        assert (await run_jobs(public_id))["state"] == "queued"
        async with db.transaction() as session:
            await session.execute(update(Job).where(Job.id == job_id).values(available_at=None))
        stop = next(stops, (99, 0))
    job = await run_jobs(public_id)
    assert (job["state"], job["attempts"]) == ("success", 3), job["error_message"]
    assert 0.95 * 3 * SECTIONS <= job["result"]["valid"] <= 1.05 * 3 * SECTIONS
    async with db.transaction() as session:
        rounds = (
            await session.execute(
                select(ChunkMark.round, func.count(), func.count(ChunkMark.chunk_id.distinct()))
                .where(ChunkMark.job_id == job_id)
                .group_by(ChunkMark.round)
            )
        ).all()
    assert all(count == distinct for _, count, distinct in rounds)
    outputs = Counter(item["data"]["instruction"] for item in await examples(tenant, project, "&is_valid=true"))
    assert max(outputs.values()) == 1


async def test_a_model_that_goes_away_puts_the_job_back_with_what_it_has(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = inventive()

    def then_down(prompt: str, most: int, unstorable: bool) -> list[dict[str, str]]:
        if len(server.requests) >= 10:
            server.mode = "down"
        return model(prompt, most, unstorable)

    answers_with(monkeypatch, then_down)
    public_id = await start(tenant, project, num_examples_target=SECTIONS)
    job_id = await id_of(db, public_id)
    assert (await run_jobs(public_id))["state"] == "queued"
    kept = await marks(db, job_id)
    assert 0 < kept < SECTIONS
    server.mode = "good"
    answers_with(monkeypatch, model)
    server.requests.clear()
    async with db.transaction() as session:
        await session.execute(update(Job).where(Job.id == job_id).values(available_at=None))
    job = await run_jobs(public_id)
    assert (job["state"], job["result"]["valid"]) == ("success", SECTIONS)
    assert len(server.requests) == SECTIONS - kept


async def test_two_generations_of_a_project_cannot_run_at_once(tenant: Tenant, project: str, run_jobs: RunJobs) -> None:
    first = await start(tenant, project, num_examples_target=2)
    answer = await tenant.client.post(f"/projects/{project}/dataset/generate", json={"only_changed": True})
    assert (answer.status_code, answer.json()["error_code"]) == (409, "JOB_ALREADY_RUNNING")
    assert (await run_jobs(first))["state"] == "success"


async def test_a_file_that_is_deleted_in_the_middle_takes_only_its_own_examples_away(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, db: Database
) -> None:
    assert (await tenant.upload(project, "more.md", manual(12, start=100))).status_code == 201
    await rechunk(tenant, project, run_jobs)
    files = {item["filename"]: item["id"] for item in (await _files(tenant, project))}
    server.delay_seconds = 0.1
    public_id = await start(tenant, project, examples_per_chunk=1)
    job_id = await id_of(db, public_id)
    running = asyncio.create_task(run_jobs(public_id))
    while await marks(db, job_id) < 4:
        await asyncio.sleep(0.02)
    assert (await tenant.client.delete(f"/projects/{project}/files/{files['more.md']}")).status_code == 204
    job = await running
    assert job["state"] == "success", job["error_message"]
    # What was kept before the file went stays; what was under way is dropped.
    assert SECTIONS <= job["result"]["valid"] < SECTIONS + 12


async def test_a_running_generation_can_be_cancelled(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, db: Database
) -> None:
    server.delay_seconds = 0.3
    public_id = await start(tenant, project, num_examples_target=SECTIONS)
    job_id = await id_of(db, public_id)
    running = asyncio.create_task(run_jobs(public_id))
    while not await marks(db, job_id):
        await asyncio.sleep(0.02)
    assert (await tenant.client.post(f"/jobs/{public_id}/cancel")).status_code == 200
    assert (await running)["state"] == "cancelled"
    assert len(server.requests) < SECTIONS


async def test_a_cancelled_generation_leaves_the_dataset_before_it_current(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer
) -> None:
    await run_jobs(await start(tenant, project, num_examples_target=5))
    before = await examples(tenant, project)
    public_id = await start(tenant, project, num_examples_target=6)
    assert (await tenant.client.post(f"/jobs/{public_id}/cancel")).json()["status"] == "cancelled"
    assert await examples(tenant, project) == before


@pytest.mark.parametrize("labels", [None, ["only one"]])
async def test_classification_without_classes_is_refused_at_once(
    tenant: Tenant, project: str, labels: list[str] | None, db: Database
) -> None:
    from backend.projects.models import Project

    async with db.transaction() as session:
        config = {} if labels is None else {"labels": labels}
        await session.execute(
            update(Project).where(Project.public_id == project).values(task_type="classification", config=config)
        )
    for route in ("preview", "generate"):
        answer = await tenant.client.post(f"/projects/{project}/dataset/{route}")
        assert (answer.status_code, answer.json()["error_code"]) == (400, "TASK_NOT_SUPPORTED_BY_MODEL")
        assert "labels" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body", [{"num_examples_target": 0}, {"num_examples_target": 100_001}, {"judge_threshold": 6}, {"judge": "maybe"}]
)
async def test_bounds_are_checked(tenant: Tenant, body: dict[str, Any]) -> None:
    project = await tenant.make_project()
    answer = await tenant.client.post(f"/projects/{project}/dataset/generate", json=body)
    assert answer.status_code == 422, json.dumps(answer.json())


async def _files(tenant: Tenant, project: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await tenant.client.get(f"/projects/{project}/files")).json()["files"]
    return found
