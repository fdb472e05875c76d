"""How much memory a process may use on this machine: all of it, or what its container leaves to it."""

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
# The file that holds the limit, in control groups of version 2 and of version 1.
_LIMITS = ("memory.max", "memory.limit_in_bytes")


def usable_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int:
    """The machine's memory, or the lowest limit of the control groups that this process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_limits(cgroups, own)])


def _limits(cgroups: Path, own: Path) -> list[int]:
    """All that are set, in bytes. A group's limit holds for the groups inside it."""
    found = []
    for folder in [cgroups, cgroups / "memory", *_groups(cgroups, own)]:
        for name in _LIMITS:
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except OSError:
                continue
            # "max" means none; version 1 writes a number beyond all memory instead.
            if text.isdigit():
                found.append(int(text))
    return found


def _groups(cgroups: Path, own: Path) -> list[Path]:
    """The folders of this process's groups and of those around them, which a container does not always see."""
    folders = []
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers not in ("", "memory"):
            continue
        top = cgroups / controllers if controllers else cgroups
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [top.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return folders
