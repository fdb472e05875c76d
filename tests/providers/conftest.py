"""A Hub on loopback, and a library that uses it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.providers.base_models import ModelLibrary
from backend.providers.huggingface import HubClient
from tests.providers.hub_server import HubServer, running_hub

LibraryMaker = Callable[..., ModelLibrary]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def make_library(hub: HubServer, models_dir: Path) -> Iterator[LibraryMaker]:
    """`make_library(token=, timeout_seconds=, endpoint=, disk_reserve_bytes=)`: a new library on the same folder."""
    clients: list[HubClient] = []

    def make(
        token: str = "", timeout_seconds: float = 2.0, endpoint: str | None = None, **settings: Any
    ) -> ModelLibrary:
        clients.append(HubClient(endpoint or hub.endpoint, token, timeout_seconds=timeout_seconds))
        return ModelLibrary(models_dir, clients[-1], **settings)

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def library(make_library: LibraryMaker) -> ModelLibrary:
    return make_library()
