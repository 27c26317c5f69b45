"""Files that may be gzip, read once from end to end with their checksum, and gzip files with the same bits every time.

isal packs at several times zlib's speed. A reader that stops when it has enough never sees the checksum: a flipped bit
or a cut file would pass.
"""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from isal import igzip_threaded, isal_zlib
from isal.igzip_lib import IsalError

from medmtl.io.reasons import refusal

MAGIC = b"\x1f\x8b"
BLOCK = 2**20
_PACKED = 2**18  # bytes that are unpacked at a time
_GZIP = 31  # wbits: a gzip header and trailer
_DEFLATE_LIMIT = 1032  # deflate cannot pack closer: two bits for 258 bytes
MAX_TRAILING = 2**24  # a block of padding, not a second image


class Source:
    """The bytes of an open file in order, unpacked where it is gzip."""

    def __init__(self, stream: io.BufferedReader, name: str) -> None:
        self.name = name
        self.size = os.fstat(stream.fileno()).st_size
        self.gzipped = stream.peek(2)[:2] == MAGIC
        self.capacity = self.size * _DEFLATE_LIMIT if self.gzipped else self.size  # no file of this size holds more
        self.foreign = False  # whether bytes that are no gzip follow the gzip stream
        self._stream = stream
        self._blocks = self._unpacked()
        self._block = memoryview(b"")

    def fill(self, target: memoryview) -> int:
        """Read into ``target`` until it is full or the file ends; returns how many bytes were read."""
        if not self.gzipped:
            return self._stream.readinto(target)
        done = 0
        while done < len(target) and (self._block or self._next()):
            count = min(len(target) - done, len(self._block))
            target[done : done + count] = self._block[:count]
            self._block = self._block[count:]
            done += count
        return done

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end of the file."""
        target = bytearray(count)
        return bytes(target[: self.fill(memoryview(target))])

    def skip(self, count: int) -> int:
        """Read ``count`` bytes and forget them; returns how many there were."""
        block, left = memoryview(bytearray(min(BLOCK, count))), count
        while left and (got := self.fill(block[:left])):
            left -= got
        return count - left

    def finish(self) -> int:
        """Read to the end, which checks every checksum; returns how many bytes were left (``E-NII-TRAILING``: many)."""
        left = self.skip(MAX_TRAILING + 1)
        if left > MAX_TRAILING:
            raise refusal("E-NII-TRAILING", f"more than {MAX_TRAILING:,} bytes follow the voxels", where=self.name)
        return left

    def _next(self) -> bool:
        self._block = memoryview(next(self._blocks, b""))
        return bool(self._block)

    def _unpacked(self) -> Iterator[bytes]:
        """Blocks of the members of a gzip file, each with its checksum verified; zeros may follow, as on tapes."""
        packed = self._stream.read(_PACKED)
        while packed[:2] == MAGIC:
            member = isal_zlib.decompressobj(wbits=_GZIP)
            while not member.eof:
                try:
                    block = member.decompress(packed, BLOCK)
                except IsalError as error:  # type: ignore[misc]  # the stub says that it is an instance
                    raise refusal("E-NII-CRC", f"the gzip stream is damaged ({error})", where=self.name) from error
                packed = member.unconsumed_tail or (b"" if member.eof else self._stream.read(_PACKED))
                if block:
                    yield block
                elif not packed and not member.eof:
                    raise refusal("E-NII-TRUNCATED", "the gzip stream ends before its checksum", where=self.name)
            packed = member.unused_data or self._stream.read(_PACKED)
            if len(packed) == 1:
                packed += self._stream.read(_PACKED)
        while packed and not self.foreign:
            self.foreign = packed.count(0) < len(packed)
            packed = self._stream.read(_PACKED)


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """A regular file as a :class:`Source`; anything else is refused (a FIFO would wait for ever).

    Raises ``E-FILE-OPEN``, ``E-FILE-EMPTY``, and ``E-FILE-CHANGED`` if it was written to while it was read.
    """
    try:
        if not path.is_file():
            raise refusal("E-FILE-OPEN", "no such file, or not a regular one", where=path.name)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refusal("E-FILE-OPEN", f"the file cannot be opened ({type(error).__name__})", where=path.name) from error
    with os.fdopen(descriptor, "rb") as stream:
        before = os.fstat(descriptor)
        if before.st_size == 0:
            raise refusal("E-FILE-EMPTY", "the file is empty (0 bytes)", where=path.name)
        yield Source(stream, path.name)
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise refusal("E-FILE-CHANGED", "the file was written to while it was read", where=path.name)


def write_gzip(path: Path, blocks: Iterable[bytes | memoryview], *, level: int) -> None:
    """Pack ``blocks`` into one gzip stream without a time or a name: equal blocks give equal bytes.

    A second thread packs and writes while the caller makes the next block. Level 0 (fastest) to 3.
    """
    with path.open("wb") as stream, igzip_threaded.open(stream, "wb", level, threads=1, block_size=BLOCK) as packer:
        for block in blocks:
            packer.write(block)
