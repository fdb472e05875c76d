"""Stored bytes, in a folder and in memory."""

from pathlib import Path

import pytest

from backend.storage import BlobNotFound, Storage, file_digest, open_storage


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage((tmp_path / "a b é").as_uri() if request.param == "file" else "memory://")


async def test_what_goes_in_comes_out(storage: Storage, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    (tmp_path / "in").write_bytes(data)
    await storage.put_file("projects/1/x.bin", tmp_path / "in")
    assert await storage.get_bytes("projects/1/x.bin") == data
    assert b"".join([part async for part in await storage.stream("projects/1/x.bin")]) == data
    await storage.save_to("projects/1/x.bin", tmp_path / "out")
    assert file_digest(tmp_path / "out") == file_digest(tmp_path / "in")


async def test_a_missing_key_is_named_before_the_first_byte(storage: Storage) -> None:
    with pytest.raises(BlobNotFound, match="projects/none"):
        await storage.stream("projects/none")
    with pytest.raises(BlobNotFound):
        await storage.get_bytes("projects/none")


async def test_a_prefix_is_a_whole_part(storage: Storage) -> None:
    for key in ("projects/1/a", "projects/1/b/c", "projects/11/a"):
        await storage.put_bytes(key, b"x")
    await storage.delete_under("projects/1")
    assert [blob.key for blob in await storage.list_under("projects")] == ["projects/11/a"]


async def test_deleting_twice_is_no_error(storage: Storage) -> None:
    await storage.put_bytes("k/1", b"x")
    await storage.delete(["k/1", "k/2"])
    await storage.delete(["k/1"])
    assert await storage.list_under("k") == []


async def test_a_span_of_an_object_is_read_alone(storage: Storage) -> None:
    data = bytes(range(256)) * 10_000
    await storage.put_bytes("k", data)
    for first, end in ((0, 1), (5, 6), (1_000_000, len(data)), (0, len(data))):
        assert b"".join([part async for part in await storage.stream("k", (first, end))]) == data[first:end]
    with pytest.raises(BlobNotFound):
        await storage.stream("none", (0, 1))
