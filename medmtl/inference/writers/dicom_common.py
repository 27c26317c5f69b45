"""What DICOM results share: whose they are, when, made by what; identifiers that are the same for the same results.

Patient and study are copied from the source file and from nowhere else. Nothing is taken from the clock: the dates of
a result are those of its source.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from highdicom import AlgorithmIdentificationSequence
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from medmtl import __version__
from medmtl.errors import UserError
from medmtl.files import atomic_path
from medmtl.inference.prediction import CasePrediction
from medmtl.inference.writers.findings import NOTICE, PRIVATE, Concept
from medmtl.io.dicom.stack import Stack
from medmtl.io.reasons import refusal

MAKER, MODEL = "medmtl", "medmtl (research use only)"
AI = Concept(value="123110", scheme="DCM", meaning="Artificial Intelligence")
_NEVER = ("19000101", "000000")  # where the source has no date at all
_REQUIRED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_METHOD_UNKNOWN = "not stated by the source"
_IMAGE_GROUPS = (0x0028, 0x5200)  # of the source's pixels and frames: not of its patient or study


def made_uid(*what: object) -> str:
    """A UID below 2.25 that is the same for the same words: the first 128 bits of their SHA-256 (PS3.5 B.2)."""
    digest = hashlib.sha256("\0".join(map(str, what)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def concept(of: Concept) -> CodedConcept:
    return CodedConcept(of.value, of.scheme, of.meaning)


def algorithm(case: CasePrediction, task: str) -> AlgorithmIdentificationSequence:
    """Name, version and family of what found it; the version is the bundle."""
    return AlgorithmIdentificationSequence(
        name=f"medmtl {task}"[:64],
        family=concept(AI),
        version=case.bundle,
        source=MAKER,
        parameters={"medmtl": __version__, "notice": NOTICE},
    )


def common(stack: Stack) -> dict[str, Any]:
    """Arguments that every object of highdicom takes for itself alone."""
    date, time = content_moment(stack)
    scheme = CodingSchemeIdentificationItem(
        PRIVATE, name="Classes and tasks of medmtl bundles", responsible_organization=MAKER
    )
    return {
        "manufacturer": MAKER,
        "manufacturer_model_name": MODEL,
        "software_versions": __version__,
        "device_serial_number": "none",
        "coding_schemes": [scheme],
        "specific_character_set": "ISO_IR 192",
        "content_date": DA(date),
        "content_time": TM(time),
    }


def content_moment(stack: Stack) -> tuple[str, str]:
    """Date and time of the source: of its content, acquisition, series or study, the first that is whole."""
    ds = header_of(stack)
    for kind in ("Content", "Acquisition", "Series", "Study"):
        date, time = ds.get(f"{kind}Date"), ds.get(f"{kind}Time")
        if _is(DA, date):
            return str(date), str(time) if _is(TM, time) else _NEVER[1]
    return _NEVER


def header_of(stack: Stack) -> Dataset:
    """The first source file without its pixels, as highdicom can copy patient and study from it.

    Values that highdicom refuses (a malformed date, a sex beyond M, F and O) are emptied, and attributes that are empty
    without being allowed to be are left out. Where the patient's identity was removed and nothing says how, the method
    is said to be unknown: the standard wants one (0012,0063). Raises UserError ``E-OUT-SOURCE`` if the file is gone or
    cannot be read.
    """
    first = stack.first
    try:
        status = first.path.stat()
        if (status.st_size, status.st_mtime_ns) != (first.size, first.mtime_ns):
            raise refusal("E-FILE-CHANGED", "the file was changed since its header was read")
        ds = dcmread(first.path, force=True, stop_before_pixels=True)
        for tag in [tag for tag in list(ds.keys()) if tag.group in _IMAGE_GROUPS or tag.is_private]:
            del ds[tag]
        ds.decode()
    except UserError:
        raise
    except Exception as error:  # pydicom raises whatever a malformed value leads to
        raise UserError(
            "E-OUT-SOURCE",
            f"the source's header cannot be read again ({type(error).__name__})",
            "leave the source where it is until the job has ended",
        ) from error
    for element in list(ds):
        if element.is_empty:
            del ds[element.tag]
    for keyword in _REQUIRED:
        if keyword not in ds:
            setattr(ds, keyword, None)
    for kind, keywords in ((DA, ("PatientBirthDate", "StudyDate")), (TM, ("StudyTime",))):
        for keyword in keywords:
            if not _is(kind, ds.get(keyword)):
                setattr(ds, keyword, None)
    if ds.PatientSex not in ("M", "F", "O"):
        ds.PatientSex = None
    methods = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
    if ds.get("PatientIdentityRemoved") == "YES" and not any(keyword in ds for keyword in methods):
        ds.DeidentificationMethod = _METHOD_UNKNOWN
    ds.SpecificCharacterSet = "ISO_IR 192"  # decoded above; class names may need more than the source's
    return ds


def _is(kind: Any, value: Any) -> bool:
    """Whether ``value`` is a whole date or time, not empty and not a range."""
    try:
        return value not in (None, "") and isinstance(value, str) and bool(kind(value))
    except (ValueError, TypeError):
        return False


def stand_in(stack: Stack, header: Dataset, number: int = 0) -> Dataset:
    """``header`` as a picture without a place: highdicom takes sources of one kind and one geometry alone.

    Its class is one that highdicom knows for certain; references to it are put right afterwards.
    """
    ds = Dataset()
    ds.update(header)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient"):
        if keyword in ds:
            del ds[keyword]
    ds.SOPClassUID, ds.SOPInstanceUID = ComputedRadiographyImageStorage, made_uid(stack.key, "stand-in", number)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = stack.first.study_uid, stack.first.series_uid
    ds.Modality = stack.first.modality
    return ds


def put_in_order(ds: Dataset, names: Mapping[str, str]) -> None:
    """Take the clock and random numbers out of what highdicom made; ``names``: its random UIDs -> ours."""
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in ds:
            del ds[keyword]
    for item in ds.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    for element in ds.iterall():
        if element.VR == "UI" and isinstance(element.value, str) and element.value in names:
            element.value = names[element.value]


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """What highdicom and pydicom raise, as a UserError ``E-OUT-DICOM`` without their text: it may quote the patient."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise UserError(
            "E-OUT-DICOM",
            f"no {what} can be made of this source ({type(error).__name__})",
            "choose another output format for it, or mend its headers",
        ) from error


class InvalidUID(UserError):
    """A UID of the source that its results would have to repeat is none."""


def check_uids(ds: Dataset) -> None:
    """Refuse an object that holds a UID which is none (PS3.5 9.1): an archive would refuse it, or store it as another.

    Ours are valid; every other one was copied, also those that highdicom copies of the source's requests.
    """
    for element in ds.iterall():
        if element.VR == "UI":
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            if not all(value and UID(value).is_valid for value in values):
                raise InvalidUID(
                    "E-OUT-DICOM",
                    f"the {element.name} of the source is no valid UID",
                    "choose another output format for it, or mend its headers",
                )


def save(path: Path, ds: Dataset) -> Path:
    """Write a DICOM file, whole or not at all; InvalidUID where it would not be one."""
    check_uids(ds)
    with atomic_path(path) as temporary:
        ds.save_as(temporary, enforce_file_format=True)
    return path
