"""One DICOM data set without what identifies a person: pixels stay byte for byte, everything else obeys the profile."""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    UID_dictionary,
)

import medmtl
from medmtl.io.deidentify import csa, private
from medmtl.io.deidentify.dates import capped_age
from medmtl.io.deidentify.elements import charset_of, fits, level, plain, syntax_of, vr_of
from medmtl.io.deidentify.profile import BINARY, CODE_TEXT, TYPE_UIDS, Action, Options, rule, wordless
from medmtl.io.deidentify.pseudonyms import Pseudonyms, Subject
from medmtl.io.deidentify.scrub import Scrub
from medmtl.io.deidentify.vocabulary import PUBLIC_SCHEMES, clean
from medmtl.io.reasons import refusal

IMPLEMENTATION_UID = "2.25.226387428961531346158296432174063120193"  # chosen once, at random (PS3.5 B.2)
DEEPEST = 64  # levels of sequences; more is no image but an attack
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_DUMMY: dict[str, Any] = {
    "DA": "19000101", "DT": "19000101000000", "TM": "000000", "AS": "000Y", "CS": "REMOVED", "DS": "0", "IS": "0",
    "UR": "http://removed.invalid", "OB": b"\0\0", "OW": b"\0\0", "UN": b"",
}  # fmt: skip
_TEXT_VRS = frozenset({"LO", "SH", "LT", "ST", "UC", "UT", "PN", "AE", "UR"})
_SHORT_TEXT = frozenset({"LO", "SH"})
_ARRAYS = frozenset({"OF", "OD", "OL", "OV", "AT"})
_REPLACING = frozenset({Action.EMPTY, Action.DUMMY, Action.PATIENT, Action.STATION, Action.UID})  # whatever was there
_BINARY_VRS = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "UN"})
_UIDS = re.compile(r"[\d.\\ \0]*")
_LONGEST = 64  # characters of a kept text: one that is longer has swallowed its neighbours
_PROSE = re.compile(rb"[\x20-\x7e]{12}")
_NUMBER_TEXT = re.compile(r"[\d\s.+\-eE\\\0]*")
_CODE_STRING = re.compile(r"[A-Za-z0-9 _\\\0.\-/+]*")
_CLOCK = re.compile(r"[\d:.\s\0\\]*")


@dataclass(frozen=True)
class _Work:
    """What de-identifying one data set needs to know."""

    pseudonyms: Pseudonyms
    options: Options
    subject: Subject
    scrub: Scrub
    explicit: bool  # the file that will be written states VRs


def subject_of(ds: Dataset) -> Subject:
    """Who a data set is about."""
    return Subject(plain(ds, "PatientID"), plain(ds, "IssuerOfPatientID"), plain(ds, "StudyInstanceUID"))


def scrub_of(ds: Dataset, *paths: str) -> Scrub:
    """A scrub of the names and identifiers of a header, and of the parts of ``paths``."""
    with config.disable_value_validation():
        keywords = ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "MedicalRecordLocator", "AdmissionID")
        identifiers = (part for word in keywords for part in plain(ds, word).split("\\"))
        return Scrub((plain(ds, "PatientName"), *_names(ds, 0)), tuple(identifiers), paths)


def _names(ds: Dataset, depth: int) -> Iterator[str]:
    """Every person name, but for those in functional groups, which are many and hold none."""
    for tag in level(ds):
        vr = vr_of(ds, tag)
        if vr == "PN":
            yield plain(ds, tag)
        elif vr == "SQ" and not tag.is_private and tag.group != 0x5200 and depth <= DEEPEST:
            for item in ds[tag].value or []:
                yield from _names(item, depth + 1)


def deidentify_dataset(ds: Dataset, pseudonyms: Pseudonyms, options: Options = Options()) -> Dataset:
    """A new data set in the transfer syntax of ``ds``, which is left as it is; see :mod:`profile` for the rules.

    Raises UserError (``E-DEID-READ``) where the file names no SOP class or instance or nests deeper than 64 levels.
    It does not look for text in pixels: ask :func:`~medmtl.io.deidentify.burned_in.burned_in` before.
    """
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not plain(ds, keyword):
            raise refusal("E-DEID-READ", f"the file has no {keyword}")
    syntax = syntax_of(ds)
    with config.disable_value_validation():
        work = _Work(pseudonyms, options, subject_of(ds), scrub_of(ds), not syntax.is_implicit_VR)
        clean_ds = _deidentified(ds, work, depth=0)
        _declare(clean_ds, work)
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\0\1"
        meta.MediaStorageSOPClassUID = UID(plain(ds, "SOPClassUID"))
        meta.MediaStorageSOPInstanceUID = UID(pseudonyms.uid(plain(ds, "SOPInstanceUID")))
        meta.TransferSyntaxUID = syntax
        meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
        meta.ImplementationVersionName = f"MEDMTL {medmtl.__version__}"[:16]
    clean_ds.file_meta, clean_ds.preamble = meta, b"\0" * 128
    clean_ds.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian, charset_of(ds))
    return clean_ds


def encoded(ds: Dataset) -> bytes:
    """The bytes of a DICOM file (part 10) of a de-identified data set."""
    stream = io.BytesIO()
    with config.disable_value_validation():
        dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def _deidentified(ds: Dataset, work: _Work, depth: int) -> Dataset:
    if depth > DEEPEST:
        raise refusal("E-DEID-READ", f"sequences are nested deeper than {DEEPEST} levels")
    result = Dataset()
    for tag in level(ds):
        if tag.is_private:
            continue
        element = _standard(ds, tag, work, depth)
        if element is not None:
            result[tag] = element
    if work.options.safe_private:
        _keep_private(ds, result)
    return result


def _standard(ds: Dataset, tag: BaseTag, work: _Work, depth: int) -> DataElement | RawDataElement | None:
    """What becomes of one standard element; None if it is removed."""
    action = rule(int(tag), work.options)
    if action is Action.REMOVE or (action not in _REPLACING and not fits(ds, tag)):
        return None
    stated = dictionary_VR(tag).split(" or ")[0]
    vr = vr_of(ds, tag) if action not in (Action.PATIENT, Action.STATION) and fits(ds, tag) else stated
    if action is Action.CLEAN:
        cleaned = _cleaned(ds, tag, vr, work)
        if cleaned is not None:
            return cleaned
        action = wordless(int(tag))
    match action:
        case Action.REMOVE:
            return None
        case Action.EMPTY:
            return DataElement(tag, vr, Sequence() if vr == "SQ" else b"" if vr[0] == "O" or vr == "UN" else "")
        case Action.DUMMY:
            return _dummy(ds, tag, vr, work)
        case Action.PATIENT:
            return DataElement(tag, vr, work.pseudonyms.patient(work.subject))
        case Action.STATION:
            name = plain(ds, tag)
            return DataElement(tag, vr, work.pseudonyms.station(name) if name else "")
        case Action.AGE:
            return DataElement(tag, vr, capped_age(plain(ds, tag)) or "")
        case Action.KEEP if int(tag) in BINARY:
            return _kept(ds, tag, work) if vr in _BINARY_VRS else None
        case Action.KEEP if int(tag) in TYPE_UIDS:
            return _kept(ds, tag, work) if _UIDS.fullmatch(plain(ds, tag)) else None
        case Action.KEEP if vr in _TEXT_VRS:
            text = plain(ds, tag)
            short = all(len(value) <= _LONGEST for value in text.split("\\")) and text.isprintable()
            return _kept(ds, tag, work) if short and not work.scrub.finds(text) else None
        case Action.UID:
            return _mapped_uid(ds, tag, work, exact=True)
    if vr == "SQ":  # catch-all, references, and whatever is kept
        return _sequence(ds, tag, work, depth)
    if int(tag) in CODE_TEXT:
        return _code_text(ds, tag, vr, work)
    return _BY_VR[vr](ds, tag, work) if vr in _BY_VR else None


def _sequence(ds: Dataset, tag: BaseTag, work: _Work, depth: int) -> DataElement:
    items = ds[tag].value or []
    return DataElement(tag, "SQ", Sequence([_deidentified(item, work, depth + 1) for item in items]))


def _kept(ds: Dataset, tag: BaseTag, work: _Work) -> DataElement | RawDataElement:
    """The element itself, undecoded where the output is encoded as the input was."""
    item = ds.get_item(tag)
    raw = isinstance(item, RawDataElement)
    return item if raw and item.VR != "UN" and (item.VR is not None or not work.explicit) else ds[tag]  # type: ignore[return-value]


def _dummy(ds: Dataset, tag: BaseTag, vr: str, work: _Work) -> DataElement | None:
    """A value that is valid for the VR and says nothing; an empty value stays empty."""
    if vr != "SQ" and not plain(ds, tag):
        return DataElement(tag, vr, "")
    if vr == "UI":
        return _mapped_uid(ds, tag, work, exact=True)
    if vr in ("DA", "DT") and work.options.dates == "shift" and (moved := _moved(ds, tag, work)) is not None:
        return moved
    if vr == "SQ":
        return DataElement(tag, vr, Sequence())  # a sequence of dummies would claim what never was
    value = _DUMMY.get(vr, 0 if vr in private.NUMERIC_VRS else "REMOVED")
    return DataElement(tag, vr, value)


def _moved(ds: Dataset, tag: BaseTag, work: _Work) -> DataElement | None:
    """Dates and date-times (all values) moved by the patient's days, times as they are; None where one is malformed."""
    vr = vr_of(ds, tag)
    text = plain(ds, tag)
    if work.options.dates == "remove" or not text:
        return DataElement(tag, vr, "") if not text and vr in ("DA", "DT", "TM") else None
    if vr == "TM":
        return DataElement(tag, vr, text) if _CLOCK.fullmatch(text) else None
    move = work.pseudonyms.datetime if vr == "DT" else work.pseudonyms.date
    values = [move(work.subject, part) for part in text.split("\\")]
    return None if None in values else DataElement(tag, vr, "\\".join(value for value in values if value))


def _mapped_uid(ds: Dataset, tag: BaseTag, work: _Work, *, exact: bool = False) -> DataElement:
    """UIDs (all values) replaced; those that the standard registers name things, not instances, and stay.

    ``exact``: the attribute names an instance, so that only UIDs of the registry itself stay, not all below its root.
    """
    values = [part.strip(" \0") for part in plain(ds, tag).split("\\")]
    mapped = [
        uid
        if not uid or uid in UID_dictionary or (not exact and uid.startswith("1.2.840.10008."))
        else work.pseudonyms.uid(uid)
        for uid in values
    ]
    return DataElement(tag, "UI", mapped[0] if len(mapped) == 1 else mapped)


def _cleaned(ds: Dataset, tag: BaseTag, vr: str, work: _Work) -> DataElement | None:
    """The safe words of each value; None where nothing is left, or what is left holds an identifier of this header."""
    if vr not in _TEXT_VRS:
        return None
    values = [clean(part) for part in plain(ds, tag).split("\\")]
    if not any(values) or any(map(work.scrub.finds, values)):
        return None
    limit = {"SH": 16, "LO": 64}.get(vr, 1024)
    return DataElement(tag, vr, "\\".join(value[:limit] for value in values))


def _code_text(ds: Dataset, tag: BaseTag, vr: str, work: _Work) -> DataElement | RawDataElement | None:
    """Code value or meaning: as it is if the coding scheme is public, else its safe words."""
    if plain(ds, "CodingSchemeDesignator").strip().upper() in PUBLIC_SCHEMES:
        return None if work.scrub.finds(plain(ds, tag)) else _kept(ds, tag, work)
    return _cleaned(ds, tag, vr, work) or _dummy(ds, tag, vr, work)


def _catch_text(ds: Dataset, tag: BaseTag, work: _Work) -> DataElement | None:
    """Short text that no rule names: its safe words, or an empty value, which type 2 needs; long text goes."""
    vr = vr_of(ds, tag)
    if vr not in _SHORT_TEXT:
        return None
    return (work.options.descriptors and _cleaned(ds, tag, vr, work)) or DataElement(tag, vr, "")


def _catch_number(ds: Dataset, tag: BaseTag, work: _Work) -> DataElement | RawDataElement | None:
    return _kept(ds, tag, work) if _NUMBER_TEXT.fullmatch(plain(ds, tag)) else None


def _catch_code_string(ds: Dataset, tag: BaseTag, work: _Work) -> DataElement | RawDataElement | None:
    text = plain(ds, tag)
    short = all(len(value.strip(" \0")) <= 16 for value in text.split("\\"))
    return _kept(ds, tag, work) if short and _CODE_STRING.fullmatch(text) and not work.scrub.finds(text) else None


def _catch_age(ds: Dataset, tag: BaseTag, work: _Work) -> DataElement | None:
    age = capped_age(plain(ds, tag))
    return DataElement(tag, "AS", age) if age and work.options.patient_characteristics else None


def _removed(ds: Dataset, tag: BaseTag, work: _Work) -> None:
    return None


def _catch_array(ds: Dataset, tag: BaseTag, work: _Work) -> DataElement | RawDataElement | None:
    """Binary numbers, unless they read as text: an element of wrong length can swallow its neighbours."""
    item = ds.get_item(tag)
    raw = item.value if isinstance(item, RawDataElement) else b""
    return None if _PROSE.search(raw or b"") else _kept(ds, tag, work)


_Catch = Callable[[Dataset, BaseTag, _Work], DataElement | RawDataElement | None]
_BY_VR: dict[str, _Catch] = {
    **dict.fromkeys(_TEXT_VRS, _catch_text),
    **dict.fromkeys(("DA", "DT", "TM"), _moved),
    **dict.fromkeys(private.NUMERIC_VRS | _ARRAYS, _catch_array),
    **dict.fromkeys(("DS", "IS"), _catch_number),
    "CS": _catch_code_string,
    "AS": _catch_age,
    "UI": _mapped_uid,
}


def _keep_private(ds: Dataset, result: Dataset) -> None:
    """Add the safe private attributes of one level to ``result``, each with its private creator."""
    blocks = {  # (group, block) -> creator
        (tag.group, tag.element): plain(ds, tag) for tag in level(ds) if tag.is_private and 0x10 <= tag.element <= 0xFF
    }
    for tag in [tag for tag in level(ds) if tag.is_private and (tag.group, tag.element >> 8) in blocks]:
        creator = blocks[tag.group, tag.element >> 8].strip(" \0")
        name = (tag.group, creator, tag.element & 0xFF)
        if name not in private.SAFE:
            continue
        element = ds[tag]
        if name == private.CSA:
            numbers = csa.numbers_only(element.value) if isinstance(element.value, bytes) else None
            kept = DataElement(tag, "OB", numbers) if numbers else None
        else:
            kept = element if private.harmless(element.VR, plain(ds, tag)) else None
        if kept is not None:
            result[tag] = kept
            result[Tag(tag.group, tag.element >> 8)] = DataElement(Tag(tag.group, tag.element >> 8), "LO", creator)


def _declare(ds: Dataset, work: _Work) -> None:
    """Say in the data set who it is about now, and what was done (PS3.15 E.1.1)."""
    patient = work.pseudonyms.patient(work.subject)
    ds.PatientName, ds.PatientID = patient, patient
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = [f"medmtl {medmtl.__version__}", "DICOM PS3.15 E.1 2026c"]
    ds.DeidentificationMethodCodeSequence = Sequence([_code(*code) for code in work.options.codes()])
    ds.LongitudinalTemporalInformationModified = "MODIFIED" if work.options.dates == "shift" else "REMOVED"


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
