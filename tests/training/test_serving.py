"""Questions to local models through Redis and the serving process: order, limits, cancels, deaths, and what is left."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from decimal import Decimal
from math import ceil
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select

from backend.billing import ledger
from backend.billing.errors import InsufficientCharacters
from backend.billing.models import LedgerEntry
from backend.kit import redis as kit_redis
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.providers.llm.base import ChatMessage
from backend.training import adapter_files, answers, fine_tunings, serving
from backend.training.answers import Means
from backend.training.errors import (
    AnswerFailed,
    FineTuningNotFinished,
    FineTuningNotFound,
    NoAnswerInTime,
    NoServingHost,
    PromptTooLong,
    ServingBusy,
    ServingInterrupted,
    TooManyQuestions,
)
from backend.training.models import FineTuning
from backend.training.questions import Ending, Piece, Question
from backend.training.serving_host import ServingHost
from backend.training.serving_queue import ServingQueue
from tests.conftest import Tenant, registered
from tests.training.serving import adapter_of, plant_model, serving_host, until, user_of

LONG = 400


@pytest.fixture(scope="module")
async def host(app: Any) -> AsyncIterator[ServingHost]:
    async with serving_host(app) as found:
        yield found


@pytest.fixture(scope="module")
async def models(app: Any, anonymous: Any) -> AsyncIterator[list[FineTuning]]:
    """Three models of one tenant over one base."""
    async with registered(app, anonymous) as tenant:
        yield [await plant_model(app, tenant, seed=seed) for seed in range(3)]


def question(text: str = "Which lamp is bright?", **fields: Any) -> Question:
    return Question(messages=(ChatMessage("user", text),), **{"max_tokens": 16, **fields})


def endless(**fields: Any) -> Question:
    """One whose answer goes on for long: at this temperature the end token is as likely as any other."""
    return question(max_tokens=LONG, temperature=2.0, **{"seed": 5, **fields})


async def ask(app: Any, run: FineTuning, asked: Question | None = None, **options: Any) -> tuple[str, Ending]:
    services = app.state.services
    settings = options.pop("settings", services.settings)
    user_id = options.pop("user_id", None) or await user_of(services.db, run)
    parts = serving.answer(
        services.redis,
        settings,
        asked or question(),
        user_id=user_id,
        fine_tuning_id=run.id,
        **{"seconds": 120, **options},
    )
    text, ending = "", None
    async for part in parts:
        if isinstance(part, Ending):
            ending = part
        else:
            text += part.text
    assert ending is not None
    return text, ending


async def keys_left(app: Any) -> set[str]:
    return {key async for key in app.state.services.redis.scan_iter("serving:*")}


async def test_models_over_one_base_say_beside_one_another_what_each_says_alone(
    app: Any, host: ServingHost, models: list[FineTuning]
) -> None:
    alone = [(await ask(app, run))[0] for run in models]
    assert len(set(alone)) == 3
    beside = await asyncio.gather(*(ask(app, run) for run in models))
    assert [text for text, _ in beside] == alone
    for _, ending in beside:
        assert ending.finish_reason in ("stop", "length")
        assert ending.prompt_tokens
        assert ending.completion_tokens
        assert ending.first_token_ms


async def test_nothing_of_an_answer_stays_in_redis(app: Any, host: ServingHost, models: list[FineTuning]) -> None:
    await ask(app, models[0])
    left = await keys_left(app)
    assert not [key for key in left if key.startswith(("serving:request:", "serving:answer:"))]
    assert await app.state.services.redis.zcard("serving:live") == 0


async def test_the_text_comes_while_it_is_made(app: Any, host: ServingHost, models: list[FineTuning]) -> None:
    services = app.state.services
    user = await user_of(services.db, models[0])
    parts = serving.answer(
        services.redis, services.settings, endless(), user_id=user, fine_tuning_id=models[0].id, seconds=120
    )
    async with aclosing(parts):  # type: ignore[type-var]
        assert isinstance(await anext(parts), Piece)
        assert host.child.idle_seconds == 0.0, "the child is still at it"
    # Nobody waits any more: the child stops, and is not asked again before it is free.
    await until(lambda: _is_idle(host), seconds=30)
    assert (await ask(app, models[0]))[0]


async def _is_idle(host: ServingHost) -> bool:
    return not host._answering and host.child.idle_seconds > 0


async def test_a_model_of_another_a_deleted_and_an_unfinished_one(
    app: Any, host: ServingHost, db: Database, models: list[FineTuning], tenant: Tenant
) -> None:
    run = await plant_model(app, tenant)
    stranger = await user_of(db, models[0])
    with pytest.raises(FineTuningNotFound):
        await ask(app, run, user_id=stranger)
    async with db.transaction() as session:
        (await session.get_one(FineTuning, run.id)).status = "training"
    with pytest.raises(FineTuningNotFinished):
        await ask(app, run)
    owner = await user_of(db, run)
    async with db.transaction() as session:
        row = await session.get_one(FineTuning, run.id)
        row.status = "completed"
    await ask(app, run)
    folder = adapter_files.cache_folder(app.state.services.settings)
    assert list(folder.glob(f"{run.public_id}-*"))
    async with db.transaction() as session:
        services = app.state.services
        await fine_tunings.delete(session, services.storage, services.events, await session.get_one(FineTuning, run.id))
    with pytest.raises(FineTuningNotFound):
        await ask(app, run, user_id=owner)
    # It leaves this machine's disk as well.
    assert await adapter_files.forget_deleted(db, app.state.services.settings) == 1
    assert not list(folder.glob(f"{run.public_id}-*"))


async def test_what_the_model_cannot_take(app: Any, host: ServingHost, models: list[FineTuning]) -> None:
    with pytest.raises(PromptTooLong) as raised:
        await ask(app, models[0], question("lamp " * 700))
    assert "512" in raised.value.detail
    assert raised.value.status == 400


async def test_files_that_are_damaged_or_gone(app: Any, host: ServingHost, tenant: Tenant, db: Database) -> None:
    services = app.state.services
    run = await plant_model(app, tenant)
    key = f"projects/{(await _project(db, run))}/runs/{run.public_id}/1/adapter_model.safetensors"
    await services.storage.put_bytes(key, b"other bytes than those that were stored")
    with pytest.raises(AnswerFailed, match="damaged"):
        await ask(app, run)
    await services.storage.delete([key])
    with pytest.raises(AnswerFailed, match="no longer in storage"):
        await ask(app, run)
    broken = await plant_model(
        app, tenant, files={**adapter_of(1, "x"), "adapter_model.safetensors": b"no tensors at all"}
    )
    with pytest.raises(AnswerFailed) as raised:
        await ask(app, broken)
    assert raised.value.context["error_code"] == "ADAPTER_UNUSABLE"


async def _project(db: Database, run: FineTuning) -> UUID:
    from backend.projects.models import Project

    async with db.transaction() as session:
        return (await session.get_one(Project, run.project_id)).public_id


async def test_a_child_that_is_killed_in_the_middle_is_told_and_replaced(
    app: Any, host: ServingHost, models: list[FineTuning]
) -> None:
    services = app.state.services
    user = await user_of(services.db, models[0])
    expected, _ = await ask(app, models[0])
    first = host.child.pid
    parts = serving.answer(
        services.redis, services.settings, endless(), user_id=user, fine_tuning_id=models[0].id, seconds=120
    )
    with pytest.raises(ServingInterrupted):
        async for part in parts:
            assert isinstance(part, Piece)
            assert first is not None
            os.killpg(first, signal.SIGKILL)
    again, _ = await ask(app, models[0])
    assert again == expected
    assert host.child.pid != first


async def test_a_question_that_was_lost_before_its_first_token_is_asked_again(
    app: Any, host: ServingHost, models: list[FineTuning]
) -> None:
    expected, _ = await ask(app, models[1])
    await host.child.close()
    asking = asyncio.create_task(ask(app, models[1]))

    async def is_starting() -> bool:
        return host.child.pid is not None

    await until(is_starting)
    assert host.child.pid is not None
    os.killpg(host.child.pid, signal.SIGKILL)  # while it still loads
    assert (await asking)[0] == expected


async def test_limits_of_a_user_and_of_all(
    app: Any, host: ServingHost, models: list[FineTuning], settings: Settings
) -> None:
    services = app.state.services
    few = settings.model_copy(update={"serving_queue_per_user": 2})
    user = await user_of(services.db, models[0])
    going = [asyncio.create_task(ask(app, models[0], endless(), settings=few)) for _ in range(2)]

    async def both_wait() -> bool:
        return bool(await services.redis.zcard(f"serving:live:{user}") == 2)

    await until(both_wait)
    with pytest.raises(TooManyQuestions) as raised:
        await ask(app, models[0], settings=few)
    assert (raised.value.status, raised.value.headers["Retry-After"]) == (429, "2")
    full = settings.model_copy(update={"serving_queue": 2})
    with pytest.raises(ServingBusy) as busy:
        await ask(app, models[0], settings=full)
    assert (busy.value.status, busy.value.headers["Retry-After"]) == (503, "5")
    for task in going:
        task.cancel()
    await asyncio.gather(*going, return_exceptions=True)
    # Whoever leaves makes room at once.
    assert (await ask(app, models[0], settings=few))[1]


async def test_a_deadline_ends_the_answer_and_the_work(app: Any, host: ServingHost, models: list[FineTuning]) -> None:
    await ask(app, models[0])
    with pytest.raises(NoAnswerInTime):
        await ask(app, models[0], endless(), seconds=0.3)
    await until(lambda: _is_idle(host), seconds=30)


async def test_an_asker_who_dies_without_a_word_is_noticed(
    app: Any, host: ServingHost, models: list[FineTuning], db: Database
) -> None:
    """As when the API is killed: nobody renews the lease, and nobody takes the question back."""
    queue = ServingQueue(app.state.services.redis)
    question_id, user = uuid4(), await user_of(db, models[0])
    assert await queue.admit(question_id, user, models[0].id, endless(), seconds=120, limits=(4, 64)) == "admitted"

    async def is_taken() -> bool:
        return question_id in host._answering

    await until(is_taken)
    await until(lambda: _is_idle(host), seconds=30)
    await queue.leave(question_id, user)


@pytest.fixture
async def quiet(settings: Settings) -> AsyncIterator[Redis]:
    """A Redis database in which no host lives."""
    rest, number = settings.redis_url.rsplit("/", 1)
    redis = kit_redis.connect(f"{rest}/{15 - int(number)}")
    await redis.flushdb()
    yield redis
    await redis.aclose()


async def test_a_question_is_dropped_whose_asker_left_while_it_waited(quiet: Redis) -> None:
    queue = ServingQueue(quiet)
    question_id = uuid4()
    await queue.beat("host:1")
    assert await queue.admit(question_id, 1, 1, question(), seconds=9, limits=(4, 64)) == "admitted"
    assert await queue.next_id() == str(question_id)
    await queue.leave(question_id, 1)
    assert await queue.claim(question_id, "host:1") is None
    assert not await queue.publish(question_id, "token", {"text": "unheard"})
    assert {key async for key in quiet.scan_iter("*")} == {"serving:hosts"}


async def test_an_id_that_a_host_took_along_into_its_death_comes_back(quiet: Redis) -> None:
    queue = ServingQueue(quiet)
    question_id = uuid4()
    await queue.beat("dead:1")
    await queue.admit(question_id, 1, 7, question(), seconds=9, limits=(4, 64))
    assert await queue.next_id() == str(question_id)
    assert await queue.renew(question_id, 1, "")
    assert await queue.next_id() == str(question_id)
    asked = await queue.claim(question_id, "other:1")
    assert asked is not None
    assert (asked.user_id, asked.fine_tuning_id, asked.seconds) == (1, 7, 9)
    # The prompt is no longer in Redis, and the asker learns who has it.
    assert not await quiet.exists(f"serving:request:{question_id}")
    assert [event.data for event in await queue.read(question_id, after="0-0")] == [{"host": "other:1"}]
    assert await queue.claim(question_id, "third:1") is None
    # That host is silent: the asker need not wait for the deadline.
    assert not await queue.renew(question_id, 1, "other:1")


async def test_prompts_do_not_outlive_five_minutes(quiet: Redis) -> None:
    queue = ServingQueue(quiet)
    await queue.beat("host:1")
    await queue.admit(question_id := uuid4(), 1, 1, question("a secret"), seconds=9, limits=(4, 64))
    await queue.publish(question_id, "token", {"text": "a secret"})
    for key in (f"serving:request:{question_id}", f"serving:answer:{question_id}", "serving:waiting"):
        assert 0 < await quiet.pttl(key) <= 300_000, key


async def test_without_a_host_nobody_waits(quiet: Redis, settings: Settings) -> None:
    queue = ServingQueue(quiet)
    assert await queue.admit(uuid4(), 1, 1, question(), seconds=9, limits=(4, 64)) == "nobody"
    await queue.beat("host:1")
    await queue.retire("host:1")
    await quiet.zadd("serving:hosts", {"silent:1": 1})
    with pytest.raises(NoServingHost):
        async for _ in serving.answer(quiet, settings, question(), user_id=1, fine_tuning_id=1, seconds=5):
            pass
    gone = kit_redis.connect("redis://127.0.0.1:1/0")
    with pytest.raises(NoServingHost):
        async for _ in serving.answer(gone, settings, question(), user_id=1, fine_tuning_id=1, seconds=5):
            pass


async def test_a_host_that_stops_in_the_middle_is_replaced_by_another(
    app: Any, models: list[FineTuning], settings: Settings, quiet: Redis
) -> None:
    """The question goes to whoever is alive; here to one that answers by hand."""
    queue = ServingQueue(quiet)
    await queue.beat("first:1")

    async def ask_quietly() -> str:
        text = ""
        parts = serving.answer(quiet, settings, question(), user_id=1, fine_tuning_id=1, seconds=60)
        async for part in parts:
            text += part.text if isinstance(part, Piece) else ""
        return text

    asking = asyncio.create_task(ask_quietly())
    taken = None
    while taken is None:
        taken = await queue.next_id()
    assert await queue.claim(UUID(taken), "first:1") is not None
    await queue.retire("first:1")
    again = None
    while again is None:
        await queue.beat("second:1")
        again = await queue.next_id()
    assert again != taken
    assert await queue.claim(UUID(again), "second:1") is not None
    await queue.publish(UUID(again), "token", {"text": "Here."})
    await queue.publish(UUID(again), "done", {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1})
    assert await asking == "Here."


async def test_the_command_answers_until_it_is_told_to_stop(
    app: Any, models: list[FineTuning], settings: Settings, quiet: Redis, db: Database
) -> None:
    rest, number = settings.redis_url.rsplit("/", 1)
    env = {**os.environ, "REDIS_URL": f"{rest}/{15 - int(number)}"}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "backend.cli", "serve", env=env)
    try:

        async def is_alive() -> bool:
            assert process.returncode is None
            return bool(await quiet.zcard("serving:hosts"))

        await until(is_alive, seconds=60)
        user, text = await user_of(db, models[0]), ""
        parts = serving.answer(quiet, settings, question(), user_id=user, fine_tuning_id=models[0].id, seconds=200)
        async for part in parts:
            text += part.text if isinstance(part, Piece) else ""
        assert text
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() == 0
        assert not await quiet.zcard("serving:hosts")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_idle_models_give_their_memory_back(
    app: Any, host: ServingHost, models: list[FineTuning], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = await ask(app, models[2])
    monkeypatch.setattr(settings, "serving_idle_seconds", 0.2)

    async def is_gone() -> bool:
        return host.child.pid is None

    await until(is_gone)
    monkeypatch.setattr(settings, "serving_idle_seconds", 300.0)
    assert (await ask(app, models[2]))[0] == expected


async def test_the_disk_is_bounded_and_what_left_comes_back(
    app: Any, host: ServingHost, models: list[FineTuning], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter_files.cache_folder(settings)
    shutil.rmtree(folder, ignore_errors=True)
    monkeypatch.setattr(adapter_files, "_MB", 1)  # so that the setting counts bytes
    monkeypatch.setattr(settings, "serving_cache_mb", 90_000)  # an adapter has some 35,000
    expected = [(await ask(app, run))[0] for run in models]
    kept = {path.name[:36] for path in folder.iterdir()}
    assert kept == {str(run.public_id) for run in models[1:]}
    assert (await ask(app, models[0]))[0] == expected[0]


async def test_answers_are_written_into_the_ledger_when_they_have_a_price(
    app: Any, host: ServingHost, models: list[FineTuning], db: Database, settings: Settings
) -> None:
    services = app.state.services
    user = await user_of(db, models[0])
    priced = settings.model_copy(update={"serving_price_per_1k_characters": Decimal("0.02")})

    async def used() -> int:
        async with db.transaction() as session:
            total = select(func.coalesce(-func.sum(LedgerEntry.characters), 0))
            of_user = LedgerEntry.user_id == user, LedgerEntry.kind == ledger.USAGE
            return int(await session.scalar(total.where(*of_user)) or 0)

    before = await used()
    for chosen in (settings, priced):
        means = Means(db, chosen, services.sealer, services.redis, services.storage)
        text = ""
        async for part in answers.answer(means, models[0], question(), user_id=user, seconds=60):
            text += part.text if isinstance(part, Piece) else ""
    # A character of an answer costs 0.00002 here, and one of the balance 0.000365.
    assert await used() - before == ceil((len(text) + question().characters) * 0.00002 / 0.000365)
    async with db.transaction() as session:
        left = (await ledger.balance(session, user)).available
        nothing = {"user_id": user, "characters": left, "reference": f"all:{uuid4()}", "purpose": "generation"}
        await ledger.hold(session, **nothing)
    means = Means(db, priced, services.sealer, services.redis, services.storage)
    with pytest.raises(InsufficientCharacters):
        async for _ in answers.answer(means, models[0], question(), user_id=user, seconds=60):
            pass
