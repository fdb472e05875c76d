"""Mail over real SMTP: what is tried again, what is given up, and the log where no server is set."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from backend.kit.config import Settings
from backend.kit.mail import Mail, Mailer

MAIL = Mail(to="ann@example.com", subject="Bonjour à tous", text="Le lien :\n\nhttps://example.com/é\n")


class Server:
    """Answers DATA with each of `answers` in turn, then takes everything."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.taken: list[bytes] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.answers:
            return self.answers.pop(0)
        self.taken.append(envelope.content)
        return "250 taken"


def check_login(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: LoginPassword) -> AuthResult:
    return AuthResult(success=(data.login, data.password) == (b"user", b"secret"))


@pytest.fixture
async def server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Server, Settings]]:
    found = Server()
    options = getattr(request, "param", {})
    listening = await asyncio.get_running_loop().create_server(lambda: SMTP(found, **options), "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield found, Settings(smtp_host="127.0.0.1", smtp_port=port, smtp_starttls=False)


async def test_a_mail_arrives_whole(server: tuple[Server, Settings]) -> None:
    box, settings = server
    assert await Mailer(settings).send(MAIL)
    (raw,) = box.taken
    assert b"To: ann@example.com\r\n" in raw
    assert b"Subject: Bonjour =?utf-8?q?=C3=A0?= tous\r\n" in raw
    assert b"From: FineTuneFlow <no-reply@localhost>\r\n" in raw


async def test_trouble_that_may_pass_is_tried_again(server: tuple[Server, Settings]) -> None:
    box, settings = server
    box.answers = ["451 greylisted", "421 too busy"]
    assert await Mailer(settings, retry_seconds=(0, 0)).send(MAIL)
    assert len(box.taken) == 1


@pytest.mark.parametrize(("answers", "left"), [(["550 no such user", "250 x"], 1), (["451 later"] * 3, 0)])
async def test_what_does_not_pass_is_given_up(server: tuple[Server, Settings], answers: list[str], left: int) -> None:
    box, settings = server
    box.answers = list(answers)
    assert not await Mailer(settings, retry_seconds=(0, 0)).send(MAIL)
    assert (len(box.taken), len(box.answers)) == (0, left)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize(
    "server", [{"authenticator": check_login, "auth_require_tls": False, "auth_required": True}], indirect=True
)
async def test_a_server_that_asks_for_a_login(server: tuple[Server, Settings]) -> None:
    box, settings = server
    assert not await Mailer(settings, retry_seconds=()).send(MAIL)
    right = settings.model_copy(
        update={"smtp_username": "user", "smtp_password": Settings(smtp_password="secret").smtp_password}
    )  # type: ignore[arg-type]
    assert await Mailer(right, retry_seconds=()).send(MAIL)
    assert len(box.taken) == 1


async def test_starttls_is_demanded_where_it_is_set(server: tuple[Server, Settings]) -> None:
    box, settings = server
    demanding = settings.model_copy(update={"smtp_starttls": True})
    assert not await Mailer(demanding, retry_seconds=()).send(MAIL)
    assert box.taken == []


async def test_no_server_there_is_no_exception(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert not await Mailer(Settings(smtp_host="127.0.0.1", smtp_port=port), retry_seconds=(0,)).send(MAIL)
    assert caplog.text.count("was not sent") == 2


async def test_without_a_server_the_log_has_the_mail(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert await Mailer(Settings()).send(MAIL)
    assert "https://example.com/é" in caplog.text


async def test_an_address_cannot_bring_headers(server: tuple[Server, Settings]) -> None:
    box, settings = server
    evil = Mail(to="ann@example.com\r\nBcc: all@example.com", subject="x", text="x")
    assert not await Mailer(settings, retry_seconds=()).send(evil)
    await asyncio.sleep(0)
    assert box.taken == []
