"""The service as its users reach it: requests with a token, jobs followed to their end, errors as sentences."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from backend.demo.errors import DemoFailed

Job = dict[str, Any]
# What a running job tells: the event's name and data.
OnEvent = Callable[[str, dict[str, Any]], None]

ENDED = frozenset({"success", "failed", "cancelled"})
LIMIT_PATIENCE_SECONDS = 90.0
_STREAM_SILENCE_SECONDS = 60.0  # the service sends a heartbeat every 15 s
_PAGE = 200
# Between two looks at a job: often enough to watch, seldom enough for 60 GETs a minute.
_LOOK_SECONDS = 2.0
_CANCEL_SECONDS = 20.0


class JobFailed(DemoFailed):
    """A job ended without success; `code` is its error code."""

    def __init__(self, job: Job) -> None:
        reason = job.get("error_message") or f"the job was {job['status']}"
        super().__init__(str(reason))
        self.code: str | None = job.get("error_code")


@dataclass
class Service:
    """One user's session with a running service. Raises DemoFailed with the service's own sentence."""

    base_url: str
    # The job that runs now, to be cancelled on Ctrl-C.
    running: str | None = None
    _http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        # trust_env=False: a proxy that the environment names does not know this machine's loopback.
        timeout = httpx.Timeout(60.0, read=300.0)
        self._http = httpx.Client(base_url=self.base_url, timeout=timeout, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def log_in(self, email: str, password: str) -> None:
        login = self.call("POST", "/api/auth/login", json={"username": email, "password": password})
        self._http.headers["Authorization"] = f"Bearer {login['access_token']}"

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The decoded answer. Waits when the service says that it is asked too often."""
        deadline = time.monotonic() + LIMIT_PATIENCE_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, **options)
            except httpx.HTTPError as error:
                raise DemoFailed(f"the service at {self.base_url} does not answer ({_reason(error)})") from error
            if answer.status_code == 429 and time.monotonic() < deadline:
                time.sleep(retry_after_seconds(answer))
                continue
            if not answer.is_success:
                raise DemoFailed(sentence_of(answer))
            return answer.json() if answer.content else None

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Everything that a list endpoint holds, page by page."""
        offset = 0
        while True:
            page = self.call("GET", path, params={**query, "limit": _PAGE, "offset": offset})
            yield from page["items"]
            offset += _PAGE
            if offset >= page["total"]:
                return

    def download(self, path: str, target: Path, on_bytes: Callable[[int, int], None]) -> None:
        """Save a file under its name only when it is whole. Waits when the service says that it is asked too often."""
        deadline = time.monotonic() + LIMIT_PATIENCE_SECONDS
        while (pause := self._try_download(path, target, on_bytes)) is not None:
            if time.monotonic() > deadline:
                raise DemoFailed("the service is asked too often; start the demo again in a minute")
            time.sleep(pause)

    def _try_download(self, path: str, target: Path, on_bytes: Callable[[int, int], None]) -> float | None:
        """None when the file is there, else the seconds to wait before the next try."""
        partial = target.with_name(f".{target.name}.part")
        try:
            with self._http.stream("GET", path) as answer:
                if answer.status_code == 429:
                    return retry_after_seconds(answer)
                if not answer.is_success:
                    answer.read()
                    raise DemoFailed(sentence_of(answer))
                total, done = int(answer.headers.get("content-length", 0)), 0
                with partial.open("wb") as file:
                    for part in answer.iter_bytes(1024 * 1024):
                        file.write(part)
                        done += len(part)
                        on_bytes(done, total)
            partial.replace(target)
            return None
        except httpx.HTTPError as error:
            raise DemoFailed(f"the download broke off ({_reason(error)}); start the demo again") from error
        finally:
            partial.unlink(missing_ok=True)

    def follow(self, job_id: str, stream: str, on_event: OnEvent) -> Job:
        """Hand on what the job tells on its event stream until it ends; returns it. Raises JobFailed.

        A stream that breaks is taken up again where it stopped; the end is always read from the job itself.
        """
        self.running, last_id = job_id, ""
        while True:
            headers, pause = {"Last-Event-ID": last_id} if last_id else {}, _LOOK_SECONDS
            try:
                timeout = httpx.Timeout(10.0, read=_STREAM_SILENCE_SECONDS)
                with self._http.stream("GET", stream, headers=headers, timeout=timeout) as answer:
                    if answer.is_success:
                        for event_id, name, data in parse_events(answer.iter_lines()):
                            last_id = event_id or last_id
                            on_event(name, data)
                    elif answer.status_code == 429:
                        pause = retry_after_seconds(answer)
            except httpx.HTTPError:
                pass  # the job is asked below, and says if the service itself is gone
            job: Job = self.call("GET", f"/jobs/{job_id}")
            on_event("progress", {"progress_pct": job["progress_pct"], "message": job["message"]})
            if job["status"] in ENDED:
                self.running = None
                if job["status"] != "success":
                    raise JobFailed(job)
                return job
            time.sleep(pause)

    def cancel_running(self) -> bool:
        """Ask the job that runs now to stop, and wait some seconds until it has; True when there is none left."""
        if self.running is None:
            return True
        try:
            self.call("POST", f"/jobs/{self.running}/cancel")
            deadline = time.monotonic() + _CANCEL_SECONDS
            while time.monotonic() < deadline:
                if self.call("GET", f"/jobs/{self.running}")["status"] in ENDED:
                    self.running = None
                    return True
                time.sleep(1.0)
        except DemoFailed:
            pass  # it ended by itself, or the service is gone: both are an end
        return False


def parse_events(lines: Iterator[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Server-sent events as (id, name, data); heartbeats and what is not JSON are left out."""
    event_id, name, data = "", "message", ""
    for line in lines:
        if not line:
            if data:
                try:
                    decoded = json.loads(data)
                except ValueError:
                    decoded = None
                if isinstance(decoded, dict):
                    yield event_id, name, decoded
            name, data = "message", ""
        elif line.startswith("id:"):
            event_id = line[3:].strip()
        elif line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data += line[5:].strip()


def sentence_of(answer: httpx.Response) -> str:
    """The service's `detail`, or what can be said without one."""
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = None
    return str(detail) if detail else f"the service answered {answer.status_code} to {answer.request.url.path}"


def retry_after_seconds(answer: httpx.Response) -> float:
    """How long the service asks to wait, half a second to a minute."""
    try:
        return min(max(float(answer.headers["retry-after"]), 0.5), 60.0)
    except (KeyError, ValueError):
        return 2.0


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
