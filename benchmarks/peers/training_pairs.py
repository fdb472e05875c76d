"""Invented question-answer pairs: short ones as the service makes them, and long ones of 512 to 1024 tokens."""

import random
from typing import Literal

_NAMES = ("Orla", "Bram", "Tess", "Ivo", "Mina", "Kato", "Lena", "Rufus")
_TOWNS = ("Velden", "Harbury", "Oster", "Quill", "Marrow", "Pelham")
_TRADES = ("baker", "glazier", "pilot", "surveyor", "tailor", "brewer")

Kind = Literal["short", "long"]


def build(kind: Kind, count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """`count` conversations of a question and its answer. Seven of ten short answers are one sentence."""
    chance = random.Random(seed)
    return [_pair(kind, chance) for _ in range(count)]


def _pair(kind: Kind, chance: random.Random) -> list[dict[str, str]]:
    name, town, trade = chance.choice(_NAMES), chance.choice(_TOWNS), chance.choice(_TRADES)
    asked = (f"Who is the {trade} in {town}?", f"What does {name} of {town} do, and since when?")
    answer = [f"{name} is the {trade} of {town} and has held the post since {chance.randint(1900, 1999)}."]
    if kind == "long":
        answer += [_remark(chance) for _ in range(chance.randint(45, 85))]
    elif chance.random() < 0.3:
        answer += [_remark(chance) for _ in range(chance.randint(2, 9))]
    return [
        {"role": "user", "content": chance.choice(asked)},
        {"role": "assistant", "content": " ".join(answer)},
    ]


def _remark(chance: random.Random) -> str:
    return chance.choice(
        (
            f"The guild records of {chance.choice(_TOWNS)} confirm it.",
            f"{chance.choice(_NAMES)} keeps the ledger of the year {chance.randint(1900, 1999)}.",
            f"Every {chance.choice(_TRADES)} there learns the trade for seven years.",
        )
    )
