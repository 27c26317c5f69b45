"""A DICOM file's elements up to its pixels: bounded in memory, and with the place where a damaged file ends."""

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from medmtl.errors import UserError
from medmtl.io.dicom import syntax as syntaxes
from medmtl.io.dicom.elements import Elements, tag_of
from medmtl.io.dicom.record import Limits, NotDicom
from medmtl.io.reasons import refusal

PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_SYNTAX = tag_of("TransferSyntaxUID")
_VRS = frozenset(str(vr).encode() for vr in VR if len(str(vr)) == 2)
PREAMBLE_BYTES = 132
_MOST_ELEMENTS = 100_000  # of a data set; the standard names five thousand
_FIRST_BYTES = 64 * 2**20  # of a deflated data set: more than any header takes
_PADDING_BYTES = 16 * 2**20  # behind its pixels


class _Cut(Exception):
    """The file ends, or makes no sense any more, at a byte."""

    def __init__(self, byte: int, what: str) -> None:
        self.byte, self.what = byte, what
        super().__init__(what)


class Source:
    """A stream of known size that never hands out, or allocates, more than there is.

    pydicom asks for as many bytes as a length field says, which may be 4 GiB in a damaged file.
    """

    def __init__(self, stream: BinaryIO, size: int, largest: int) -> None:
        self._stream, self.size, self._largest = stream, size, largest
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = -1) -> bytes:
        if count > self._largest:
            raise _Cut(self.tell(), f"an element claims {count:,} bytes")
        data = self._stream.read(count)
        if len(data) < count and count != 8:  # element headers are asked for eight bytes at a time, also at the end
            raise _Cut(self.size, "it ends inside an element")
        return data


@dataclass(frozen=True)
class Parsed:
    """The elements before the pixels, and where the pixels begin."""

    meta: Elements
    elements: Elements
    syntax: str
    preamble: bool
    pixel_tag: int | None  # None where no pixel data follow
    pixel_vr: str
    pixel_offset: int
    pixel_length: int | None  # None where it is undefined
    end: int  # byte where reading stopped
    size: int  # of the file, or of what it inflated to
    stream: BinaryIO  # that the offsets count in: the file, or what it inflated to
    cut: str = ""  # why it stopped too early


@contextmanager
def regular_file(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """The file opened for reading, never waiting for a pipe or a device; UserError where it cannot be."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise refusal(
            "E-FILE-OPEN", f"it cannot be opened ({os.strerror(error.errno or 0)})", where=path.name
        ) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(handle)
        if stat.S_ISREG(status.st_mode):
            raise refusal("E-FILE-EMPTY", "the file is empty (0 bytes)", where=path.name)
        raise refusal("E-FILE-OPEN", "it is not a regular file", where=path.name)
    with open(handle, "rb") as stream:  # noqa: PTH123 (a descriptor, not a path)
        yield stream, status


def parse(stream: BinaryIO, size: int, limits: Limits, wanted: frozenset[int]) -> Parsed:
    """Read the elements ``wanted`` (tags) before the pixels.

    Raises NotDicom where nothing looks like DICOM. A file that is cut off or malformed yields what was read before
    that, with ``cut`` set.
    """
    source = Source(stream, size, limits.max_header)
    start = stream.read(PREAMBLE_BYTES)
    preamble = start[128:] == b"DICM"
    if not preamble and not _looks_like_elements(start):
        raise NotDicom("I-NOT-DICOM", "it is no DICOM file", "nothing")
    stream.seek(PREAMBLE_BYTES if preamble else 0)
    meta, cut = _read(source, implicit=False, little=True, wanted=None, stop=_Stop(group=2))
    meta_elements = Elements(meta)
    syntax = meta_elements.text(_SYNTAX)
    if cut:
        return Parsed(
            meta_elements, Elements(Dataset()), syntax, preamble, None, "", 0, None, stream.tell(), size, stream, cut
        )
    if syntax == syntaxes.DEFLATED:
        stream = inflate(stream.read(), limits)
        source = Source(stream, len(stream.getbuffer()), limits.max_header)
    implicit, little = _encoding(source, syntax)
    syntax = syntax or (syntaxes.IMPLICIT if implicit else syntaxes.EXPLICIT if little else syntaxes.BIG_ENDIAN)
    stop = _Stop(check=not implicit)
    dataset, cut = _read(source, implicit=implicit, little=little, wanted=wanted, stop=stop)
    dataset.set_original_encoding(implicit, little)
    if not cut and stop.tag is None and stream.tell() > source.size:
        cut = f"it ends at byte {source.size:,}, inside an element"
    return Parsed(
        meta_elements,
        Elements(dataset),
        syntax,
        preamble,
        stop.tag,
        stop.vr,
        stop.offset(source.tell()) if stop.tag is not None else 0,
        stop.length,
        min(source.tell(), source.size),
        source.size,
        stream,
        cut,
    )


def inflate(content: bytes, limits: Limits) -> io.BytesIO:
    """The data set of a deflated file (PS3.5 A.5), refused where it grows beyond the pixels that it states.

    A thousand bytes can come of one: nothing is inflated that no element accounts for, but for some padding.
    """
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    most = limits.max_bytes + limits.max_header
    inflated = io.BytesIO(machine.decompress(content, min(_FIRST_BYTES, most)))
    size = len(inflated.getbuffer())
    if machine.unconsumed_tail:
        stop = _Stop()
        _read(Source(inflated, size, limits.max_header), implicit=False, little=True, wanted=frozenset(), stop=stop)
        end = stop.offset(inflated.tell()) + (stop.length or 0) if stop.tag is not None else size
        largest = min(end + _PADDING_BYTES, most)
        inflated.seek(size)
        if largest > size:
            size += inflated.write(machine.decompress(machine.unconsumed_tail, largest - size))
        if size >= largest and not machine.eof:
            raise refusal("E-DCM-CLAIM", f"the deflated data set holds more than {largest:,} bytes")
    if not machine.eof:
        raise refusal("E-DCM-TRUNCATED", "the deflated data set is cut off")
    inflated.seek(0)
    return inflated


class _Stop:
    """Tells pydicom where to stop: at a group beyond ``group``, or at the pixels; and notices garbage on the way."""

    def __init__(self, group: int | None = None, *, check: bool = False) -> None:
        self._group, self._check = group, check
        self.tag: int | None = None
        self.length: int | None = None
        self.vr = "OW"
        self._short = True
        self._seen = 0

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        self._seen += 1
        if self._seen > _MOST_ELEMENTS:  # zeros are elements without a value, eight bytes each
            raise _Cut(-1, f"more than {_MOST_ELEMENTS:,} elements")
        if self._group is not None:
            return tag >> 16 != self._group
        if tag in PIXEL_TAGS:
            self.tag, self.length = int(tag), None if length == 0xFFFFFFFF else length
            self.vr = vr or "OW"
            self._short = vr is None or vr not in EXPLICIT_VR_LENGTH_32
            return True
        if self._check and (vr is None or vr.encode("latin-1", "replace") not in _VRS) and tag >> 16 != 0xFFFC:
            raise _Cut(-1, f"the element ({int(tag) >> 16:04X},{int(tag) & 0xFFFF:04X}) has no known type")
        return False

    def offset(self, tell: int) -> int:
        """Where the value of the pixel data begins, given where its element does."""
        return tell + (8 if self._short else 12)


def _read(
    source: Source, *, implicit: bool, little: bool, wanted: frozenset[int] | None, stop: _Stop
) -> tuple[Dataset, str]:
    """The elements up to ``stop``, and why reading ended too early, if it did."""
    found: dict[Any, Any] = {}
    tags = cast(Any, wanted)
    try:
        for element in data_element_generator(cast(BinaryIO, source), implicit, little, stop, None, "iso8859", tags):
            found[element.tag] = element
    except _Cut as cut:
        byte = cut.byte if cut.byte >= 0 else source.tell()
        return Dataset(found), f"{cut.what} at byte {byte:,}"
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything: struct.error, RecursionError, OSError, KeyError
        return Dataset(found), f"it cannot be parsed beyond byte {source.tell():,} ({type(error).__name__})"
    return Dataset(found), ""


def _looks_like_elements(start: bytes) -> bool:
    """Whether a file without preamble begins with an element of group 0002 or 0008 that makes sense."""
    if len(start) < 16:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(start[at : at + 2], cast(Any, order)) for at in (0, 2))
        if group in (0x0002, 0x0008) and element <= 0x0100:
            explicit = start[4:6] in _VRS
            length = int.from_bytes(start[4:8], cast(Any, order))
            return explicit or (order == "little" and length <= 256)
    return False


def _encoding(source: Source, syntax: str) -> tuple[bool, bool]:
    """(implicit, little-endian): what the bytes show, whatever the meta header says; pydicom would warn."""
    here = source.tell()
    peek = source._stream.read(6)
    source.seek(here)
    explicit = peek[4:6] in _VRS
    if not syntax:
        return not explicit, not (explicit and int.from_bytes(peek[:2], "little") >= 0x0400)
    return not explicit, syntax != syntaxes.BIG_ENDIAN
