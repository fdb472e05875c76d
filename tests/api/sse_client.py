"""A client of server-sent events that loses its connection at random, as browsers on trains do."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson


@dataclass(frozen=True)
class Received:
    id: str
    name: str
    data: dict[str, Any]


@dataclass
class Follower:
    """Follows one job's events, coming back with Last-Event-ID after each loss of its connection."""

    client: httpx.AsyncClient
    path: str
    last: str = ""
    disconnects: int = 0
    received: list[Received] = field(default_factory=list)

    async def follow(self, *, disconnects: int, chance: random.Random) -> None:
        """Loses its connection so many times, in the middle of whatever comes, and then reads to the end."""
        while self.disconnects < disconnects:
            if await self._read(chance.uniform(0, 0.05), chance.randrange(1, 3000)):
                return
            self.disconnects += 1
        await self._read(60, None)

    async def _read(self, seconds: float, size: int | None) -> bool:
        """Reads for some time or some bytes; True when the job's last event was among it."""
        headers = {"Last-Event-ID": self.last} if self.last else {}
        read = 0
        try:
            async with asyncio.timeout(seconds + 0.05), self.client.stream("GET", self.path, headers=headers) as answer:
                assert answer.status_code == 200, answer.status_code
                pending = b""
                async for data in answer.aiter_raw():
                    kept = data if size is None else data[: max(size - read, 0)]
                    read += len(data)
                    *blocks, pending = (pending + kept).split(b"\n\n")
                    for block in blocks:
                        self._take(block)
                    if size is not None and read >= size:
                        return self._ended
        except TimeoutError:
            return self._ended
        return self._ended

    @property
    def _ended(self) -> bool:
        return bool(self.received) and self.received[-1].name in ("complete", "error")

    def _take(self, block: bytes) -> None:
        event = parse(block)
        if event is not None:
            self.last = event.id
            self.received.append(event)


def parse(block: bytes) -> Received | None:
    """One event; None for a comment or a lone `retry`."""
    fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if ": " in line and line[0] != ":")
    if "id" not in fields:
        return None
    return Received(fields["id"], fields["event"], orjson.loads(fields["data"]))


async def events(answer: httpx.Response) -> AsyncIterator[Received]:
    """The events of a stream as they come."""
    pending = b""
    async for data in answer.aiter_raw():
        *blocks, pending = (pending + data).split(b"\n\n")
        for block in blocks:
            event = parse(block)
            if event is not None:
                yield event


def whole(answer: httpx.Response) -> list[Received]:
    """The events of an answer that was read to its end."""
    found = [parse(block) for block in answer.content.split(b"\n\n")]
    return [event for event in found if event is not None]
