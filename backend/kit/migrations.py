"""Alembic by function call: brings a database up to date, and says whether models and migrations agree."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.config import Config

FOLDER = Path(__file__).resolve().parents[2] / "migrations"


def upgrade(database_url: str, revision: str = "head") -> None:
    """Runs the migrations that are missing. Simultaneous calls take turns by an advisory lock."""
    from alembic import command

    command.upgrade(_config(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    from alembic import command

    command.downgrade(_config(database_url), revision)


def check(database_url: str) -> None:
    """Raises alembic.util.CommandError when a model has no migration."""
    from alembic import command

    command.check(_config(database_url))


def _config(database_url: str) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes["database_url"] = database_url
    return config
