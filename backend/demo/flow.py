"""The steps of the demo, each a call of the service's API as a user's own program would make it."""

import hashlib
import secrets
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.demo.budget import CHUNK_TOKENS, FEWEST_EXAMPLES, Budget
from backend.demo.client import JobFailed, Service
from backend.demo.errors import DemoFailed
from backend.demo.screen import Screen, Step

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
STEPS = 12
ADAPTER = "adapter_model.safetensors"
ARCHIVE = "finetuneflow_export.zip"
# Where the evaluation begins on the training job's own bar, in percent.
_TRAINED_PERCENT = 85.0
_TOO_SHORT = (
    "Use a longer document with more running text (two pages or more), or a stronger model to write the examples "
    "(set LLM_BASE_URL and LLM_MODEL)."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with the expected answer and what both models said."""

    question: str
    expected: str
    base: str
    tuned: str
    held_out: bool

    @property
    def right(self) -> bool:
        return _plain(self.tuned) == _plain(self.expected)


@dataclass(slots=True)
class Outcome:
    """What a demo found out; filled step by step."""

    document: str
    pages: int | None = None
    chunks: int = 0
    examples_train: int = 0
    examples_eval: int = 0
    eval_loss_base: float = 0.0
    eval_loss_tuned: float = 0.0
    train_seconds: float = 0.0
    adapter_bytes: int = 0
    zip: Path = Path()
    answers: list[Answer] = field(default_factory=list)


@dataclass(slots=True)
class Flow:
    """One demo on a running service."""

    service: Service
    screen: Screen
    budget: Budget
    document: Path
    downloads: Path
    project: str = ""

    def run(self) -> Outcome:
        """Every step in its order. Raises DemoFailed."""
        outcome = Outcome(document=self.document.name)
        self._log_in()
        self._make_project()
        self._upload(outcome)
        self._chunk(outcome)
        self._resolve_model()
        self._write_dataset(outcome)
        self._train(outcome)
        self._export()
        self._download(outcome)
        self._ask_both(outcome)
        return outcome

    def _log_in(self) -> None:
        with self.screen.step("Register and log in") as step:
            email, password = f"demo-{secrets.token_hex(6)}@example.com", secrets.token_urlsafe(16)
            user = {"email": email, "password": password, "name": "Demo"}
            self.service.call("POST", "/api/auth/register", json=user)
            self.service.log_in(email, password)
            step.show(note=email)

    def _make_project(self) -> None:
        with self.screen.step("Create a project") as step:
            body = {
                "name": f"Demo: {self.document.stem}"[:200],
                "task_type": "qa",
                "config": {"train_eval_split": self.budget.train_share},
            }
            project = self.service.call("POST", "/projects", json=body)
            self.project = f"/projects/{project['id']}"
            step.show(note=f"{project['name']}, task type {project['task_type']}")

    def _upload(self, outcome: Outcome) -> None:
        with self.screen.step("Upload the document", self.document.name) as step, self.document.open("rb") as file:
            answer = self.service.call(
                "POST",
                f"{self.project}/files/upload",
                files=[("files", (self.document.name, file))],
                data={"kind": "raw_doc"},
            )
            stored = answer["files"][0]
            outcome.pages = stored["page_count"]
            pages = f"{outcome.pages} pages, " if outcome.pages else ""
            step.show(note=f"{pages}{stored['character_count']:,} characters")

    def _chunk(self, outcome: Outcome) -> None:
        with self.screen.step("Cut it into chunks") as step:
            # No overlap: a sentence in two chunks could be learned from one and asked about from the other.
            sizes = {"chunk_size_tokens": CHUNK_TOKENS, "chunk_overlap_tokens": 0}
            job = self._job(step, "POST", f"{self.project}/chunks/generate", json=sizes)
            outcome.chunks = int(job["result_summary"]["chunks"])
            step.show(note=f"{outcome.chunks} chunks of up to {CHUNK_TOKENS} tokens")

    def _resolve_model(self) -> None:
        with self.screen.step("Resolve the base model", BASE_MODEL) as step:
            model = self.service.call("POST", f"{self.project}/model/resolve", json={"model_id": BASE_MODEL})
            step.show(note=f"{model['model_id'].rpartition('/')[2]}, {model['num_parameters'] / 1e6:.1f} M")

    def _write_dataset(self, outcome: Outcome) -> None:
        with self.screen.step("Write a dataset", "the language model reads the chunks") as step:
            body = {"num_examples_target": self.budget.examples_target(outcome.chunks)}
            try:
                job = self._job(step, "POST", f"{self.project}/dataset/generate", json=body)
            except JobFailed as error:
                if error.code == "NOTHING_GENERATED":
                    raise DemoFailed(f"{self.document.name} gave no usable example. {_TOO_SHORT}") from error
                raise
            found = job["result_summary"]
            outcome.examples_train, outcome.examples_eval = int(found["train"]), int(found["eval"])
            total = outcome.examples_train + outcome.examples_eval
            if total < FEWEST_EXAMPLES or not outcome.examples_eval:
                raise DemoFailed(
                    f"{self.document.name} gave {total} usable examples, and {FEWEST_EXAMPLES} are needed to train "
                    f"and to test. {_TOO_SHORT}"
                )
            step.show(note=f"{outcome.examples_train} to train, {outcome.examples_eval} held out")

    def _train(self, outcome: Outcome) -> None:
        """Two steps on the screen, one job: the worker trains, then evaluates what it saved."""
        body = {"method": "lora", "hyperparams": self.budget.hyperparams(outcome.examples_train)}
        started = self.service.call("POST", f"{self.project}/train/start", json=body)
        watch = _TrainingWatch(self.screen)
        try:
            job = self.service.follow(started["job_id"], f"{self.project}/train/logs/stream", watch.hear)
        except BaseException:
            watch.step.fail()
            raise
        found = job["result_summary"]
        outcome.eval_loss_base = float(found["eval_loss_base"])
        outcome.eval_loss_tuned = float(found["eval_loss_tuned"])
        outcome.train_seconds = float(found["train_seconds"])
        outcome.adapter_bytes = int(found["adapter_bytes"])
        watch.finish(f"held-out loss {outcome.eval_loss_base:.2f} -> {outcome.eval_loss_tuned:.2f}")

    def _export(self) -> None:
        with self.screen.step("Export") as step:
            self._job(step, "POST", f"{self.project}/export")
            files = self.service.call("GET", f"{self.project}/export/files")["files"]
            step.show(note=f"{len(files)} files")

    def _download(self, outcome: Outcome) -> None:
        with self.screen.step("Download the adapter") as step:
            files = self.service.call("GET", f"{self.project}/export/files")["files"]
            listed = next(item for item in files if item["filename"] == ARCHIVE)
            target = self.downloads / f"{self.document.stem}-adapter.zip"
            self.service.download(
                f"{self.project}/export/download",
                target,
                lambda done, total: step.show(100 * done / (total or listed["size_bytes"])),
            )
            check_archive(target, listed["sha256"])
            outcome.zip = target
            step.show(note=f"{target.stat().st_size / 1e6:.1f} MB, checksum and content verified")

    def _ask_both(self, outcome: Outcome) -> None:
        with self.screen.step("Ask both models", "the same questions") as step:
            asked = [
                *self._examples("train", self.budget.questions_seen),
                *self._examples("eval", self.budget.questions_held_out),
            ]
            body = {
                "questions": [example["data"]["instruction"] for example in asked],
                "max_new_tokens": self.budget.answer_tokens,
            }
            job = self._job(step, "POST", f"{self.project}/train/compare", json=body)
            for example, given in zip(asked, job["result_summary"]["answers"], strict=True):
                outcome.answers.append(
                    Answer(
                        question=given["question"],
                        expected=example["data"]["output"],
                        base=given["base"],
                        tuned=given["tuned"],
                        held_out=example["split"] == "eval",
                    )
                )
            step.show(note=f"{len(asked)} questions")

    def _examples(self, split: str, count: int) -> list[dict[str, Any]]:
        """Some examples, taken evenly from the whole list: no choice of the lucky ones."""
        rows = [
            row
            for row in self.service.items(f"{self.project}/dataset/examples", split=split, is_valid="true")
            if not row["data"].get("input")
        ]
        return evenly(rows, count)

    def _job(self, step: Step, method: str, path: str, **options: Any) -> dict[str, Any]:
        job_id = str(self.service.call(method, path, **options)["job_id"])

        def hear(name: str, data: dict[str, Any]) -> None:
            if name == "progress":
                step.show(float(data["progress_pct"]), str(data["message"]) or None)

        return self.service.follow(job_id, f"/jobs/{job_id}/events", hear)


class _TrainingWatch:
    """Shows a training job as two steps: the training with its live loss, then the evaluation."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._loss: float | None = None
        self._held_out: float | None = None
        self._evaluating = False
        self.step = screen.step("Fine-tune with LoRA", "preparing")

    def hear(self, name: str, data: dict[str, Any]) -> None:
        if name == "log" and data.get("train_loss") is not None:
            self._loss = float(data["train_loss"])
        elif name == "eval" and data.get("eval_loss") is not None:
            self._held_out = float(data["eval_loss"])
        elif name == "progress":
            percent, message = float(data["progress_pct"]), str(data["message"])
            if percent >= _TRAINED_PERCENT and not message.startswith("Step"):
                self._begin_evaluation()
            if self._evaluating:
                self.step.show(100 * (percent - _TRAINED_PERCENT) / (100 - _TRAINED_PERCENT), message)
            else:
                self.step.show(100 * percent / _TRAINED_PERCENT, ", ".join([message, *self._losses()]))

    def finish(self, note: str) -> None:
        self._begin_evaluation()
        self.step.show(note=note)
        self.step.finish()

    def _begin_evaluation(self) -> None:
        if not self._evaluating:
            self._evaluating = True
            self.step.show(note=", ".join(self._losses()))
            self.step.finish()
            self.step = self._screen.step("Evaluate")

    def _losses(self) -> list[str]:
        parts = []
        if self._loss is not None:
            parts.append(f"loss {self._loss:.2f}")
        if self._held_out is not None:
            parts.append(f"eval {self._held_out:.2f}")
        return parts


def check_archive(path: Path, sha256: str) -> None:
    """Raises DemoFailed unless the file is the one that the service listed, whole, and holds an adapter."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DemoFailed(f"{path} is not what the service listed (sha256 {found}, not {sha256}); start the demo again")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise DemoFailed(f"{path} is not a zip archive; start the demo again") from error
    if broken or ADAPTER not in names:
        raise DemoFailed(f"{path} is not whole: {broken or ADAPTER} cannot be read; start the demo again")


def evenly(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` rows that lie evenly over all."""
    if len(rows) <= count:
        return rows
    return [rows[int((number + 0.5) * len(rows) / count)] for number in range(count)]


def _plain(text: str) -> str:
    return " ".join("".join(sign for sign in text.lower() if sign.isalnum() or sign.isspace()).split())
