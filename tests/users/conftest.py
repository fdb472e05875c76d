"""A mail server of the tests' own, which the service sends to."""

import asyncio
import re
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from backend.kit.background import Background


class Mailbox:
    """All that the server took; `refusal` makes it refuse instead."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self.mails: list[EmailMessage] = []
        self.refusal = ""

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.refusal:
            return self.refusal
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))  # type: ignore[arg-type]
        return "250 taken"

    async def to(self, address: str) -> list[EmailMessage]:
        """The mails to an address, once nothing is on its way any more."""
        await self._background.idle()
        return [mail for mail in self.mails if mail["To"] == address]

    async def token(self, address: str) -> str:
        """The token in the latest mail to an address."""
        found = re.search(r"\?token=([\w-]{43})\s", text_of((await self.to(address))[-1]))
        assert found is not None
        return found[1]


def text_of(mail: EmailMessage) -> str:
    return str(mail.get_content())


@pytest.fixture
async def mailbox(app: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mailbox]:
    services = app.state.services
    await services.background.idle()
    box = Mailbox(services.background)
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(box), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for name, value in {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_starttls": False}.items():
            monkeypatch.setattr(services.settings, name, value)
        yield box
        await services.background.idle()
