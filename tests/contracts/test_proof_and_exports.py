"""What a finished run proves and how it leaves: evaluation, report, judge, models in all formats, broken downloads."""

import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backend.kit.config import Settings
from tests.contracts.conftest import RunJob, Walked
from tests.contracts.shapes import matches
from tests.llm_server import LLMServer

pytestmark = pytest.mark.xdist_group("walked")

FIGURES = {"loss": float, "perplexity": float, "token_f1": float, "exact_match": float}


async def number_of(walked: Walked) -> int:
    runs = (await walked.tenant.client.get("/api/fine-tunings")).json()
    assert len(runs) == 1
    return int(runs[0]["id"])


async def test_the_run_ends_with_a_proof(walked: Walked) -> None:
    found = await walked.get("/train/evaluation")
    held_out = (await walked.get("/dataset/stats"))["by_split"]["eval"]["count"]
    assert found["examples"] == found["questions_asked"] == len(found["answers"]) == held_out
    matches(found["base"], FIGURES)
    matches(found["tuned"], FIGURES)
    status = (await walked.get("/train/status"))["current_metrics"]
    for model in ("base", "tuned"):
        assert found[model]["loss"] == pytest.approx(status[f"eval_loss_{model}"], rel=0.02)
    assert found["loss_difference"]["low"] <= found["loss_difference"]["mean"] <= found["loss_difference"]["high"] < 0
    assert found["verdict"] in ("better", "no_better", "worse")
    assert f"{found['tuned']['loss']:.3f}" in found["sentence"]
    assert [document["name"] for document in found["documents"]] == ["quillon-40.md"]
    assert found["documents"][0]["examples"] == held_out
    examples = (await walked.get("/dataset/examples", split="eval", limit=500))["items"]
    assert {answer["expected"] for answer in found["answers"]} == {item["data"]["output"] for item in examples}
    assert all(answer["document"] == "quillon-40.md" for answer in found["answers"])


async def test_both_faces_show_the_same_proof_and_report(walked: Walked) -> None:
    number = await number_of(walked)
    client = walked.tenant.client
    shown = (await client.get(f"/api/fine-tunings/{number}/evaluation")).json()
    assert shown == await walked.get("/train/evaluation")
    reports = [await client.get(path) for path in (f"{walked.path}/train/report", f"/api/fine-tunings/{number}/report")]
    assert reports[0].headers["content-type"] == "text/markdown; charset=utf-8"
    assert reports[0].text == reports[1].text
    assert shown["sentence"] in reports[0].text
    assert "| token F1 of the answers |" in reports[0].text
    assert "## By document" in reports[0].text
    assert "## Answers to held-out questions" in reports[0].text


async def test_a_judge_compares_the_answers(
    walked: Walked, run_jobs: RunJob, settings: Settings, monkeypatch: pytest.MonkeyPatch, llm_server: LLMServer
) -> None:
    path = f"{walked.path}/train/evaluation/judge"
    refused = await walked.tenant.client.post(path)
    assert (refused.status_code, refused.json()["error_code"]) == (400, "NO_JUDGE")
    monkeypatch.setattr(settings, "llm_judge_model", "imitation-70b")
    answer = await walked.tenant.client.post(path)
    assert answer.status_code == 202, answer.text
    job = await run_jobs(answer.json()["job_id"])
    assert job["state"] == "success", job
    found = await walked.get("/train/evaluation")
    judge = found["judge"]
    # This one always prefers the first place, so that nobody wins.
    assert judge["judged"] == judge["ties"] == len(found["answers"])
    assert (judge["tuned_wins"], judge["base_wins"], judge["unjudged"]) == (0, 0, 0)
    assert judge["sentence"] in (await walked.tenant.client.get(f"{walked.path}/train/report")).text


@pytest.fixture(scope="module")
async def files(walked: Walked, run_jobs: RunJob) -> AsyncIterator[dict[str, dict[str, Any]]]:
    """The export in all formats, by the platform's route, by filename."""
    number = await number_of(walked)
    client = walked.tenant.client
    body = {"formats": ["merged", "gguf-f16", "gguf-q8_0"]}
    answer = await client.post(f"/api/fine-tunings/{number}/export", json=body)
    assert answer.status_code == 202, answer.text
    job = await run_jobs(answer.json()["task_id"])
    assert job["state"] == "success", job
    assert (job["kind"], job["queue"]) == ("model_export", "gpu")
    assert set(job["result"]["drift"]) == {"merged", "gguf-f16", "gguf-q8_0"}
    yield {item["filename"]: item for item in (await client.get(f"/api/fine-tunings/{number}/files")).json()}
    # The run is everybody's: it is left with the export that it had.
    again = await client.post(f"{walked.path}/export")
    assert (await run_jobs(again.json()["job_id"]))["state"] == "success"


async def test_models_leave_in_all_formats_with_all_that_describes_them(
    walked: Walked, files: dict[str, dict[str, Any]]
) -> None:
    names = {"README.md", "export.json", "evaluation.json", "model-f16.gguf", "model-q8_0.gguf"}
    merged = {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"}
    assert names | {f"merged/{name}" for name in {*merged, "training_config.json"}} <= set(files)
    client = walked.tenant.client
    for item in files.values():
        answer = await client.get(item["download_url"])
        assert (answer.status_code, len(answer.content)) == (200, item["size_bytes"])
        assert hashlib.sha256(answer.content).hexdigest() == item["sha256"]
    archive = await client.get(f"{walked.path}/export/download")
    with zipfile.ZipFile(io.BytesIO(archive.content)) as zipped:
        assert zipped.testzip() is None
        assert set(zipped.namelist()) == set(files) - {"finetuneflow_export.zip"}
        card = zipped.read("README.md").decode()
        described = json.loads(zipped.read("export.json"))
    version = (await walked.get("/train/status"))["dataset"]
    assert described["dataset"] == version
    assert card.startswith("---\nbase_model: ")
    assert "license: apache-2.0" in card
    for part in (version["sha256"], "| lora_r | 8 |", "PeftModel", "merged", "model-q8_0.gguf", "| loss |"):
        assert part in card, part


async def test_a_broken_download_goes_on_where_it_was(walked: Walked, files: dict[str, dict[str, Any]]) -> None:
    client = walked.tenant.client
    item = files["model-q8_0.gguf"]
    whole = (await client.get(item["download_url"])).content
    etag = f'"{item["sha256"]}"'
    got = b""
    # The connection breaks again and again: each request reads some of the answer and leaves.
    while len(got) < len(whole):
        headers = {"Range": f"bytes={len(got)}-", "If-Range": etag} if got else {}
        async with client.stream("GET", item["download_url"], headers=headers) as answer:
            assert answer.status_code == (206 if got else 200)
            assert answer.headers["etag"] == etag
            if got:
                expected = f"bytes {len(got)}-{len(whole) - 1}/{len(whole)}"
                assert answer.headers["content-range"] == expected
                assert int(answer.headers["content-length"]) == len(whole) - len(got)
            async for part in answer.aiter_bytes(50_000):
                got += part
                break
    assert hashlib.sha256(got).hexdigest() == item["sha256"]


@pytest.mark.parametrize(
    ("headers", "status", "part"),
    [
        ({"Range": "bytes=0-9"}, 206, slice(0, 10)),
        ({"Range": "bytes=5-5"}, 206, slice(5, 6)),
        ({"Range": "bytes=-7"}, 206, slice(-7, None)),
        ({"Range": "bytes=3-99999999999"}, 206, slice(3, None)),
        ({"Range": "bytes=-99999999999"}, 206, slice(0, None)),
        ({"Range": "bytes=9-3"}, 200, slice(0, None)),
        ({"Range": "bytes=0-1,5-6"}, 200, slice(0, None)),
        ({"Range": "lines=0-1"}, 200, slice(0, None)),
        ({"Range": "bytes=0-9", "If-Range": '"another"'}, 200, slice(0, None)),
        ({"Range": "bytes=0-9", "If-Range": "Sun, 22 Nov 2026 10:00:00 GMT"}, 200, slice(0, None)),
        ({"Range": "bytes=99999999999-"}, 416, None),
        ({"Range": "bytes=-0"}, 416, None),
    ],
)
async def test_ranges_of_a_file(
    walked: Walked, files: dict[str, dict[str, Any]], headers: dict[str, str], status: int, part: slice | None
) -> None:
    url = f"{walked.path}/export/download/merged/config.json"
    whole = await walked.tenant.client.get(url)
    assert whole.headers["accept-ranges"] == "bytes"
    answer = await walked.tenant.client.get(url, headers=headers)
    assert answer.status_code == status, answer.text
    if part is None:
        assert answer.headers["content-range"] == f"bytes */{len(whole.content)}"
        assert answer.json()["error_code"] == "RANGE_NOT_SATISFIABLE"
    else:
        assert answer.content == whole.content[part]
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert ("content-range" in answer.headers) == (status == 206)


async def test_unknown_formats_are_refused(walked: Walked) -> None:
    answer = await walked.tenant.client.post(f"{walked.path}/export", json={"formats": ["pickle"]})
    assert answer.status_code == 422
    assert "formats" in answer.json()["detail"]
