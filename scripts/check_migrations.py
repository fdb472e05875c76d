"""Migrates an empty database up, down and up again, and asks Alembic whether the models say anything else."""

import sys

from alembic.util import CommandError

from backend.embedded.servers import temporary_servers
from backend.kit import migrations


def main() -> int:
    with temporary_servers() as servers:
        migrations.upgrade(servers.database_url)
        try:
            migrations.check(servers.database_url)
        except CommandError as error:
            print(f"The models and the migrations differ: {error}")
            return 1
        migrations.downgrade(servers.database_url, "base")
        migrations.upgrade(servers.database_url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
