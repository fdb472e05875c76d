"""The `finetuneflow` command."""

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="From your documents to a fine-tuned model.")

admin = typer.Typer(no_args_is_help=True, help="For whoever runs the service.")
app.add_typer(admin, name="admin")

DataDir = Annotated[Path | None, typer.Option(help="The folder for everything that is kept (DATA_DIR).")]


@app.command()
def up(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes any that is free.")] = 8000,
    data_dir: DataDir = None,
) -> None:
    """Serves the whole product from one folder until Ctrl-C."""
    from backend.embedded.foreground import run_up

    raise typer.Exit(run_up(_options(host=host, port=port, data_dir=data_dir)))


@app.command()
def demo(
    file: Annotated[Path | None, typer.Argument(help="A PDF, DOCX, TXT or MD file; by default the sample.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Turns a document into a fine-tuned model through the service's own API, and shows the proof."""
    from backend.demo.run import run_demo

    raise typer.Exit(run_demo(file, _options(host="127.0.0.1", port=0, data_dir=data_dir)))


@app.command()
def api(
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8000,
    workers: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Runs the API alone, on the servers that the settings name."""
    from backend.embedded.services import UVICORN_OPTIONS
    from backend.kit.config import get_settings

    if get_settings().auth_mode == "local" and host not in ("127.0.0.1", "localhost", "::1"):
        _fail(f"AUTH_MODE=local has no login, so it must not listen on {host}. Set AUTH_MODE=token.")
    command = ["-m", "uvicorn", "backend.main:app", "--host", host, "--port", str(port), "--workers", str(workers)]
    os.execv(sys.executable, [sys.executable, *command, *UVICORN_OPTIONS])


@app.command()
def worker(
    queue: Annotated[str, typer.Argument(help="default, llm, gpu or control")],
    concurrency: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Runs a worker for one queue, on the servers that the settings name."""
    from backend.embedded.services import WORKER_OPTIONS

    _celery("worker", "-Q", queue, "-c", str(concurrency), "-n", f"{queue}@%h", *WORKER_OPTIONS, "-l", "warning")


@app.command()
def beat() -> None:
    """Runs the scheduler; the worker of the queue `control` does what it asks for."""
    from backend.kit.config import get_settings

    folder = get_settings().data_dir
    folder.mkdir(parents=True, exist_ok=True)
    _celery("beat", "-s", str(folder / "beat-schedule"), "--pidfile=")


@app.command()
def migrate() -> None:
    """Brings the database of the settings up to date."""
    from backend.kit import migrations
    from backend.kit.config import get_settings

    migrations.upgrade(get_settings().database_url)
    typer.echo("The database is up to date.")


@app.command()
def doctor() -> None:
    """Says what this machine has and what it lacks."""
    from backend.doctor import examine

    raise typer.Exit(examine())


@admin.command()
def rotate_keys() -> None:
    """Seals users' provider keys anew under the first of ENCRYPTION_KEYS. The service may go on meanwhile."""
    from backend.kit.config import get_settings
    from backend.kit.crypto import Sealer
    from backend.kit.db import Database
    from backend.users.provider_keys import rotate

    settings = get_settings()

    async def run() -> tuple[int, int]:
        import backend.models  # noqa: F401

        db = Database(settings.database_url, pool_size=1)
        try:
            return await rotate(db, Sealer(settings.sealing_keys))
        finally:
            await db.close()

    rotated, lost = asyncio.run(run())
    typer.echo(f"{rotated} keys were sealed anew.")
    if lost:
        _fail(
            f"{lost} keys could not be opened: list the secrets that sealed them in ENCRYPTION_KEYS, after the first."
        )
    typer.echo("ENCRYPTION_KEYS may now drop all but the first.")


def _options(*, host: str, port: int, data_dir: Path | None):  # type: ignore[no-untyped-def]  # imported late
    from backend.embedded.stack import StackOptions
    from backend.kit import migrations

    given = {} if data_dir is None else {"data_dir": data_dir}
    options = StackOptions.from_environment(host=host, port=port, migrate=migrations.upgrade, **given)
    # Other hosts may be working on a database of their own; on ours, nobody is alive before we start.
    return options if options.database_url else replace(options, on_start=_release_jobs)


def _release_jobs(database_url: str) -> None:
    """No worker is alive yet, so every running job was left behind: the first sweep takes it up again."""
    from backend.jobs.service import expire_leases
    from backend.kit.db import Database

    async def release() -> None:
        import backend.models  # noqa: F401

        db = Database(database_url, pool_size=1)
        async with db.transaction() as session:
            await expire_leases(session)
        await db.close()

    asyncio.run(release())


def _celery(*arguments: str) -> None:
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", "celery_app.app", *arguments])


def _fail(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(2)
