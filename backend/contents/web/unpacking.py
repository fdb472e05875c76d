"""Undoes the content coding of an answer in small pieces, so that a bomb is noticed before it has swelled."""

import zlib
from collections.abc import Iterator

_PIECE_BYTES = 64 * 1024
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"


class UnknownCoding(Exception):
    """A coding that this module does not undo; several, one over the other, are one too."""


class Unpacker:
    """For one answer: `coding` is its Content-Encoding ("" and identity: as it is)."""

    def __init__(self, coding: str) -> None:
        if coding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            raise UnknownCoding(coding)
        self._coding = coding
        self._packed = coding not in {"", "identity"}
        # Of deflate, the first byte tells which of its two forms this is.
        self._inner = zlib.decompressobj(_GZIP) if coding.endswith("gzip") else None
        self._started = False

    @property
    def is_whole(self) -> bool:
        """Whether all that began has ended, once the last part was given."""
        return not self._packed or not self._started or (self._inner is not None and self._inner.eof)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What the next part holds, 64 KB at a time; whoever has enough stops asking. Raises zlib.error."""
        if not self._packed:
            yield data
            return
        while data:
            self._started = True
            if self._inner is None:
                # The standard's form begins with a method of 8; some servers send the bare one.
                self._inner = zlib.decompressobj(_ZLIB if data[0] & 0x0F == 8 else _RAW)
            if self._inner.eof:
                if not (self._coding.endswith("gzip") and data.startswith(_GZIP_MAGIC)):
                    return  # what stands behind the end is no content
                self._inner = zlib.decompressobj(_GZIP)
            piece = self._inner.decompress(data, _PIECE_BYTES)
            if piece:
                yield piece
            data = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail
            if not piece and not self._inner.eof:
                return
