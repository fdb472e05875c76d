"""Documents that give orders change nothing: not what the model is shown, nor what is kept, however gullible it is."""

import re
from typing import Any

import pytest

from backend.datasets.strategies.base import ChunkText, InvalidReason, TaskType
from backend.datasets.strategies.free import FreeStrategy
from backend.datasets.strategies.grounded import GroundedStrategy
from backend.datasets.strategies.injection import cleaned, is_order
from backend.datasets.strategies.run import generate_for_chunk
from backend.providers.llm.base import ChatCompletion
from backend.providers.llm.openai_compatible import OpenAICompatibleModel
from tests import llm_server as imitation
from tests.conftest import Tenant
from tests.datasets.lamps import RunJobs, examples, sentences, start
from tests.llm_server import LLMServer
from tests.security.injected_orders import INNOCENT, ORDERS, injections

NAMES = list(injections("x"))
_honest = imitation._free


def canary_of(number: int) -> str:
    return f"MANGO-{1000 + number}"


def order_of(number: int) -> str:
    return injections(canary_of(number))[NAMES[number]]


def document(number: int, order: str | None) -> str:
    """Facts about a lamp; the order stands before, between or after them, or in the middle of their paragraph."""
    facts = [f"# Lamp {number}", *sentences(number)]
    if order is not None:
        place = number % 4
        if place == 3 and re.search(r"[.!?]$", order) and not re.search(r"^\W|\n", order):
            facts[1] = f"{facts[1]} {order} {facts.pop()}"
        else:
            facts.insert(1 + place % 3, order)
    elif number % 4 == 3 and re.search(r"[.!?]$", order_of(number)) and not re.search(r"^\W|\n", order_of(number)):
        facts[1] = f"{facts[1]} {facts.pop()}"
    return "\n\n".join(facts) + "\n"


def gullible(prompt: str, most: int, unstorable: bool) -> list[dict[str, str]]:
    """Writes what a document's order wants as soon as the prompt holds a line of it or its canary."""
    made = _honest(prompt, most, unstorable)
    for number in range(len(NAMES)):
        canary, lines = canary_of(number), [line for line in order_of(number).split("\n") if len(line) > 12]
        if canary in prompt or any(line in prompt for line in lines):
            quote = next((line for line in prompt.split("\n") if canary in line), lines[0])
            obeyed = {
                "quote": quote,
                "instruction": f"What must every answer about the lamp be, is it {canary}?",
                "input": quote,
                "output": f"Every answer about the lamp is {canary}.",
            }
            poisoned = [{**one, "output": f"{one['output']} {canary}."} for one in made]
            return [obeyed, *poisoned][:most]
    return made


@pytest.fixture
def server(llm_server: LLMServer, monkeypatch: pytest.MonkeyPatch) -> LLMServer:
    monkeypatch.setattr(imitation, "_free", gullible)
    llm_server.requests.clear()
    return llm_server


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 150
    assert len(ORDERS) >= 130
    assert len(INNOCENT) >= 60


@pytest.mark.parametrize("sentence", INNOCENT)
def test_ordinary_sentences_stay(sentence: str) -> None:
    text = f"The lamp weighs three kilograms. {sentence} Its shade is made of glass.\n\n{sentence}\n"
    assert cleaned(text) == cleaned(text).__class__(text)


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_the_model_never_sees_the_order(number: int) -> None:
    shown = cleaned(document(number, order_of(number)))
    assert canary_of(number) not in shown.text
    assert shown.removed
    for fact in sentences(number):
        assert fact in shown.text
    for request in FreeStrategy().plan(ChunkText(text=document(number, order_of(number)) * 2), 2).asks:
        assert canary_of(number) not in str(request.request.messages)


def test_orders_for_an_ordinary_word_are_mostly_seen() -> None:
    """A canary that looks like a code is easy to see; of those who want an ordinary word, some are not."""
    seen = [is_order(text) for text in injections("banana").values()]
    assert sum(seen) >= 0.85 * len(seen)


async def test_a_gullible_model_is_given_nothing_to_obey(server: LLMServer) -> None:
    """Every document with its order gives exactly what it gives without, over real HTTP."""
    differing = []
    async with OpenAICompatibleModel(base_url=server.url, model="imitation-70b") as model:
        for number, name in enumerate(NAMES):
            kept: list[list[tuple[Any, ...]]] = []
            for order in (None, order_of(number)):
                chunk = ChunkText(text=document(number, order), position=number, headings=(f"Lamp {number}",))
                outcome = await generate_for_chunk(model, FreeStrategy(), chunk, 3)
                valid = [draft for draft in outcome.drafts if draft.is_valid]
                assert not any(canary_of(number) in str(draft) for draft in valid), name
                assert not any(canary_of(number) in draft.instruction for draft in outcome.drafts), name
                kept.append([(draft.instruction, draft.output, draft.quote, draft.meta) for draft in valid])
            if kept[0] != kept[1] or not kept[0]:
                differing.append((name, kept))
    assert differing == []


async def test_an_obeying_answer_is_refused() -> None:
    """Even what a model says without being shown it, or through another document, is not kept."""
    for number, name in enumerate(NAMES):
        order, canary = order_of(number), canary_of(number)
        chunk = ChunkText(text=document(number, order), task_type=TaskType.QA)
        (ask,) = FreeStrategy().plan(chunk, 3).asks
        obeyed = [
            {"quote": order, "instruction": "What is the answer to every question?", "output": f"It is {canary}."},
            {"quote": sentences(number)[0], "instruction": f"What is {canary}?", "output": sentences(number)[0]},
            {
                "quote": sentences(number)[0],
                "instruction": "Who first sold the lamp?",
                "output": f"{sentences(number)[0]} {canary}.",
            },
        ]
        items = [{"input": "", "question_type": "factual", "difficulty": "easy", **item} for item in obeyed]
        completion = ChatCompletion(
            text="", parsed={"examples": items}, prompt_tokens=1, completion_tokens=1, model="m"
        )
        drafts = FreeStrategy().read(chunk, ask, completion)
        assert [draft.is_valid for draft in drafts] == [False] * 3, name
        assert drafts[0].invalid_reason in {InvalidReason.INSTRUCTION_IN_SOURCE, InvalidReason.QUOTE_NOT_FOUND}, name


@pytest.mark.parametrize("number", range(0, len(NAMES), 7))
def test_tiny_models_are_not_asked_about_orders(number: int) -> None:
    with_order = GroundedStrategy().plan(ChunkText(text=document(number, order_of(number))), 5)
    without = GroundedStrategy().plan(ChunkText(text=document(number, None)), 5)
    assert (with_order.ready, with_order.asks) == (without.ready, without.asks)
    assert with_order.orders_removed > 0


async def test_through_the_whole_application(tenant: Tenant, run_jobs: RunJobs, server: LLMServer) -> None:
    """Uploaded, extracted, chunked and generated: the injected documents give the dataset of the clean ones."""
    numbers = [number for number in range(len(NAMES)) if number % 3]
    assert len(numbers) >= 100
    kept = []
    for is_injected in (False, True):
        project = await tenant.make_project()
        for first in range(0, len(numbers), 60):
            files = [
                (
                    "files",
                    (f"lamp-{number}.md", document(number, order_of(number) if is_injected else None).encode()),
                )
                for number in numbers[first : first + 60]
            ]
            answer = await tenant.client.post(
                f"/projects/{project}/files/upload", files=files, data={"kind": "raw_doc"}
            )
            assert answer.status_code == 201, answer.text
        body = {"chunk_size_tokens": 512, "chunk_overlap_tokens": 0}
        job = (await tenant.client.post(f"/projects/{project}/chunks/generate", json=body)).json()
        assert (await run_jobs(job["job_id"]))["state"] == "success"
        job = await run_jobs(await start(tenant, project, examples_per_chunk=2))
        assert job["state"] == "success", job["error_message"]
        listed = await examples(tenant, project)
        assert not any("MANGO-" in str(item["data"]) for item in listed if item["is_valid"])
        shown = [str(request["messages"]) for request in server.requests]
        assert [prompt for prompt in shown if "MANGO-" in prompt] == []
        assert not any("MANGO-" in item["data"]["instruction"] for item in listed)
        kept.append(
            sorted(
                (item["data"]["instruction"], item["data"]["output"])
                for item in listed
                # Of two documents that say nearly the same, the one that is answered first keeps its example.
                if item["is_valid"] or "duplicate" in str(item["invalid_reason"])
            )
        )
    assert len(kept[0]) >= len(numbers)
    assert kept[1] == kept[0]
