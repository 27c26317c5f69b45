"""The tables of a study: its manifest, and the private ones that lead back from it to the source."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medmtl.data.case import Case
from medmtl.errors import UserError
from medmtl.ingest.cases import PlannedCase
from medmtl.ingest.labels import LabelTable
from medmtl.ingest.ledger import Entry
from medmtl.ingest.naming import Namer, cell
from medmtl.ingest.rules import as_text, dicom_value
from medmtl.io.deidentify.dates import capped_age
from medmtl.io.deidentify.key import write_private
from medmtl.io.deidentify.pseudonyms import Subject as Patient
from medmtl.io.dicom.record import Header

_COPIED = {  # column of the manifest <- DICOM keyword
    "modality": "Modality",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "field_strength_t": "MagneticFieldStrength",
    "kvp": "KVP",
    "slice_thickness_mm": "SliceThickness",
    "body_part": "BodyPartExamined",
    "series_number": "SeriesNumber",
    "sex": "PatientSex",
}
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_MOST_DOMAINS = 20


def manifest_case(case: PlannedCase, entry: Entry, targets: Mapping[str, str], namer: Namer) -> Case:
    """The row of a case that has an image."""
    masks = {target: name for target in (*case.masks, *case.drawn) if (name := _mask(case, target, entry))}
    return Case(
        case_id=case.id,
        group=case.group,
        image=entry.image,
        domain=case.domain,
        targets={**masks, **targets},
        meta=_meta(case, entry, namer),
    )


def check_targets(cases: Iterable[PlannedCase], table: LabelTable | None) -> None:
    """Refuse a column of labels that is called like a mask: the manifest has one column of a name."""
    masks = {target for case in cases for target in (*case.masks, *case.drawn)}
    if twice := sorted(masks & set(table.columns if table else ())):
        raise UserError(
            "E-ING-LABEL-COLUMN", f"{', '.join(twice)} is a column of labels and a mask", "rename the column, or leave "
            "it out with --targets", where="--labels",
        )  # fmt: skip


def _mask(case: PlannedCase, target: str, entry: Entry) -> str:
    """Where the mask lies; empty where a structure set turned out to hold no closed contour for it."""
    return next((name for name in entry.outputs if name.startswith(f"masks/{target}/{case.id}.")), "")


def _meta(case: PlannedCase, entry: Entry, namer: Namer) -> dict[str, str]:
    """Acquisition metadata as text, in an order that does not depend on the case; nothing that identifies."""
    found: dict[str, str] = {"source": case.kind}
    if case.stack is not None:
        header = case.stack.first
        found |= {column: dicom_value(header, keyword) for column, keyword in _COPIED.items()}
        found |= {"age_years": age_years(header), "study_date": _study_date(header, namer)}
        found |= {f"split.{name}": as_text(value) for name, value in case.stack.split}
    facts = entry.facts
    found["spacing_mm"] = " x ".join(f"{step:.6g}" for step in facts.get("spacing_mm", ()))
    found["shape"] = " x ".join(str(n) for n in facts.get("shape", ()))
    found["orientation"] = facts.get("orientation", "")
    found["fourth_axis"] = facts.get("fourth_axis", "")
    found["units"] = facts.get("units", "")
    found["notes"] = " ".join(dict.fromkeys(code for code, _ in entry.notes))
    return {name: cell(value) for name, value in found.items() if value}


def age_years(header: Header) -> str:
    """The patient's age in years; 90 stands for everybody above 89."""
    age = capped_age(header.private.get("PatientAge", ""))
    return "" if age is None else f"{int(age[:3]) * _YEARS[age[3]]:.4g}"


def _study_date(header: Header, namer: Namer) -> str:
    """ISO; moved by the patient's shift unless names are kept."""
    date = header.private.get("StudyDate", "")
    if not namer.keep:
        who = Patient(header.patient_id, header.private.get("IssuerOfPatientID", ""), header.study_uid)
        date = namer.pseudonyms.date(who, date) or ""
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}" if len(date) == 8 and date.isdigit() else ""


def warnings_of(cases: Sequence[PlannedCase]) -> list[str]:
    """What somebody should know about patients and domains of a study, as counts."""
    found = []
    anonymous = sum(case.stack is not None and not case.stack.first.patient_id.strip(" \0") for case in cases)
    if anonymous:
        found.append(f"W-DEID-NO-PATIENT-ID {anonymous} volumes have no patient id: each study is its own group")
    domains, groups = {case.domain for case in cases} - {""}, {case.group for case in cases}
    if len(domains) > max(_MOST_DOMAINS, len(groups) // 2):
        found.append(f"W-ING-DOMAIN {len(domains)} domains for {len(groups)} groups: does the rule name scanners?")
    return found


def write_crosswalk(path: Path, cases: Iterable[PlannedCase]) -> Path:
    """Which case is which patient, study and series: for the private folder."""
    rows = []
    for case in cases:
        header = case.stack.first if case.stack is not None else None
        real = ["", "", "", ""] if header is None else [
            header.patient_id, header.study_uid, header.series_uid, header.private.get("AccessionNumber", "")
        ]  # fmt: skip
        rows.append([case.id, case.group, *real, case.files[0].path])
    heads = ["case", "group", "patient_id", "study_uid", "series_uid", "accession_number", "first_file"]
    return write_table(path, heads, rows)


def write_table(path: Path, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    """A CSV file for its owner's eyes; bytes of names that are no UTF-8 stay what they are."""
    return write_private(path, csv_text(heads, rows).encode("utf-8", "surrogateescape"))


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return stream.getvalue()
