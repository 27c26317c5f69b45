"""Proof that an output folder holds nothing that identified anybody in the source.

Every file under OUT is searched: its name, its bytes (pixels too), and what its format hides: DICOM elements, NIfTI
headers, PNG, JPEG and TIFF metadata, gzip and ZIP members (XLSX is one). What is looked for is taken from the source
itself, see :mod:`identifiers`. A hit names the file, the kind of identifier and the place, never the identifier.

What it cannot see, by design: text that is drawn into pixels, faces, identifiers in other words than the source's,
words of less than three letters, numbers of less than six digits that stand alone, numbers and values shorter than
eight bytes inside voxels and pixels, and encrypted or otherwise compressed content (7z, xz, parquet's pages).
"""

import gzip
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pydicom
from PIL import Image
from pydicom.dataset import Dataset

from medmtl.bars import bar
from medmtl.errors import OK, REFUSED
from medmtl.io.deidentify.elements import level, plain, vr_of
from medmtl.io.deidentify.files import read_dicom
from medmtl.io.deidentify.folder import KEY, default_private, walk_files
from medmtl.io.deidentify.identifiers import Identifiers
from medmtl.io.deidentify.key import load_or_make_key
from medmtl.io.deidentify.profile import Options
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.deidentify.search import Finder
from medmtl.io.dicom.quiet import quiet
from medmtl.io.reasons import refusal

_CHUNK = 16 * 2**20
_OVERLAP = 4096  # bytes that two chunks share, so that nothing is cut in two
_DEEPEST = 4  # archives in archives
_PATIENT = re.compile(r"P[A-Z2-7]{12}")
_RUNS = re.compile(rb"[\x20-\x7e]{6,}")  # text in binary files of unknown format
_MASK = "[...]"


@dataclass(frozen=True, order=True)
class Hit:
    """One place where something is left."""

    file: str  # relative to OUT, an identifier in it masked
    kind: str  # the DICOM attribute that it came from, "path" or "private text"
    where: str


@dataclass(frozen=True)
class Findings:
    """What a verification found, and how much it looked at."""

    hits: tuple[Hit, ...]
    unreadable: tuple[str, ...]  # files of OUT that could not be searched whole
    files: int
    sources: int  # DICOM files whose identifiers were collected
    identifiers: int
    unsearchable: Mapping[str, int] = field(default_factory=dict)  # kind -> values too short or too common to look for

    @property
    def clean(self) -> bool:
        """Whether nothing was found and everything was searched."""
        return not self.hits and not self.unreadable

    @property
    def exit_code(self) -> int:
        """0 or 6."""
        return OK if self.clean else REFUSED


def verify(
    out: Path, source: Path | None = None, *, private: Path | None = None, options: Options = Options()
) -> Findings:
    """Search ``out`` for everything that identifies somebody in ``source`` (default: the sources that the key knows).

    Raises ``E-DEID-VERIFY`` where there is no key or no DICOM file to take identifiers from: it would prove nothing.
    """
    key_path = (private or default_private(out)) / KEY
    if not key_path.is_file():
        raise refusal("E-DEID-VERIFY", "there is no key in the private folder", where=str(key_path.parent))
    key = load_or_make_key(key_path, out=out)
    sources = [source] if source is not None else [Path(name) for name in key.sources]
    found, count = collect(sources, Pseudonyms(key), options)
    if not count:
        raise refusal("E-DEID-VERIFY", "the source holds no DICOM file")
    scan = _Scan(found)
    paths = [Path(path) for path, _ in walk_files(out.resolve())[0]]
    with bar("verifying", len(paths)) as advance:
        for path in paths:
            scan.file(path, path.relative_to(out.resolve()).as_posix())
            advance(1)
    return Findings(
        tuple(sorted(scan.hits)),
        tuple(sorted(scan.unreadable)),
        len(paths),
        count,
        len(found.phrases) + len(found.raw) + len(found.dates),
        dict(sorted(found.unsearchable.items())),
    )


def collect(sources: list[Path], pseudonyms: Pseudonyms, options: Options = Options()) -> tuple[Identifiers, int]:
    """The identifiers of every DICOM file below the folders, and how many files those were."""
    found, count = Identifiers(), 0
    for source in sources:
        if not source.is_dir():
            raise refusal("E-DEID-SOURCE", "no such folder", where=str(source))
        for name, _ in walk_files(source.resolve())[0]:
            path = Path(name)
            found.add_path(path.relative_to(source.resolve()))
            with quiet():
                try:
                    ds = read_dicom(path, pixels=False)
                    if ds is not None:
                        with pydicom.config.disable_value_validation():
                            found.add_dataset(ds, pseudonyms, options)
                        count += 1
                except Exception:
                    continue
    found.finish()
    return found, count


class _Scan:
    """The search through one output folder."""

    def __init__(self, found: Identifiers) -> None:
        self.found, self.finder = found, Finder(found.raw)
        self.hits: set[Hit] = set()
        self.unreadable: set[str] = set()
        self.name, self.owners = "", frozenset[str]()

    def file(self, path: Path, relative: str) -> None:
        self.owners = frozenset(_PATIENT.findall(relative)) & self.found.patients
        self.name = relative
        in_name = self._named(relative)
        if in_name:
            parts = Path(relative).parts
            masked = [_MASK + Path(part).suffix if self._named(part) else part for part in parts]
            self.name = "/".join(masked) if _MASK in "".join(masked) else _MASK
            self.hits |= {Hit(self.name, kind, "name") for kind in in_name}
        try:
            with path.open("rb") as stream:
                self.stream(stream, "", depth=0)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError):
            self.unreadable.add(self.name)

    def _named(self, name: str) -> set[str]:
        return self.found.found_in(name, owners=self.owners) | self._raw(name.encode("utf-8", "replace")).keys()

    def stream(self, stream: IO[bytes], place: str, *, depth: int) -> None:
        """Search a file, or a member of one; ``place`` says where in the file it is."""
        head = stream.read(_CHUNK)
        kind = _format(head)
        before, offset, chunk = b"", 0, head
        while chunk:
            self._chunk(before + chunk, kind, f"{place}byte {max(offset - len(before), 0)}")
            before, offset = chunk[-_OVERLAP:], offset + len(chunk)
            chunk = stream.read(_CHUNK)
        if kind in ("gzip", "zip") and depth == _DEEPEST:
            raise EOFError("archives in archives in archives")
        stream.seek(0)
        if kind == "gzip":
            with gzip.open(stream) as inner:
                self.stream(inner, f"{place}unzipped ", depth=depth + 1)  # type: ignore[arg-type]
        elif kind == "zip":
            with zipfile.ZipFile(stream) as archive:
                for number, member in enumerate(archive.infolist()):
                    self.text(member.filename, f"{place}name of member {number}")
                    with archive.open(member) as inner_member:
                        self.stream(inner_member, f"{place}member {number} ", depth=depth + 1)
        elif kind == "dicom":
            self._dicom(stream, place)
        elif kind == "nifti":
            self._nifti(head, place)
        elif kind == "image":
            self._image(stream, place)

    def text(self, text: str, where: str) -> None:
        """Search what is known to be text."""
        kinds = self.found.found_in(text, owners=self.owners) | set(self._raw(text.encode("utf-8", "surrogatepass")))
        self.hits |= {Hit(self.name, kind, where) for kind in kinds}

    def _raw(self, content: bytes) -> dict[str, int]:
        """Kinds of identifier in bytes, and where; UTF-16 is seen as text with the zeros left out."""
        found = self.finder.find(content)
        if content.count(0, 0, 65536):
            found = self.finder.find(content.replace(b"\0", b"")) | found
        return {self.found.raw[needle]: position for needle, position in found.items()}

    def _chunk(self, content: bytes, kind: str, where: str) -> None:
        self.hits |= {Hit(self.name, found, where) for found in self._raw(content)}
        if kind == "text":
            lines = content.decode("utf-8", "replace")
            for found in self.found.found_in(lines, owners=self.owners):
                self.hits.add(Hit(self.name, found, where))
        elif kind == "utf-16":
            self.text(content.decode("utf-16", "replace"), where)
        elif kind == "binary":
            self.text("\n".join(run.decode("ascii") for run in _RUNS.findall(content)), where)

    def _dicom(self, stream: IO[bytes], place: str) -> None:
        stream.seek(0)
        self.text("\n".join(run.decode("ascii") for run in _RUNS.findall(stream.read(128))), f"{place}preamble")
        stream.seek(0)
        with quiet(), pydicom.config.disable_value_validation():
            try:
                ds = pydicom.dcmread(stream, stop_before_pixels=True)  # type: ignore[arg-type]
                for tag, text in _texts(ds.file_meta if hasattr(ds, "file_meta") else Dataset()):
                    self.text(text, f"{place}{tag}")
                for tag, text in _texts(ds):
                    self.text(text, f"{place}{tag}")
            except Exception as error:
                raise EOFError("not a whole DICOM file") from error

    def _nifti(self, head: bytes, place: str) -> None:
        """Header fields and extensions: everything before the voxels."""
        big = head[:4] in (b"\0\0\1\x5c", b"\0\0\2\x1c")
        size = int.from_bytes(head[:4], "big" if big else "little")
        end = 544 if size == 540 else 352
        extensions = head[end : end + 2**20] if head[end - 4 : end - 3] == b"\1" else b""
        for run in _RUNS_SHORT.findall(head[:end] + b"\0" + extensions):
            self.text(run.decode("utf-8", "replace"), f"{place}NIfTI header")

    def _image(self, stream: IO[bytes], place: str) -> None:
        with Image.open(stream) as image:
            values: list[Any] = [*image.info.items(), *image.getexif().items(), *getattr(image, "tag_v2", {}).items()]
        for name, value in values:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            self.text(f"{name} = {text}", f"{place}image metadata")


_RUNS_SHORT = re.compile(rb"[^\0-\x1f]{3,}")


def _texts(ds: Dataset) -> Iterator[tuple[str, str]]:
    for tag in level(ds):
        vr = vr_of(ds, tag)
        if vr == "SQ" or (tag.is_private and ds[tag].VR == "SQ"):
            for item in ds[tag].value or []:
                yield from _texts(item)
        elif vr == "DT":
            yield str(tag), " ".join(part[:8] for part in plain(ds, tag).split("\\"))
        elif vr not in ("UI", "DS", "IS", "TM") and vr[0] != "O":
            yield str(tag), f'"{plain(ds, tag)}"'


def _format(head: bytes) -> str:
    """What a file is, by its first bytes."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        return "zip"
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):
        return "nifti"
    if head[:8] == b"\x89PNG\r\n\x1a\n" or head[:3] == b"\xff\xd8\xff" or head[:4] in (b"II*\0", b"MM\0*"):
        return "image"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    sample = head[:65536]
    if b"\0" in sample:
        return "binary"
    return "binary" if sum(byte < 9 for byte in sample) > len(sample) // 1000 else "text"  # Latin-1 is text too
