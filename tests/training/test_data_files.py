"""What a trainer reads of a dataset with ratings, by method; the same version gives the same bytes."""

import json
from pathlib import Path
from typing import Any

from backend.datasets import versions
from backend.kit.db import Database
from backend.training import data_files
from tests.conftest import Tenant
from tests.datasets.planting import plant

TURNS = [{"role": "user", "content": "Hé?"}, {"role": "assistant", "content": "Ho."}]
ROWS: list[dict[str, Any]] = [
    {},
    {"instruction": "Rated?", "output": "Good.", "rejected": "Bad."},
    {"instruction": "Rated?", "output": "Good.", "rejected": "Worse."},
    {"instruction": "Rated?", "output": "Good."},
    {"rejected": "Later.", "history": TURNS},
    {"rejected": "Refused.", "is_valid": False},
    {"split": "eval", "rejected": "One\u2028two."},
    {"split": "eval"},
]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


async def test_each_method_has_its_own_files(db: Database, tenant: Tenant, tmp_path: Path) -> None:
    planted = await plant(db, tenant, [dict(row) for row in ROWS])
    async with db.transaction() as session:
        version, _ = await versions.freeze(session, planted.dataset_id)
    of_version = (db.transaction, planted.dataset_id, version.number)
    for name in ("dpo", "again", "lora"):
        await data_files.write(tmp_path / name, *of_version, "lora" if name == "lora" else "dpo")
        await planted.patch(1, {"data": {"rejected": f"Changed before {name}."}})
    rated = lines(tmp_path / "dpo" / "train.jsonl")
    assert rated == [
        {"prompt": "Rated?", "chosen": "Good.", "rejected": "Bad."},
        {"prompt": "Rated?", "chosen": "Good.", "rejected": "Worse."},
        {
            "prompt": [*TURNS, {"role": "user", "content": "Question 4?"}],
            "chosen": [{"role": "assistant", "content": "Answer 4."}],
            "rejected": [{"role": "assistant", "content": "Later."}],
        },
    ]
    assert lines(tmp_path / "dpo" / "eval.jsonl") == [
        {"prompt": "Question 6?", "chosen": "Answer 6.", "rejected": "One\u2028two."}
    ]
    answers = [row["messages"][-1]["content"] for row in lines(tmp_path / "lora" / "train.jsonl")]
    assert answers == ["Answer 0.", "Good.", "Answer 4."], "an answer that was rated twice is learned once"
    # The proof of every method looks at all that is held out.
    for name, method in (("dpo", "dpo"), ("lora", "lora")):
        held = lines(data_files.held_out(tmp_path / name, method))
        assert [row["messages"][-1]["content"] for row in held] == ["Answer 6.", "Answer 7."]
    for path in (tmp_path / "dpo").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
