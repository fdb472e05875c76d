"""The sample document in the tree is the one that its script makes."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_sample_is_reproducible(tmp_path: Path) -> None:
    target = tmp_path / "again.pdf"
    subprocess.run([sys.executable, str(EXAMPLES / "make_sample.py"), str(target)], check=True, timeout=60)
    assert target.read_bytes() == (EXAMPLES / "quillon-40.pdf").read_bytes()


def test_the_sample_is_small() -> None:
    assert (EXAMPLES / "quillon-40.pdf").stat().st_size < 200_000
