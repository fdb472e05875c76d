"""What the tests of web pages share."""

from collections.abc import AsyncIterator

import pytest

from tests.contents.web.site import Site, running_site


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running_site() as found:
        yield found
