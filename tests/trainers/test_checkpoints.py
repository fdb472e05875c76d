"""Whole-or-absent folders: torn ones are passed over, trees round-trip without a pickle, a run folder has one owner."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from backend.trainers.errors import TrainerError


def make(run_dir: Path, step: int) -> Path:
    from backend.trainers import checkpoints

    with checkpoints.whole_folder(run_dir / f"checkpoint-{step}", manifest=True) as folder:
        (folder / "weights").write_bytes(b"w" * 1000)
        (folder / "state.json").write_text(str(step))
    return run_dir / f"checkpoint-{step}"


def test_the_newest_whole_checkpoint_wins(tmp_path: Path) -> None:
    from backend.trainers import checkpoints

    for step in (9, 10, 100):
        make(tmp_path, step)
    newest = checkpoints.newest_whole(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-100"
    checkpoints.keep_newest(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no manifest", "half a manifest", "empty manifest"])
def test_torn_checkpoints_are_passed_over_and_deleted(tmp_path: Path, damage: str) -> None:
    from backend.trainers import checkpoints

    good, torn = make(tmp_path, 1), make(tmp_path, 2)
    weights, manifest = torn / "weights", torn / checkpoints.MANIFEST
    if damage == "truncate":
        os.truncate(weights, 999)
    elif damage == "flip":
        weights.write_bytes(b"w" * 999 + b"x")
    elif damage == "remove":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        os.truncate(manifest, manifest.stat().st_size // 2)
    else:
        manifest.write_text('{"files": {}}')
    assert checkpoints.newest_whole(tmp_path) == good
    assert not torn.exists()


def test_a_failure_while_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    from backend.trainers import checkpoints

    target = make(tmp_path, 5)

    def write_and_fail() -> None:
        with checkpoints.whole_folder(target, manifest=True) as folder:
            (folder / "weights").write_bytes(b"new")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_and_fail()
    assert checkpoints.is_whole(target)
    assert (target / "weights").read_bytes() == b"w" * 1000
    leftover = tmp_path / ".checkpoint-6.partial"
    leftover.mkdir()
    assert checkpoints.newest_whole(tmp_path) == target
    assert not leftover.exists()


def test_files_follow_the_umask(tmp_path: Path) -> None:
    from backend.trainers import checkpoints

    before = os.umask(0o027)
    try:
        with checkpoints.whole_folder(tmp_path / "model") as folder:
            (folder / "secretive").touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model" / "secretive").stat().st_mode) == 0o640


def test_trees_round_trip(tmp_path: Path) -> None:
    import random

    import numpy
    import torch

    from backend.trainers import checkpoints

    shared = torch.arange(4, dtype=torch.uint8)
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    value: dict[Any, Any] = {
        "optimizer": optimizer.state_dict(),
        "random": (random.getstate(), numpy.random.get_state(), torch.get_rng_state()),
        "shared": [shared, shared],
        "plain": {"none": None, "dict": 1, "tensor": "x", 3: (1.5, True)},
    }
    checkpoints.save_tree(value, tmp_path / "state")
    loaded = checkpoints.load_tree(tmp_path / "state")
    assert loaded["plain"] == value["plain"]
    assert loaded["random"][0] == random.getstate()
    current: Any = numpy.random.get_state()
    numpy.testing.assert_array_equal(loaded["random"][1][1], current[1])
    assert loaded["random"][1][1].dtype == numpy.uint32
    assert torch.equal(loaded["random"][2], torch.get_rng_state())
    assert torch.equal(loaded["shared"][1], shared)
    again = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3, 2))], lr=0.5)
    again.load_state_dict(loaded["optimizer"])
    assert again.param_groups[0]["lr"] == 0.1
    assert torch.equal(again.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    with pytest.raises(TypeError, match="cannot hold object"):
        checkpoints.save_tree({"x": object()}, tmp_path / "bad")


def test_a_run_folder_has_one_owner(tmp_path: Path) -> None:
    from backend.trainers import checkpoints

    with checkpoints.locked(tmp_path / "run"):
        with pytest.raises(TrainerError) as caught, checkpoints.locked(tmp_path / "run"):
            pytest.fail("two owners")
        assert caught.value.code == "RUN_FOLDER_BUSY"
    with checkpoints.locked(tmp_path / "run"):
        pass
