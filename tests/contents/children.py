"""The parser processes of a process, as Linux shows them."""

from pathlib import Path


def parser_children(parent: int) -> list[int]:
    """Ids of the children that already run the parser: before that, a child still shows its parent's memory."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        found += [int(pid) for pid in read(task / "children").split()]
    return [pid for pid in found if "backend.contents.parsers" in read(Path(f"/proc/{pid}/cmdline"))]


def peak_memory_bytes(pid: int) -> int:
    """The most resident memory so far; 0 once the process has ended."""
    for line in read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def is_running(pid: int) -> bool:
    fields = read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return bool(fields) and fields[0] != "Z"


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
