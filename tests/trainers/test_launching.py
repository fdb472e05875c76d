"""How the launcher treats a run's processes: whose events count, which failure is told, and that nobody is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend.trainers import launching, process
from backend.trainers.config import TrainConfig, parse_config
from backend.trainers.errors import Cancelled, TrainerError
from backend.trainers.events import Events
from backend.trainers.process import Cancellation
from tests.trainers.tiny import ConfigMaker, Recorder

# Stand-ins for the trainer's processes: what is tested here is the launcher, whatever they do.
SAY = "import json, os, signal, sys, time\ndef say(**event): print(json.dumps(event), flush=True)\n"
HANGS = "signal.signal(15, 1); signal.signal(signal.SIGUSR1, lambda *_: None); say(event='log', step=1); time.sleep(60)"
LOSES_ITS_PEER = "time.sleep(0.5); say(event='error', error='Connection closed by peer', error_code='TRAINING_FAILED')"


@dataclass
class Ended:
    gang: launching._Gang
    recorder: Recorder
    seconds: float

    def reason(self, cancel: Cancellation | None = None) -> BaseException | None:
        try:
            self.gang.conclude(cancel or Cancellation())
        except BaseException as error:
            return error
        return None


def follow(*scripts: str, cancel: Cancellation | None = None) -> Ended:
    members = [
        subprocess.Popen([sys.executable, "-c", SAY + script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for script in scripts
    ]
    gang, recorder, started = launching._Gang(members), Recorder(), time.monotonic()
    gang.follow(Events(recorder), cancel or Cancellation())  # type: ignore[arg-type]
    for member in members:
        assert member.poll() is not None, "nobody is left"
        assert member.stdout is not None
        member.stdout.close()
    return Ended(gang, recorder, time.monotonic() - started)


def test_only_the_first_one_tells_events() -> None:
    ended = follow(*(f"say(event='log', rank={rank}); say(event='warning', message='{rank}')" for rank in range(3)))
    assert [item["rank"] for item in ended.recorder.of("log")] == [0]
    assert len(ended.recorder.of("warning")) == 1
    assert ended.reason() is None


def test_a_failure_is_told_in_the_words_of_who_failed_first() -> None:
    fails = "say(event='error', error='Lower learning_rate', error_code='TRAINING_DIVERGED'); sys.exit(3)"
    ended = follow(f"{LOSES_ITS_PEER}; sys.exit(3)", fails)
    reason = ended.reason()
    assert isinstance(reason, TrainerError)
    assert (reason.code, str(reason)) == ("TRAINING_DIVERGED", "Lower learning_rate")
    assert not ended.recorder.of("error"), "the launcher's own process tells it"


def test_one_that_is_killed_takes_the_others_with_it() -> None:
    ended = follow(HANGS, "say(event='log'); time.sleep(0.3); os.kill(os.getpid(), 9)")
    assert ended.seconds < 10
    reason = ended.reason()
    assert isinstance(reason, SystemExit)
    assert reason.code == 137, "which the worker takes for a kill: the next attempt resumes"


def test_one_that_is_killed_is_the_reason_whatever_its_peers_say() -> None:
    reason = follow(f"{LOSES_ITS_PEER}; sys.exit(3)", "os.kill(os.getpid(), 9)").reason()
    assert isinstance(reason, SystemExit)


def test_a_cancel_reaches_all_and_is_no_failure() -> None:
    cancel = Cancellation()
    cancel.signal_number = 15
    waits = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(143)); say(event='log'); time.sleep(60)"
    # They are told when they listen, as those of the trainer do from their first lines on.
    members = [subprocess.Popen([sys.executable, "-c", SAY + waits], stdout=subprocess.PIPE) for _ in range(2)]
    for member in members:
        assert member.stdout is not None
        member.stdout.readline()
    gang = launching._Gang(members)
    gang.follow(Events(Recorder()), cancel)  # type: ignore[arg-type]
    assert [member.returncode for member in members] == [143, 143]
    assert not gang.ended_by_us
    with pytest.raises(Cancelled):
        gang.conclude(cancel)
    for member in members:
        assert member.stdout is not None
        member.stdout.close()


def test_one_without_room_asks_for_smaller_parts_for_all() -> None:
    asks = "say(event='smaller', parts={'halvings': 1, 'tokens': 64}, message='Out of memory'); sys.exit(4)"
    ended = follow(HANGS, asks)
    assert ended.gang.smaller is not None
    assert ended.gang.smaller["parts"] == {"halvings": 1, "tokens": 64}
    assert ended.seconds < 10


@pytest.mark.parametrize(
    ("fields", "batch", "expected"),
    [
        ({}, 4, 1),
        ({"processes": 2}, 4, 2),
        ({"processes": 8}, 1, 2),
        ({"processes": 2, "method": "dpo"}, 4, 1),
    ],
)
def test_no_more_processes_than_asked_for_or_than_a_step_has_examples(
    tmp_path: Path, train_config: ConfigMaker, fields: dict[str, Any], batch: int, expected: int
) -> None:
    config = parse_config(TrainConfig, train_config(tmp_path, fields, per_device_batch_size=batch))
    assert launching.processes(config) == expected
    reason = launching.why_one(config)
    assert (reason is not None) is (config.method == "dpo"), reason


@pytest.mark.parametrize(("visible", "left"), [(None, "0"), ("2,3", "2"), ("", "")])
def test_one_process_sees_the_first_of_the_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, left: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    process.show_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_a_signal_that_is_passed_on_is_no_second_one() -> None:
    cancel = Cancellation()
    with cancel.deferred():
        # In whichever order the two arrive.
        cancel._hear(signal.SIGUSR1, None)
        cancel._receive(signal.SIGTERM, None)
        cancel._hear(signal.SIGUSR1, None)
        assert cancel.requested
        with pytest.raises(Cancelled):
            cancel._receive(signal.SIGTERM, None)


def test_they_meet_on_loopback_only(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"no": "config"}))
    with launching._started(2, config, on_cpu=True) as gang:
        variables = [dict(_environment_of(member.pid)) for member in gang.members]
        recorder = Recorder()
        gang.follow(Events(recorder), Cancellation())  # type: ignore[arg-type]
    for rank, found in enumerate(variables):
        assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == (str(rank), "2", "127.0.0.1")
        assert found["GLOO_SOCKET_IFNAME"] == found["NCCL_SOCKET_IFNAME"] == "lo"
    with pytest.raises(TrainerError) as caught:
        gang.conclude(Cancellation())
    assert caught.value.code == "INVALID_CONFIG"


def _environment_of(pid: int) -> list[tuple[str, str]]:
    path = Path(f"/proc/{pid}/environ")
    if not path.exists():
        pytest.skip("only Linux shows a process's variables")
    pairs = [item.partition("=") for item in path.read_text().split("\0") if item]
    return [(name, value) for name, _, value in pairs]
