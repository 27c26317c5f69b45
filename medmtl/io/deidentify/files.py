"""One file through de-identification: read, judged, cleaned, written under its pseudonyms, never over another."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID

from medmtl.errors import EnvironmentFailure, UserError
from medmtl.files import disk_errors
from medmtl.io.deidentify.burned_in import burned_in
from medmtl.io.deidentify.dataset import deidentify_dataset, encoded, subject_of
from medmtl.io.deidentify.elements import plain, syntax_of
from medmtl.io.deidentify.key import Key
from medmtl.io.deidentify.profile import Options
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.dicom.quiet import quiet
from medmtl.io.reasons import REMEDY, refusal

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".dic")
DICOMDIR = "1.2.840.10008.1.3.10"
Status = Literal["ok", "refused", "ignored"]


@dataclass(frozen=True)
class Job:
    """One file to do; picklable, for another process."""

    id: str
    path: str
    size: int
    mtime_ns: int
    out: str
    key: Key
    options: Options


@dataclass(frozen=True)
class Row:
    """What became of one file. Nothing in it says which file it was: that is in the private folder."""

    id: str
    status: Status
    code: str = ""
    what: str = ""
    output: str = ""  # relative to the output folder
    sha256: str = ""  # of the output
    notes: tuple[str, ...] = ()
    size: int = 0  # of the input, as mtime_ns: what changes when it is written to
    mtime_ns: int = 0
    kind: str = ""  # of an ignored file

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDY.get(self.code, "")


def deidentify_file(job: Job) -> Row:
    """De-identify one file. Whatever is wrong with it ends in a row; only a failing disk raises."""
    try:
        with quiet():
            return _done(job)
    except EnvironmentFailure:
        raise
    except UserError as error:
        return _row(job, "refused", code=error.code, what=error.what)
    except OSError as error:
        return _row(job, "refused", code="E-FILE-OPEN", what=os.strerror(error.errno) if error.errno else "unreadable")
    except Exception as error:  # a decoder can raise anything; its message may quote the header, its type does not
        return _row(job, "refused", code="E-DEID-READ", what=f"the header cannot be read ({type(error).__name__})")


def _done(job: Job) -> Row:
    path = Path(job.path)
    ds = read_dicom(path)
    if ds is None:
        return _no_dicom(job, path)
    if plain(ds, "SOPClassUID") == DICOMDIR or "DirectoryRecordSequence" in ds:
        return _row(job, "ignored", kind="DICOMDIR")
    found = path.stat()
    if (found.st_size, found.st_mtime_ns) != (job.size, job.mtime_ns):
        raise refusal("E-FILE-CHANGED", "the file changed while it was read")
    _check_whole(ds)
    reason = burned_in(ds)
    if reason is not None and not (reason.code == "E-DEID-BURNED" and job.options.allow_burned_in):
        return _row(job, "refused", code=reason.code, what=reason.what)
    pseudonyms = Pseudonyms(job.key)
    content = encoded(deidentify_dataset(ds, pseudonyms, job.options))
    output = output_path(ds, pseudonyms)
    digest = hashlib.sha256(content).hexdigest()
    if not _claimed(Path(job.out) / output, content, digest):
        return _row(job, "refused", code="E-DEID-DUPLICATE", what=_TWICE, output=output)
    notes = ("W-DEID-NO-PATIENT-ID",) if subject_of(ds).anonymous else ()
    return _row(job, "ok", output=output, sha256=digest, notes=notes)


_TWICE = "several different files have this SOP Instance UID"


def _row(
    job: Job, status: Status, *, code: str = "", what: str = "", output: str = "", sha256: str = "",
    notes: tuple[str, ...] = (), kind: str = "",
) -> Row:  # fmt: skip
    return Row(job.id, status, code, what, output, sha256, notes, job.size, job.mtime_ns, kind)


def output_path(ds: Dataset, pseudonyms: Pseudonyms) -> str:
    """``patient/study/series/instance.dcm``, all pseudonyms."""
    study, series, instance = (plain(ds, word) for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    uids = "/".join(pseudonyms.uid(uid) for uid in (study, series, instance))
    return f"{pseudonyms.patient(subject_of(ds))}/{uids}.dcm"


def read_dicom(path: Path, *, pixels: bool = True) -> Dataset | None:
    """A DICOM file as pydicom reads it, with or without preamble; None where it is none."""
    with path.open("rb") as stream:
        head = stream.read(132)
    if head[128:] != b"DICM" and not _bare(head):
        return None
    try:
        return pydicom.dcmread(path, force=head[128:] != b"DICM", stop_before_pixels=not pixels)
    except InvalidDicomError:
        return None


def _bare(head: bytes) -> bool:
    """Whether a file may be DICOM without its preamble: it begins with an element of group 2 or 8, of sane length."""
    group, element = int.from_bytes(head[:2], "little"), int.from_bytes(head[2:4], "little")
    if len(head) < 132 or group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return (int.from_bytes(head[6:8], "little") if explicit else int.from_bytes(head[4:8], "little")) < 1024


def _no_dicom(job: Job, path: Path) -> Row:
    """A file that is no DICOM is ignored, unless its name says that it should be one."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        if job.size == 0:
            raise refusal("E-FILE-EMPTY", "the file is empty (0 bytes)")
        raise refusal("E-DEID-READ", "the file is named as DICOM and is none")
    return _row(job, "ignored", kind=path.suffix.lower()[:12] if path.suffix[1:].isalnum() else "no suffix")


def _check_whole(ds: Dataset) -> None:
    """An image without pixels, or with uncompressed ones that are cut off, is refused. Nothing is decoded."""
    pixels = any(word in ds for word in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    if not pixels and "Image Storage" in UID(plain(ds, "SOPClassUID")).name:
        raise refusal("E-DEID-READ", "an image without pixels: the file is cut off")
    if "PixelData" in ds and not syntax_of(ds).is_compressed:
        expected, found = get_expected_length(ds), len(ds.PixelData)
        if found < expected:
            raise refusal("E-DEID-READ", f"the pixels are cut off: {found} of {expected} bytes")


def _claimed(path: Path, content: bytes, digest: str) -> bool:
    """Write ``content`` as ``path`` unless something else is there; False if it is. Two processes cannot both win."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp.dcm")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return hashlib.sha256(path.read_bytes()).hexdigest() == digest
        finally:
            temporary.unlink(missing_ok=True)
    return True
