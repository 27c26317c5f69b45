"""The findings of a case as JSON in the shape of HL7 FHIR R4: a ``DiagnosticReport`` that contains its observations.

FHIR-like: resources, fields and code systems are FHIR's, so that a server's importer has little to map; but there is no
subject and no date, which belong to the patient, and a report is ``preliminary`` until a person has signed it, which
nobody does for research.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmtl import __version__
from medmtl.files import write_atomic
from medmtl.inference.prediction import CasePrediction
from medmtl.inference.writers.findings import NOTICE, PRIVATE, Coding, Concept, Finding, Measure, findings

NAME = "findings.json"
SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "UCUM": "http://unitsofmeasure.org",
    "LN": "http://loinc.org",
    "RADLEX": "http://radlex.org",
    "NCIt": "http://ncicb.nci.nih.gov/xml/owl/EVS/Thesaurus.owl",
    PRIVATE: "urn:medmtl:codes",
}
COLUMN = "urn:medmtl:column"  # extension: the column of predictions.csv that holds the same value


def write(case: CasePrediction, out: Path, *, coding: Mapping[str, Coding] = {}) -> list[Path]:
    """``findings.json`` below ``out``."""
    text = json.dumps(record(case, coding), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return [write_atomic(out / NAME, text.encode("utf-8", "backslashreplace"))]


def record(case: CasePrediction, coding: Mapping[str, Coding]) -> dict[str, Any]:
    """The report as plain data."""
    observed = [item for item in findings(case, coding) if item.measures or item.answer]
    observations = [_observation(f"finding-{n}", item) for n, item in enumerate(observed, start=1)]
    remarks = [*case.warnings, *(f"{field}: {what}" for field, what in case.gate.items())]
    report: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "id": hashlib.sha256(f"{case.bundle}\0{case.source.name}".encode("utf-8", "backslashreplace")).hexdigest()[:32],
        "contained": [_device(case), *observations],
        "identifier": [{"system": "urn:medmtl:case", "value": case.source.name}],
        "status": "preliminary",
        "code": {"text": "Automated image analysis, research use only"},
        "result": [{"reference": f"#{item['id']}"} for item in observations],
        "conclusion": NOTICE,
    }
    if remarks:
        report["extension"] = [{"url": "urn:medmtl:warning", "valueString": text} for text in remarks]
    return report


def _device(case: CasePrediction) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "id": "algorithm",
        "identifier": [{"system": "urn:medmtl:bundle", "value": case.bundle}],
        "deviceName": [{"name": "medmtl", "type": "model-name"}],
        "version": [{"value": __version__}],
        "note": [{"text": NOTICE}],
    }


def _observation(identity: str, item: Finding) -> dict[str, Any]:
    """One finding: its answer, or its first number where it has no answer, is the value; the rest are components.

    Of a segment all numbers are components: neither its share of the image nor its volume is what it is.
    """
    tree: dict[str, Any] = {
        "resourceType": "Observation",
        "id": identity,
        "status": "preliminary",
        "code": _concept(item.subject, text=item.task if item.segment is None else f"{item.task}: {item.label}"),
        "device": {"reference": "#algorithm"},
    }
    rest = item.measures
    if item.answer:
        tree |= {"valueCodeableConcept": _concept(item.answer), **_column(item.answer_column)}
    elif item.segment is None:
        tree |= {"valueQuantity": _quantity(rest[0]), **_column(rest[0].column)}
        rest = rest[1:]
    if rest:
        tree["component"] = [
            {"code": _concept(m.name), "valueQuantity": _quantity(m), **_column(m.column)} for m in rest
        ]
    return tree


def _column(name: str) -> dict[str, Any]:
    return {"extension": [{"url": COLUMN, "valueString": name}]} if name else {}


def _concept(of: Concept, *, text: str | None = None) -> dict[str, Any]:
    return {"coding": [_code(of)], "text": text or of.meaning}


def _code(of: Concept) -> dict[str, Any]:
    scheme = SYSTEMS.get(of.scheme, f"urn:medmtl:scheme:{re.sub(r'[^A-Za-z0-9-]', '-', of.scheme)}")
    return {"system": scheme, "code": of.value, "display": of.meaning}


def _quantity(measure: Measure) -> dict[str, Any]:
    unit = measure.unit
    return {"value": measure.value, "unit": unit.meaning, "system": SYSTEMS["UCUM"], "code": unit.value}
