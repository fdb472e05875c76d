"""The `finetuneflow` command."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from backend.kit.db import Database
    from backend.providers.stripe import Stripe

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, help="From your documents to a fine-tuned model.")

admin = typer.Typer(no_args_is_help=True, help="For whoever runs the service.")
app.add_typer(admin, name="admin")
books = typer.Typer(no_args_is_help=True, help="The characters of all accounts.")
admin.add_typer(books, name="ledger")
payments = typer.Typer(no_args_is_help=True, help="Stripe's events, and its books against ours.")
admin.add_typer(payments, name="stripe")

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
def serve() -> None:
    """Answers questions to local models, which stay loaded; one for each machine that has a card, or cores to spare."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        _fail("Models need torch to answer. Install the extra `training`: pip install 'finetuneflow[training]'.")
    import backend.models  # noqa: F401  (every mapped class must be known before the first query)
    from backend.kit.config import get_settings
    from backend.kit.log import configure_logging
    from backend.training import serving_host

    settings = get_settings()
    configure_logging(settings.log_level, json=settings.log_json)
    asyncio.run(serving_host.serve(settings))


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


@books.command()
def verify() -> None:
    """Recomputes every balance from its entries. The exit code is 1 where they differ. Work may go on meanwhile."""
    from rich.console import Console
    from rich.table import Table

    from backend.billing import auditing

    found = _with_database(auditing.verify)
    typer.echo(
        f"{found.accounts} accounts, {found.entries} entries, {found.holds} holds: "
        f"{found.posted} characters, of which {found.held} are held, and {found.owed} owed."
    )
    if not found.differences:
        typer.echo("The books are right.")
        return
    table = Table(
        "user", "what", "is", "should be", title=f"{len(found.differences)} differences", title_justify="left"
    )
    for row in found.differences:
        table.add_row(*("-" if cell is None else str(cell) for cell in (row.user_id, row.what, row.kept, row.due)))
    Console().print(table)
    typer.echo(
        "The entries are the truth. Correct what made them differ, then book the rest with `admin ledger adjust`."
    )
    raise typer.Exit(1)


@books.command(context_settings={"ignore_unknown_options": True})
def adjust(
    user: Annotated[str, typer.Argument(help="The e-mail address or the number of the account's user.")],
    characters: Annotated[int, typer.Argument(help="What is added; a negative number takes.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept in the books. Name nobody in it.")],
    reference: Annotated[
        str, typer.Option(help="Booked once, however often it is repeated; by default a new one.")
    ] = "",
) -> None:
    """Adds characters to an account by hand, or takes them."""
    from uuid import uuid4

    from backend.billing import auditing
    from backend.billing.errors import InsufficientCharacters

    if not characters or not reason.strip():
        _fail("Give a number of characters other than 0, and a reason.")
    key = reference or str(uuid4())
    try:
        found = _with_database(
            lambda db: auditing.adjust(db, user=user, characters=characters, reason=reason.strip(), reference=key)
        )
    except InsufficientCharacters as error:
        _fail(f"Only {error.context['available']} characters are available; nothing was booked.")
    if found is None:
        _fail(f"There is no user {user}.")
    said = (
        f"{characters} characters were booked" if found.booked else "This reference was booked before; nothing was done"
    )
    typer.echo(f"{said}. User {found.user_id} has {found.balance.available} available, {found.balance.held} held.")


@admin.command()
def refund(
    payment: Annotated[int, typer.Argument(help="The payment's number, as GET /api/billing/payments shows it.")],
    cents: Annotated[int | None, typer.Option(min=1, help="How much; by default all that is left.")] = None,
) -> None:
    """Gives money back through Stripe. The characters are taken back when Stripe says that it is done."""
    from backend.billing.payments import refund as give_back

    made = _with_stripe(lambda db, stripe: give_back(db, stripe, payment, cents))
    typer.echo(f"Stripe has taken the refund as {made}.")


@payments.command("events")
def list_events(
    state: Annotated[list[str], typer.Option(help="dead, parked, pending, done, ignored; may be repeated.")] = ["dead"],  # noqa: B006
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
) -> None:
    """Lists events, newest first; by default those that were given up."""
    from rich.console import Console
    from rich.table import Table

    from backend.billing import inbox

    async def find(db: "Database") -> list[tuple[str, ...]]:
        async with db.transaction() as session:
            rows = await inbox.list_events(session, state, limit)
            return [
                (
                    row.event_id,
                    row.type,
                    row.state,
                    f"{row.occurred_at:%Y-%m-%d %H:%M}",
                    row.error or row.waits_for or "",
                )
                for row in rows
            ]

    table = Table("event", "type", "state", "at", "why")
    for row in _with_database(find):
        table.add_row(*row)
    Console().print(table)


@payments.command()
def replay(
    event: Annotated[str | None, typer.Argument(help="evt_...; by default all that were given up.")] = None,
) -> None:
    """Handles events again that were given up, or one that waits. Correct first what they failed at."""
    from backend.billing import inbox
    from backend.kit.config import get_settings

    async def again(db: "Database") -> tuple[int, int]:
        async with db.transaction() as session:
            numbers = await inbox.replay(session, event)
        for number in numbers:
            await inbox.handle(db, get_settings(), number)
        async with db.transaction() as session:
            return len(numbers), await inbox.count_open(session, numbers)

    tried, left = _with_database(again)
    typer.echo(f"{tried} events were handled again, {tried - left} of them to the end.")
    if left or (event is not None and not tried):
        _fail("`finetuneflow admin stripe events --state dead --state parked --state pending` says what is left.")


@payments.command()
def reconcile(
    days: Annotated[int, typer.Option(min=1, max=29, help="How far back; Stripe keeps 30 days.")] = 3,
) -> None:
    """Fetches events that never came, and compares payments. The exit code is 1 where the books differ."""
    from backend.billing import reconciling
    from backend.kit.config import get_settings

    found = _with_stripe(lambda db, stripe: reconciling.reconcile(db, stripe, get_settings(), days=days))
    typer.echo(f"{found.events} events and {found.payments} payments at Stripe; {len(found.missing)} had not come.")
    for difference in found.differences:
        typer.echo(difference)
    raise typer.Exit(1 if found.differences else 0)


def _with_stripe(work: Callable[["Database", "Stripe"], Awaitable[T]]) -> T:
    """Runs `work` on the database and the Stripe account of the settings; what is refused is told in a sentence."""
    from backend.kit.config import get_settings
    from backend.kit.errors import DomainError
    from backend.providers.stripe import Stripe

    async def run(db: "Database") -> T:
        stripe = Stripe(get_settings())
        try:
            return await work(db, stripe)
        finally:
            await stripe.close()

    try:
        return _with_database(run)
    except DomainError as error:
        _fail(error.detail)


def _with_database(work: Callable[["Database"], Awaitable[T]]) -> T:
    """Runs `work` on the database of the settings."""
    from backend.kit.config import get_settings
    from backend.kit.db import Database

    async def run() -> T:
        import backend.models  # noqa: F401

        db = Database(get_settings().database_url, pool_size=1)
        try:
            return await work(db)
        finally:
            await db.close()

    return asyncio.run(run())


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


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
