"""YouTube on loopback: an HTTP proxy that answers for its hosts, over TLS, with the pages that the wheel of
youtube-transcript-api brings.

What it does not know is how YouTube behaves today: it holds still where the real one changes.
"""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_ASSETS = files("youtube_transcript_api.test.assets")
NAMES = ("*.youtube.com", "youtube.com", "youtu.be", "*.googlevideo.com", "*.ytimg.com")


def asset(name: str) -> bytes:
    return _ASSETS.joinpath(f"{name}.static").read_bytes()


def player(**changes: Any) -> dict[str, Any]:
    """The answer that has captions, with some of its keys replaced."""
    found: dict[str, Any] = json.loads(asset("youtube.innertube.json"))
    details = {**found["videoDetails"], **changes.pop("videoDetails", {})}
    return {**found, "videoDetails": details, **changes}


@dataclass
class YouTube:
    """`answers` maps paths to (status, body); `requests` records host and path; `audio` is what googlevideo sends."""

    port: int = 0
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    audio: bytes = b""
    certificate: Path = Path()
    pace_seconds: float = 0.0  # the pause after each 64 KiB of sound

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def show(
        self, answer: dict[str, Any] | bytes, *, page: str = "youtube.html", captions: bytes | None = None
    ) -> None:
        """What the video is from now on."""
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.answers = {
            "/watch": (200, asset(page)),
            "/youtubei/v1/player": (200, body),
            "/api/timedtext": (200, asset("transcript.xml") if captions is None else captions),
        }

    def show_sound(self, audio: bytes, **changes: Any) -> None:
        """A video without captions, whose sound (an M4A file) can be downloaded."""
        sound = {
            "itag": 139,
            "url": "https://rr1---sn-test.googlevideo.com/videoplayback?itag=139&ratebypass=yes",
            "mimeType": 'audio/mp4; codecs="mp4a.40.5"',
            "bitrate": 48_000,
            "averageBitrate": 48_000,
            "contentLength": str(len(audio)),
            "audioSampleRate": "22050",
            "audioChannels": 2,
            "audioQuality": "AUDIO_QUALITY_LOW",
        }
        self.show(player(captions={}, streamingData={"adaptiveFormats": [sound]}, **changes))
        self.audio = audio

    def paths(self) -> list[str]:
        return [path for _, path in self.requests]


@contextmanager
def reachable_youtube(folder: Path) -> Iterator[YouTube]:
    """What is asked directly: the environment's proxy, with its certificate among the trusted ones."""
    bundle, certificate = make_certificate(folder)
    with running_youtube(certificate) as youtube, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTPS_PROXY", youtube.url)
        patch.setenv("https_proxy", youtube.url)
        patch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
        patch.setenv("SSL_CERT_FILE", str(bundle))
        youtube.certificate = certificate
        youtube.show(player())
        yield youtube


@contextmanager
def running_youtube(certificate: Path) -> Iterator[YouTube]:
    """`certificate` names the file of `make_certificate`."""
    youtube = YouTube()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    youtube.port = listener.getsockname()[1]
    stopping = threading.Event()

    def accept() -> None:
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=_serve, args=(youtube, context, connection), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield youtube
    finally:
        stopping.set()
        thread.join()
        listener.close()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A new authority of a day, and a certificate of its with its key for all of YouTube's names."""
    key, own_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tests")])

    def builder(subject: str, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
        )

    authority = (
        builder("Tests", key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate = (
        builder("youtube.com", own_key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    bundle, chain = folder / "authority.pem", folder / "certificate.pem"
    bundle.write_bytes(authority.public_bytes(pem))
    private = own_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain.write_bytes(private + certificate.public_bytes(pem))
    return bundle, chain


def _serve(youtube: YouTube, context: ssl.SSLContext, connection: socket.socket) -> None:
    """One tunnel: CONNECT, then requests one after the other."""
    try:
        with connection:
            connection.settimeout(20)
            head, _ = _head(connection)
            host = head.split()[1].rpartition(":")[0]
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with context.wrap_socket(connection, server_side=True) as tunnel:
                while request := _head(tunnel):
                    _answer(youtube, tunnel, host, *request)
    except (OSError, ssl.SSLError, IndexError, ValueError):
        return


def _head(connection: socket.socket) -> tuple[str, dict[str, str]]:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        if not part:
            raise ConnectionError
        data += part
    first, *lines = data.decode("latin-1").strip().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return first, headers


def _answer(youtube: YouTube, tunnel: ssl.SSLSocket, host: str, first: str, headers: dict[str, str]) -> None:
    left = int(headers.get("content-length", 0))
    while left:
        left -= len(tunnel.recv(left))
    path = first.split()[1].partition("?")[0]
    youtube.requests.append((host, path))
    if host.endswith(".googlevideo.com") and youtube.audio:
        status, body, kind = 200, youtube.audio, "audio/mp4"
    else:
        status, body = youtube.answers.get(path, (404, b"{}"))
        kind = "application/json" if path.startswith("/youtubei") else "text/html; charset=utf-8"
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    tunnel.sendall(head.encode())
    for start in range(0, 0 if first.startswith("HEAD") else len(body), 65_536):
        tunnel.sendall(body[start : start + 65_536])
        if youtube.pace_seconds and body is youtube.audio:
            time.sleep(youtube.pace_seconds)
