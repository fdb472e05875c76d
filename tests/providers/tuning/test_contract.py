"""The same behaviour of every adapter, over real HTTP: what a job goes through, and what each fault becomes."""

import socket
import traceback
import uuid
from pathlib import Path
from typing import Any

import pytest

from backend.providers.llm.base import ChatMessage
from backend.providers.tuning.base import (
    ProviderAnswerBroken,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnavailable,
    TuningError,
)
from tests.providers.tuning.conftest import ADAPTERS, SECRET, Case, make_job

EPOCHS = {
    "openai": lambda body: body["method"]["supervised"]["hyperparameters"] == {"n_epochs": 2},
    "mistral": lambda body: body["hyperparameters"] == {"epochs": 2},
    "together": lambda body: body["n_epochs"] == 2 and body["training_type"] == {"type": "Lora"},
    "fireworks": lambda body: body["epochs"] == 2,
    "bedrock": lambda body: body["hyperParameters"] == {"epochCount": "2"},
}
QUESTION = [ChatMessage("system", "Be brief."), ChatMessage("user", "hello there")]


async def test_a_job_goes_its_way_to_a_model(case: Case) -> None:
    sent = await case.provider.submit(case.job)
    job = case.imitation.job
    assert EPOCHS[case.name](job.body)
    contents = [content for _, content in case.imitation.files.values()]
    assert case.job.training_file.read_bytes() in contents
    assert case.job.validation_file
    assert case.job.validation_file.read_bytes() in contents

    job.stage = "preparing"
    assert (await case.poll(sent)).status == "preparing"
    job.stage, job.step = "training", 4
    progress = await case.poll(sent)
    assert progress.status == "training"
    assert not progress.ended
    assert progress.result_model is None
    if case.name != "bedrock":  # it tells no steps
        assert progress.progress == 40
    if case.name in ("openai", "mistral", "bedrock"):
        assert progress.metrics["training_loss"] == 0.5
    job.stage, job.step = "completed", 10
    progress = await case.poll(sent)
    assert (progress.status, progress.progress, progress.result_model) == ("completed", 100, case.imitation.result)
    assert progress.ended
    assert case.imitation.served.count("create") == 1


async def test_a_failure_keeps_the_words_of_the_provider(case: Case) -> None:
    sent = await case.provider.submit(case.job)
    case.imitation.job.stage, case.imitation.job.words = "error", f"Line 3 is empty, says {SECRET}."
    progress = await case.poll(sent)
    assert (progress.status, progress.error_message) == ("error", "Line 3 is empty, says [key]")
    assert progress.result_model is None


async def test_a_cancel_reaches_the_provider(case: Case) -> None:
    sent = await case.provider.submit(case.job)
    case.imitation.job.stage = "training"
    await case.provider.cancel(sent.external_id)
    assert (await case.poll(sent)).status == "cancelled"


async def test_a_cancel_that_comes_too_late_lets_the_end_stand(case: Case) -> None:
    sent = await case.provider.submit(case.job)
    case.imitation.job.stage = "completed"
    await case.provider.cancel(sent.external_id)
    assert (await case.poll(sent)).status == "completed"


async def test_a_job_is_found_after_an_answer_that_never_came(case: Case) -> None:
    case.imitation.faults["create"] = "accepted then silent"
    with pytest.raises(ProviderUnavailable):
        await case.provider.submit(case.job)
    case.imitation.faults.clear()
    found = await case.provider.find(case.job.our_id)
    assert found is not None
    assert case.imitation.served.count("create") == 1
    case.imitation.job.stage = "completed"
    assert (await case.poll(found)).result_model == case.imitation.result


async def test_what_was_found_is_what_was_submitted(case: Case) -> None:
    assert await case.provider.find(case.job.our_id) is None
    sent = await case.provider.submit(case.job)
    found = await case.provider.find(case.job.our_id)
    assert found is not None
    assert found.external_id == sent.external_id


async def test_an_upload_that_broke_leaves_no_job(case: Case) -> None:
    case.imitation.faults["upload"] = 500
    with pytest.raises(ProviderUnavailable):
        await case.provider.submit(case.job)
    case.imitation.faults.clear()
    assert await case.provider.find(case.job.our_id) is None
    await case.provider.submit(case.job)
    assert len(case.imitation.jobs) == 1


@pytest.mark.parametrize("fault", [400, 429])
async def test_files_of_a_job_that_was_not_taken_are_taken_back(case: Case, fault: int) -> None:
    case.imitation.faults["create"] = fault
    with pytest.raises(TuningError):
        await case.provider.submit(case.job)
    assert case.imitation.served.count("upload") == 2
    assert not case.imitation.files


async def test_a_refused_second_submit_leaves_the_files_of_the_job(case: Case) -> None:
    await case.provider.submit(case.job)
    case.imitation.faults["create"] = 400
    with pytest.raises(ProviderRefused):
        await case.provider.submit(case.job)
    assert len(case.imitation.jobs) == 1
    assert len(case.imitation.files) >= 2


FAULTS: dict[Any, type[TuningError]] = {
    400: ProviderRefused,
    401: ProviderRefused,
    403: ProviderRefused,
    404: ProviderRefused,
    429: ProviderRateLimited,
    500: ProviderUnavailable,
    503: ProviderUnavailable,
    "cut": ProviderUnavailable,
    "malformed": ProviderAnswerBroken,
}


@pytest.mark.parametrize("operation", ["create", "poll"])
@pytest.mark.parametrize("fault", list(FAULTS))
async def test_each_fault_has_its_error(case: Case, fault: Any, operation: str) -> None:
    case.imitation.words = f"No good: {SECRET}"
    sent = None if operation == "create" else await case.provider.submit(case.job)
    case.imitation.faults[operation] = fault
    with pytest.raises(FAULTS[fault]) as caught:
        await (case.provider.submit(case.job) if sent is None else case.poll(sent))
    error = caught.value
    # Tried once: whether twice is safe is for the caller to know.
    assert case.imitation.served.count(operation) == 1
    assert error.retryable is (FAULTS[fault] is not ProviderRefused)
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(error.context) + repr(case.provider)
    assert SECRET not in shown
    if isinstance(fault, int):
        assert "No good: [key]" in error.words
    if isinstance(error, ProviderRefused):
        assert error.provider_status == fault
    if isinstance(error, ProviderRateLimited):
        assert error.retry_after == 7


async def test_an_unknown_status_is_no_end(case: Case) -> None:
    sent = await case.provider.submit(case.job)
    case.imitation.job.stage = "strange"
    with pytest.raises(ProviderAnswerBroken, match=r"(?i)dreaming"):
        await case.poll(sent)


async def test_silence_ends_in_time(case: Case) -> None:
    sent = await case.provider.submit(case.job)
    case.imitation.faults["poll"] = "accepted then silent"
    with pytest.raises(ProviderUnavailable):
        await case.poll(sent)


@pytest.mark.parametrize("name", list(ADAPTERS))
async def test_nobody_there(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    provider = ADAPTERS[name][1](f"http://127.0.0.1:{port}")
    for attempt in (provider.find(uuid.uuid4()), provider.submit(make_job(name, tmp_path))):
        with pytest.raises(ProviderUnavailable):
            await attempt
    await provider.aclose()


async def test_the_trained_model_answers(case: Case) -> None:
    model = case.imitation.result
    case.imitation.models.add(model)
    assert await case.provider.answer(model, QUESTION) == "You said: hello there"
    pieces = [piece async for piece in case.provider.stream(model, QUESTION)]
    assert pieces == ["You", "said:", "hello", "there"]


async def test_a_model_that_is_not_there_is_refused(case: Case) -> None:
    with pytest.raises(ProviderRefused) as caught:
        await case.provider.answer(case.imitation.result, QUESTION)
    assert caught.value.provider_status == 404
    with pytest.raises(ProviderRefused):
        async for _ in case.provider.stream(case.imitation.result, QUESTION):
            pass


async def test_forgetting_takes_the_files_away_and_may_be_repeated(case: Case) -> None:
    sent = await case.provider.submit(case.job)
    assert len(case.imitation.files) == 2
    await case.provider.forget(sent.external_id, sent.state)
    assert not case.imitation.files
    await case.provider.forget(sent.external_id, sent.state)


async def test_an_estimate_makes_nothing(case: Case) -> None:
    estimate = await case.provider.estimate(case.job)
    assert estimate.reasoning
    assert not case.imitation.seen
