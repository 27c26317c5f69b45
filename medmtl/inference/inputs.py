"""What a folder holds for a bundle: pictures and volumes, found, sniffed and planned by the code that ingests."""

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from medmtl.data.preprocess import Preprocess
from medmtl.errors import UserError
from medmtl.inference.dimensions import wrong_dimensions
from medmtl.inference.listing import Input, Kind, Listing
from medmtl.inference.names import Taken, free, output_names
from medmtl.ingest import earlier
from medmtl.ingest.scanned import Scanned
from medmtl.ingest.tasks import Headers, read_headers
from medmtl.ingest.walk import Aside, Found, Walked, walk
from medmtl.io.dicom.record import Header, header_from_json
from medmtl.io.dicom.series import Policy, plan
from medmtl.io.nifti import files_of, read_header
from medmtl.io.raster import FORMATS
from medmtl.io.reasons import REMEDY

KEYWORDS = ("BodyPartExamined", "IssuerOfPatientID")  # kept of every header, beside what planning needs
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NIFTI = (".nii", ".nii.gz", ".hdr")
_CHUNK = 32  # files that a thread reads before it takes the next ones


@dataclass
class Finder:
    """Finds the inputs below a folder. Headers are read once: again only of files that changed since."""

    source: Path
    preprocess: Preprocess
    policy: Policy = field(default_factory=Policy)
    exclude: tuple[Path, ...] = ()  # folders that are never read as input
    threads: int = 1
    apart: bool = False  # ids of volumes are also of the name in the folder under which they lie (a drop folder)
    taken: Taken = free  # names of output files that are not to be given
    hashed: bool = False  # ids and names do not tell paths
    _known: dict[str, Scanned] = field(default_factory=dict)

    def find(
        self,
        *,
        advance: Callable[[int], None] = lambda files: None,
        begin: Callable[[int], None] = lambda files: None,
    ) -> Listing:
        """The inputs of the folder; the result does not depend on its order."""
        walked = self._walk()
        begin(len(walked.files))
        return self.planned(walked, advance=advance)

    def look(self) -> dict[str, Walked]:
        """What lies in the folder under each name now: a *study*. Nothing is opened but ledgers of earlier jobs."""
        walked = self._walk()
        parts: dict[str, tuple[list[Found], list[Aside]]] = {}
        for found in walked.files:
            parts.setdefault(study_of(found.path), ([], []))[0].append(found)
        for aside in walked.asides:
            parts.setdefault(study_of(aside.path), ([], []))[1].append(aside)
        return {name: Walked(tuple(files), tuple(asides)) for name, (files, asides) in parts.items()}

    def planned(self, walked: Walked, *, advance: Callable[[int], None] = lambda files: None) -> Listing:
        """The inputs among what a walk met."""
        return self._listing(self._scan(self.source.resolve(), walked.files, advance), walked.asides)

    def _walk(self) -> Walked:
        """What is in the folder; results of earlier predictions are left aside."""
        root = self.source.resolve()
        walked = walk(root)
        closed = tuple(
            path.resolve().relative_to(root).as_posix() + "/"
            for path in self.exclude
            if path.resolve().is_relative_to(root)
        )

        def counts(path: str) -> bool:
            return not f"{path}/".startswith(closed)

        files = [found for found in walked.files if counts(found.path)]
        asides = [aside for aside in walked.asides if counts(aside.path)]
        there = {found.path for found in walked.files}
        self._known = {path: known for path, known in self._known.items() if path in there}
        return earlier.left_aside(root, Walked(tuple(files), tuple(asides)), whole_studies=False)

    def _listing(self, scanned: Sequence[Scanned], asides: Sequence[Aside]) -> Listing:
        inputs, ignored = self._sorted(scanned)
        for aside in asides:
            if aside.code.startswith("E-"):
                error = UserError(aside.code, aside.what, REMEDY[aside.code])
                inputs.append(Input(aside.path, "file", (Found(aside.path, 0, 0, 0),), refused=error))
            else:
                ignored[aside.kind] += 1
        inputs = [_hashed(item) for item in inputs] if self.hashed else inputs
        names = output_names({item.id: _stem(item) for item in inputs}, self.taken)
        named = [_with(item, name=names[item.id]) for item in sorted(inputs, key=lambda item: item.id)]
        return Listing(tuple(named), dict(sorted(ignored.items())), len(scanned) + len(asides))

    def _scan(self, root: Path, files: Sequence[Found], advance: Callable[[int], None]) -> list[Scanned]:
        new = [found for found in files if (known := self._known.get(found.path)) is None or known.found != found]
        advance(len(files) - len(new))
        chunks = [new[start : start + _CHUNK] for start in range(0, len(new), _CHUNK)]

        def read(chunk: Sequence[Found]) -> list[str]:
            lines = read_headers(Headers(root, tuple(chunk), KEYWORDS, self.policy.max_bytes))
            advance(len(chunk))
            return lines

        with ThreadPoolExecutor(self.threads) as pool:
            for chunk, lines in zip(chunks, pool.map(read, chunks), strict=True):
                self._known |= {
                    found.path: _scanned(found, line, root) for found, line in zip(chunk, lines, strict=True)
                }
        return [self._known[found.path] for found in files]

    def _sorted(self, scanned: Sequence[Scanned]) -> tuple[list[Input], Counter[str]]:
        inputs: list[Input] = []
        ignored: Counter[str] = Counter()
        halves = {path for item in scanned if item.kind == "nifti" for path in self._second(item)}
        for item in scanned:
            if item.header is not None:
                continue
            if item.found.path in halves:
                ignored["second file of a NIfTI pair"] += 1
            elif item.code.startswith("E-"):
                inputs.append(_refused_file(item))
            elif item.code:
                ignored[item.kind] += 1
            else:
                inputs += self._images(item)
        inputs += self._volumes([item for item in scanned if item.header is not None], ignored)
        return inputs, ignored

    def _second(self, item: Scanned) -> Iterator[str]:
        root = self.source.resolve()
        try:
            for path in files_of(root / item.found.path):
                relative = path.relative_to(root).as_posix()
                if relative != item.found.path:
                    yield relative
        except UserError:  # reading it will say so
            return

    def _images(self, item: Scanned) -> Iterator[Input]:
        """A NIfTI file, or the pages of a picture."""
        path, kind = self.source / item.found.path, item.kind
        refused = wrong_dimensions(kind, None, self.preprocess)
        shape, spacing, frames = (), None, 1  # type: tuple[int, ...], tuple[float, ...] | None, int
        with contextlib.suppress(Exception):  # of a damaged file, anything: reading it will say what is wrong
            if kind == "nifti":
                shape, spacing = _nifti_size(path, self.policy.max_bytes)
            else:
                shape, frames = _size_of(path)
        for page in range(item.pages):
            name = f"{item.found.path}#{page}" if item.pages > 1 else item.found.path
            kept: Kind = "nifti" if kind == "nifti" else "raster"
            yield Input(
                name,
                kept,
                (item.found,),
                page=page,
                pages=item.pages,
                frames=frames if item.pages == 1 else 1,
                shape=shape,
                voxel_mm3=_product(spacing),
                refused=refused,
            )

    def _volumes(self, dicom: Sequence[Scanned], ignored: Counter[str]) -> Iterator[Input]:
        found = {item.header.path: item.found for item in dicom if item.header is not None}
        planned = plan((item.header for item in dicom if item.header is not None), self.policy)
        drafts = [
            Input(
                self._dicom_id(stack.headers, stack.key),
                "dicom",
                tuple(found[header.path] for header in stack.headers),
                stack=stack,
                shape=stack.shape,
                voxel_mm3=_product(stack.spacing),
                refused=wrong_dimensions("dicom", stack, self.preprocess),
            )
            for stack in planned.volumes
        ]
        used = {file.path for draft in drafts for file in draft.files}
        for item in planned.refused:
            headers = [header for header in item.headers if found[header.path].path not in used]
            if headers:
                files = tuple(sorted(found[header.path] for header in headers))
                key = "\0".join(sorted(header.sop_instance_uid for header in headers)) + item.error.code
                drafts.append(Input(self._dicom_id(headers, key), "dicom", files, refused=item.error))
                used |= {file.path for file in files}
        for other in planned.ignored:
            if found[other.header.path].path not in used:
                ignored[f"DICOM {other.kind}"] += 1
        yield from _told_apart(drafts)

    def _dicom_id(self, headers: Sequence[Header], key: str) -> str:
        """``CT_`` and 16 hexadecimal digits: the same whenever and wherever the series is predicted; planned apart, of
        each study that holds it."""
        first = headers[0]
        letters = "".join(c for c in first.modality if c.isascii() and c.isalnum()) or "OT"
        place = [study_of(Path(first.path).relative_to(self.source.resolve()).as_posix())] if self.apart else []
        return f"{letters}_{_hash(first.study_uid, first.series_uid, key, *place)}"


def study_of(path: str) -> str:
    """The name in the source folder under which a file lies."""
    return path.partition("/")[0]


def _size_of(path: Path) -> tuple[tuple[int, int], int]:
    """[H, W] of a picture by its header (not turned as its EXIF orientation says), and how many it holds."""
    with Image.open(path, formats=FORMATS) as image:
        return (image.height, image.width), int(getattr(image, "n_frames", 1))


def _nifti_size(path: Path, max_bytes: int) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    header = read_header(path, max_bytes=max_bytes)
    return header.shape, header.spacing


def _product(spacing: Sequence[float] | None) -> float | None:
    return math.prod(spacing) if spacing is not None and len(spacing) == 3 else None


def _refused_file(item: Scanned) -> Input:
    """A file that is refused for itself. Its name is shown if it is a picture's or NIfTI's, else hashed."""
    path = item.found.path
    error = UserError(item.code, item.what, item.remedy)
    if path.lower().endswith((*_PICTURES, *_NIFTI)):
        kind: Kind = "nifti" if path.lower().endswith(_NIFTI) else "raster"
        return Input(path, kind, (item.found,), refused=error)
    return Input(f"FILE_{_hash(path)}", "file", (item.found,), refused=error)


def _scanned(found: Found, line: str, root: Path) -> Scanned:
    tree = json.loads(line)
    header = header_from_json({**tree["header"], "path": str(root / found.path)}) if "header" in tree else None
    code = tree.get("code", "")
    remedy = tree.get("remedy") or REMEDY.get(code, "")
    return Scanned(found, tree["kind"], header, code, tree.get("what", ""), remedy, tree.get("pages", 1))


def _told_apart(drafts: Iterable[Input]) -> Iterator[Input]:
    """Inputs of one id (a study that lies there twice under two patients) with a hash of their place added."""
    alike: dict[str, list[Input]] = {}
    for draft in drafts:
        alike.setdefault(draft.id, []).append(draft)
    for same in alike.values():
        for item in same:
            yield item if len(same) == 1 else _with(item, id=f"{item.id}-{_hash(item.files[0].path)[:8]}")


def _hashed(item: Input) -> Input:
    """The input under a hash of its path; a DICOM volume as it is."""
    if item.kind == "dicom":
        return item
    letters = {"raster": "IMG", "nifti": "VOL", "file": "FILE"}[item.kind]
    page = f"#{item.page}" if item.pages > 1 else ""
    return replace(item, id=f"{letters}_{_hash(item.files[0].path)}{page}", hashed=True)


def _stem(item: Input) -> str:
    """What files of an input are called: the name of a picture in full, of a NIfTI file without its suffix."""
    if item.hashed:
        return item.id.replace("#", ".p")
    if item.kind not in ("raster", "nifti"):
        return item.id
    path = item.files[0].path
    if item.kind == "nifti":
        packed = path[:-3] if path.lower().endswith(".gz") else path
        return packed.rpartition(".")[0] if packed.lower().endswith((".nii", ".hdr")) else packed
    return f"{path}.p{item.page}" if item.pages > 1 else path


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _with(item: Input, **changes: str) -> Input:
    return Input(**{**vars(item), **changes})
