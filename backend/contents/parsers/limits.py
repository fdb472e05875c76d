"""How much a parser may use, passed from the parent to the child on its command line."""

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class ExtractionLimits:
    """Every bound on one extraction; whichever is hit first ends it with a typed error.

    Measured on CPython 3.11: the child starts at 30 to 60 MB of address space; a PDF of 397 pages takes 3.5 s and peaks
    at 33 MB of memory.
    """

    memory_bytes: int = 512 * 1024 * 1024
    cpu_seconds: int = 60
    # For one page, or one slice of another format: what makes a hostile file end long before the total does.
    step_cpu_seconds: float = 4.0
    timeout_seconds: float = 120.0
    pages: int = 5_000
    characters: int = 20_000_000
    blocks: int = 500_000
    output_bytes: int = 128 * 1024 * 1024
    # Of a DOCX: all its parts unpacked, and the XML parts, which cost ten times their size in memory.
    unpacked_bytes: int = 300 * 1024 * 1024
    unpacked_xml_bytes: int = 48 * 1024 * 1024
    parts: int = 5_000

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))
