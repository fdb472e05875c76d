"""The main job of the studio face, end to end: what each documented answer of the pipeline holds."""

import io
import json
import zipfile
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from backend.kit.config import Settings
from backend.kit.db import Database
from backend.training import cleanup
from tests.conftest import stored_keys
from tests.contracts.conftest import SAMPLE, RunJob, Walked
from tests.contracts.shapes import matches

pytestmark = pytest.mark.xdist_group("walked")

ENQUEUED = {"job_id": UUID, "status": "queued", "message": str}


def test_upload(walked: Walked) -> None:
    matches(
        walked.answers["upload"].json(),
        {
            "files": [
                {
                    "id": UUID,
                    "filename": "quillon-40.md",
                    "kind": "raw_doc",
                    "status": "ready",
                    "mime_type": "text/markdown",
                    "size_bytes": len(SAMPLE.encode()),
                    "created_at": datetime,
                }
            ]
        },
    )


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("chunk", "Chunking job enqueued"),
        ("preview", "Dataset preview job enqueued"),
        ("generate", "Dataset generation job enqueued"),
        ("export", "Export job enqueued"),
    ],
)
def test_enqueued(walked: Walked, step: str, message: str) -> None:
    matches(walked.answers[step].json(), {**ENQUEUED, "message": message})


async def test_files_by_kind(walked: Walked) -> None:
    everything = await walked.get("/files")
    matches(everything, {"files": [{"id": UUID, "kind": "raw_doc", "created_at": datetime}]})
    assert await walked.get("/files", kind="raw_doc") == everything
    assert await walked.get("/files", kind="dataset_upload") == {"files": []}


async def test_chunks(walked: Walked) -> None:
    page = await walked.get("/chunks", limit=2, offset=1)
    chunk = {"id": UUID, "source_file_id": UUID, "chunk_index": int, "content": str, "token_count": int}
    matches(page, {"items": [{**chunk, "metadata": dict}], "total": int})
    assert [item["chunk_index"] for item in page["items"]] == [1, 2]
    assert all(0 < item["token_count"] <= 256 for item in page["items"])
    everything = await walked.get("/chunks", limit=500)
    assert len(everything["items"]) == everything["total"] == page["total"] > 3
    source = page["items"][0]["source_file_id"]
    assert (await walked.get("/chunks", source_file_id=source))["total"] == page["total"]


async def test_examples(walked: Walked) -> None:
    page = await walked.get("/dataset/examples", split="train", is_valid="true", limit=5)
    data = {"instruction": str, "input": str, "output": str}
    item = {"id": UUID, "split": "train", "data": data, "is_valid": True, "token_count": int, "created_at": datetime}
    counts = ("total", "valid", "invalid", "train", "eval", "avg_token_count")
    matches(page, {"items": [item], "total": int, "stats": dict.fromkeys(counts, int)})
    assert len(page["items"]) == 5
    stats = page["stats"]
    assert stats["train"] == page["total"]
    assert stats["train"] + stats["eval"] == stats["valid"] == stats["total"] - stats["invalid"]
    assert stats["eval"] > 0
    assert (await walked.get("/dataset/examples", split="eval"))["total"] == stats["eval"]
    assert 0 < (await walked.get("/dataset/examples", split="preview"))["total"] <= 10
    # Every example rests on the document.
    flat = " ".join(SAMPLE.split())
    for example in page["items"]:
        assert " ".join(example["data"]["output"].split()) in flat


async def test_dataset_stats(walked: Walked) -> None:
    stats = await walked.get("/dataset/stats")
    split = dict.fromkeys(("count", "avg_tokens", "min_tokens", "max_tokens"), int)
    shape = {"total": int, "valid": int, "invalid": int, "by_split": {"train": split, "eval": split}}
    matches(stats, {**shape, "validation_errors": dict})
    train = stats["by_split"]["train"]
    assert 0 < train["min_tokens"] <= train["avg_tokens"] <= train["max_tokens"]
    assert stats["by_split"]["train"]["count"] + stats["by_split"]["eval"]["count"] == stats["valid"]
    assert sum(stats["validation_errors"].values()) == stats["invalid"]


def test_generation_summary(walked: Walked) -> None:
    result = walked.jobs["generate"]["result"]
    matches(result, {"total_generated": int, "valid": int})


def test_resolve(walked: Walked, base_model: str) -> None:
    matches(
        walked.answers["resolve"].json(),
        {
            "model_id": base_model,
            "model_type": "llama",
            "num_parameters": int,
            "estimated_vram_fp16_gb": float,
            "estimated_vram_4bit_gb": float,
            "architecture": "LlamaForCausalLM",
            "vocab_size": 512,
            "max_position_embeddings": 512,
            "license": "apache-2.0",
            "valid": True,
            "warnings": [],
        },
    )


METRICS = {
    "step": int,
    "total_steps": int,
    "train_loss": float,
    "eval_loss": float,
    "learning_rate": float,
    "epoch": float,
}


def test_train_start(walked: Walked) -> None:
    message = "Training job enqueued on gpu_queue"
    matches(walked.answers["start"].json(), {**ENQUEUED, "run_id": UUID, "message": message})


def test_train_status_while_queued(walked: Walked) -> None:
    status = walked.answers["queued"].json()
    matches(status, {"run_id": UUID, "status": "queued", "progress_pct": 0, "elapsed_seconds": 0, "started_at": None})
    assert set(METRICS) <= set(status["current_metrics"])


async def test_train_status_at_the_end(walked: Walked) -> None:
    status = await walked.get("/train/status")
    started = walked.answers["start"].json()
    shape = {"run_id": UUID, "job_id": UUID, "status": "success", "method": "lora", "progress_pct": 100}
    matches(status, {**shape, "current_metrics": METRICS, "started_at": datetime, "elapsed_seconds": int})
    assert (status["run_id"], status["job_id"]) == (started["run_id"], started["job_id"])
    metrics = status["current_metrics"]
    assert metrics["step"] == metrics["total_steps"]
    assert metrics["eval_loss_tuned"] < metrics["eval_loss_base"]


async def test_train_log_stream(walked: Walked) -> None:
    events = []
    async with walked.tenant.client.stream("GET", f"{walked.path}/train/logs/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        block: dict[str, str] = {}
        async for line in answer.aiter_lines():
            key, _, value = line.partition(": ")
            block[key] = value
            if not line:
                if "event" in block:
                    events.append((block["event"], json.loads(block["data"])))
                block = {}
    of = {name: [data for event, data in events if event == name] for name, _ in events}
    step = {"step": int, "train_loss": float, "learning_rate": float, "epoch": float}
    matches([one for one in of["log"] if "step" in one], [step])
    matches(of["progress"], [{"progress_pct": int, "message": str}])
    matches(of["eval"], [{"step": int, "eval_loss": float, "perplexity": float}])
    matches(of["checkpoint"], [{"step": int, "path": str}])
    assert events[-1][0] == "complete"
    matches(events[-1][1], {"status": "success", "duration_seconds": int, "final_train_loss": float})


EXPORTED = [
    "adapter_model.safetensors",
    "adapter_config.json",
    "training_config.json",
    "metrics.json",
    "report.md",
    "finetuneflow_export.zip",
]


async def test_export_files_and_downloads(walked: Walked) -> None:
    listed = await walked.get("/export/files")
    matches(listed, {"files": [{"filename": str, "size_bytes": int}]})
    sizes = {item["filename"]: item["size_bytes"] for item in listed["files"]}
    assert set(EXPORTED) <= set(sizes)
    assert list(sizes)[-1] == "finetuneflow_export.zip"
    client = walked.tenant.client
    for name, size in sizes.items():
        answer = await client.get(f"{walked.path}/export/download/{name}")
        assert (answer.status_code, len(answer.content)) == (200, size)
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    archive = await client.get(f"{walked.path}/export/download")
    assert archive.headers["content-disposition"] == 'attachment; filename="finetuneflow_export.zip"'
    with zipfile.ZipFile(io.BytesIO(archive.content)) as zipped:
        assert zipped.testzip() is None
        assert set(zipped.namelist()) == set(sizes) - {"finetuneflow_export.zip"}
        config = json.loads(zipped.read("adapter_config.json"))
        assert config["r"] == 8
        assert "Did it get better?" in zipped.read("report.md").decode()


@pytest.mark.parametrize(
    "name",
    [
        "secret",
        "..",
        "../../secret",
        "..%2f..%2fsecret",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%5csecret",
        "%00",
        "a" * 4000,
        "metrics.json%00.md",
        "METRICS.JSON",
        "metrics.json/",
        "%2fetc%2fpasswd",
        "%ff",
    ],
)
async def test_only_the_listed_names_are_downloaded(walked: Walked, name: str) -> None:
    client = walked.tenant.client
    url = client.build_request("GET", "/").url.copy_with(raw_path=f"{walked.path}/export/download/{name}".encode())
    answer = await client.get(url, follow_redirects=False)
    # A client shortens '..' by itself, which leads to another address; '/' at the end is sent on to the true one.
    assert answer.status_code in (404, 405, 307), answer.text
    if answer.status_code != 307:
        assert answer.json()["error_code"] in ("EXPORT_NOT_FOUND", "NOT_FOUND", "METHOD_NOT_ALLOWED")


async def test_exporting_again_leaves_one_export(walked: Walked, app: Any, run_jobs: RunJob) -> None:
    prefix = f"projects/{walked.project}/exports"
    before = await stored_keys(app, prefix)
    answer = await walked.tenant.client.post(f"{walked.path}/export")
    assert (await run_jobs(answer.json()["job_id"]))["state"] == "success"
    after = await stored_keys(app, prefix)
    assert len(after) == len(before)
    assert not set(after) & set(before)
    assert (await walked.tenant.client.get(f"{walked.path}/export/download")).status_code == 200


async def test_compare(walked: Walked) -> None:
    answers = walked.jobs["compare"]["result"]["answers"]
    matches(answers, [{"question": "What is the Quillon 40?", "base": str, "tuned": str}])


async def test_project_detail_and_list(walked: Walked, base_model: str) -> None:
    detail = await walked.get()
    stats = {"file_count": 1, "chunk_count": int, "example_count": int, "last_job_status": "success"}
    head = {"id": UUID, "name": "Quillon", "description": None, "task_type": "qa", "base_model_id": base_model}
    times = {"created_at": datetime, "updated_at": datetime}
    matches(detail, {**head, **times, "model_info": dict, "status": "trained", "config": dict, "stats": stats})
    assert detail["stats"]["chunk_count"] > 3
    assert detail["stats"]["example_count"] >= 20


JOB = {
    "id": UUID,
    "type": str,
    "status": "success",
    "progress_pct": 100,
    "result_summary": dict,
    "created_at": datetime,
    "started_at": datetime,
    "finished_at": datetime,
    "error_message": None,
}


async def test_jobs(walked: Walked) -> None:
    jobs = (await walked.get("/jobs"))["jobs"]
    matches(jobs, [JOB])
    # A job that is over does not show its last step as if it were still at it.
    assert {job["message"] for job in jobs} == {"Done"}
    assert {job["type"] for job in jobs} >= {
        "chunk_generate",
        "dataset_preview",
        "dataset_generate",
        "training",
        "export",
    }
    generated = (await walked.get("/jobs", type="dataset_generate"))["jobs"]
    assert [job["type"] for job in generated] == ["dataset_generate"]
    matches(generated[0]["result_summary"], {"total_generated": int, "valid": int})
    assert (await walked.get("/jobs", status="success"))["jobs"] == (await walked.get("/jobs"))["jobs"]
    assert (await walked.get("/jobs", status="failed", type="training")) == {"jobs": []}
    one = await walked.tenant.client.get(f"/jobs/{generated[0]['id']}")
    assert one.json() == generated[0]


async def test_a_finished_job_is_not_cancelled(walked: Walked) -> None:
    job = walked.answers["chunk"].json()["job_id"]
    answer = await walked.tenant.client.post(f"/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["error_code"]) == (409, "JOB_ALREADY_ENDED")
    answer = await walked.tenant.client.post(f"{walked.path}/train/cancel")
    assert (answer.status_code, answer.json()["error_code"]) == (409, "NO_TRAINING_RUNNING")


async def test_usage_is_counted(walked: Walked) -> None:
    profile = (await walked.tenant.client.get("/api/users/me")).json()
    files = (await walked.get("/files"))["files"]
    assert profile["total_characters_used"] == sum(item["character_count"] for item in files)


async def test_no_run_folder_is_left(walked: Walked, settings: Settings, db: Database) -> None:
    await cleanup.clear_run_folders(db, settings)
    assert not (settings.data_dir / "runs" / walked.answers["start"].json()["run_id"]).exists()


async def test_a_walked_run_names_its_version_everywhere(walked: Walked) -> None:
    named = (await walked.get("/train/status"))["dataset"]
    listed = [version for version in (await walked.get("/dataset/versions"))["versions"] if version["run_ids"]]
    run = (await walked.get("/train/status"))["run_id"]
    assert [
        (version["dataset_id"], version["number"], version["sha256"], version["run_ids"]) for version in listed
    ] == [(named["id"], named["version"], named["sha256"], [run])]
    download = f"{walked.path}/export/download"
    config = (await walked.tenant.client.get(f"{download}/training_config.json")).json()
    assert config["dataset"] == named
    assert config["base_model_id"] == "tiny-llama", "the trainer's own words are still there"
    report = (await walked.tenant.client.get(f"{download}/report.md")).text
    assert f"- Dataset: `{named['id']}`, version {named['version']}, SHA-256 `{named['sha256']}`" in report
