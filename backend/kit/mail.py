"""Mail by SMTP, or into the log where no server is set; a server that fails never fails anything else."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

import aiosmtplib

from backend.kit.config import Settings

log = logging.getLogger(__name__)

IMPLICIT_TLS_PORT = 465
SEND_SECONDS = 20.0
# Mail servers refuse strangers once on purpose, and are down for moments.
RETRY_SECONDS = (3.0, 30.0)


@dataclass(frozen=True, slots=True)
class Mail:
    """One plain text to one address."""

    to: str
    subject: str
    text: str


class Mailer:
    """Sends mails; use it after the commit and outside of any transaction."""

    def __init__(self, settings: Settings, *, retry_seconds: Sequence[float] = RETRY_SECONDS) -> None:
        self._settings = settings
        self._retry_seconds = retry_seconds

    async def send(self, mail: Mail) -> bool:
        """Whether a server took it (or, without one, the log). Trouble that may pass is tried again; never raises."""
        if not self._settings.smtp_host:
            log.info("mail to %s: %s\n%s", mail.to, mail.subject, mail.text)
            return True
        for wait in (*self._retry_seconds, None):
            try:
                await self._send(mail)
                return True
            except Exception as error:  # whatever it is: there is nobody who could do something about it
                final = wait is None or not _may_pass(error)
                log.log(logging.ERROR if final else logging.WARNING, "mail %r was not sent: %r", mail.subject, error)
                if final or wait is None:
                    return False
                await asyncio.sleep(wait)
        raise AssertionError("the last try returns")

    async def _send(self, mail: Mail) -> None:
        settings = self._settings
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = settings.mail_from, mail.to, mail.subject
        message["Date"], message["Message-ID"] = formatdate(localtime=False), make_msgid(domain="finetuneflow")
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail.text)
        implicit = settings.smtp_port == IMPLICIT_TLS_PORT
        await aiosmtplib.send(
            message,
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            username=settings.smtp_username or None,
            password=settings.smtp_password.get_secret_value() or None,
            use_tls=implicit,
            start_tls=settings.smtp_starttls and not implicit,
            timeout=SEND_SECONDS,
        )


def _may_pass(error: Exception) -> bool:
    """Whether the next try may go better: no answer, or one that a server calls temporary (4yz)."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return all(400 <= refused.code < 500 for refused in error.recipients)
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return 400 <= error.code < 500
    return isinstance(error, (aiosmtplib.SMTPConnectError, aiosmtplib.SMTPServerDisconnected, TimeoutError, OSError))
