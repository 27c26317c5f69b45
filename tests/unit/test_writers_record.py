"""JSON findings: of FHIR's shape by a schema, with the values of the table, and nothing of the patient."""

import json
import re
from dataclasses import replace

import jsonschema
import pytest
from writers_made import CELLS, NOTICE, phantom, tabled

from medmtl.inference.writers import record
from medmtl.inference.writers.findings import Coding

CODING = {
    "type": "object",
    "properties": {
        "system": {"type": "string", "pattern": r"^(https?://|urn:)\S+$"},
        "code": {"type": "string", "pattern": r"^\S+( \S+)*$"},
        "display": {"type": "string", "minLength": 1},
    },
    "required": ["system", "code", "display"],
    "additionalProperties": False,
}
CONCEPT = {
    "type": "object",
    "properties": {"coding": {"type": "array", "items": CODING, "minItems": 1}, "text": {"type": "string"}},
    "additionalProperties": False,
}
QUANTITY = {
    "type": "object",
    "properties": {
        "value": {"type": "number"},
        "unit": {"type": "string"},
        "system": {"const": "http://unitsofmeasure.org"},
        "code": {"type": "string", "pattern": r"^\S+$"},
    },
    "required": ["value", "unit", "system", "code"],
    "additionalProperties": False,
}
EXTENSION = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"url": {"type": "string"}, "valueString": {"type": "string", "minLength": 1}},
        "required": ["url", "valueString"],
        "additionalProperties": False,
    },
}
ID = {"type": "string", "pattern": r"^[A-Za-z0-9.-]{1,64}$"}
VALUES = {"valueQuantity": QUANTITY, "valueCodeableConcept": CONCEPT, "extension": EXTENSION}
OBSERVATION = {
    "type": "object",
    "properties": {
        "resourceType": {"const": "Observation"},
        "id": ID,
        "status": {"const": "preliminary"},
        "code": CONCEPT,
        "device": {"const": {"reference": "#algorithm"}},
        **VALUES,
        "component": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"code": CONCEPT, **VALUES},
                "required": ["code", "valueQuantity"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["resourceType", "id", "status", "code", "device"],
    "not": {"required": ["valueQuantity", "valueCodeableConcept"]},  # value[x] is one
    "additionalProperties": False,
}
DEVICE = {
    "type": "object",
    "properties": {
        "resourceType": {"const": "Device"},
        "id": {"const": "algorithm"},
        "identifier": {"type": "array"},
        "deviceName": {"type": "array"},
        "version": {"type": "array"},
        "note": {"type": "array"},
    },
    "required": ["resourceType", "id"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "resourceType": {"const": "DiagnosticReport"},
        "id": ID,
        "contained": {"type": "array", "prefixItems": [DEVICE], "items": OBSERVATION},
        "identifier": {"type": "array", "minItems": 1},
        "status": {"const": "preliminary"},
        "code": CONCEPT,
        "result": {
            "type": "array",
            "items": {"type": "object", "properties": {"reference": {"type": "string", "pattern": "^#"}}},
        },
        "conclusion": {"type": "string"},
        "extension": EXTENSION,
    },
    "required": ["resourceType", "id", "contained", "status", "code", "result", "conclusion"],
    "additionalProperties": False,
}


def written(case, out, **options):
    (path,) = record.write(case, out, **options)
    tree = json.loads(path.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(tree)
    return tree


def columns(tree):
    """{column: value} of everything that names the column of the table that it is in."""
    found = {}
    for observation in tree["contained"][1:]:
        for item in (observation, *observation.get("component", ())):
            for extension in item.get("extension", ()):
                assert extension["url"] == record.COLUMN
                value = item["valueQuantity"]["value"] if "valueQuantity" in item else item["valueCodeableConcept"]
                found[extension["valueString"]] = value["text"] if isinstance(value, dict) else value
    return found


def test_it_has_fhirs_shape_and_the_tables_values(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    found = columns(written(case, tmp_path))
    assert set(found) == set(CELLS) - {"adas_cog.unit"}
    for column, value in found.items():
        want = tabled(case, column)
        assert value == (want if column in ("diagnosis.label", "stage.level", "cdr.level") else float(want)), column


def test_results_are_the_contained_observations(tmp_path):
    tree = written(phantom(tmp_path / "scan", "axial")[0], tmp_path)
    ids = [f"#{item['id']}" for item in tree["contained"][1:]]
    assert [item["reference"] for item in tree["result"]] == ids and len(set(ids)) == 7
    assert {item["device"]["reference"] for item in tree["contained"][1:]} == {f"#{tree['contained'][0]['id']}"}


def test_units_and_codes_are_those_of_the_coding(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    tree = written(case, tmp_path, coding={"malignant": Coding(value="86049000", meaning="Malignant neoplasm")})
    by_text = {item["code"]["text"]: item for item in tree["contained"][1:]}
    assert by_text["adas_cog"]["valueQuantity"]["code"] == "{points}"
    (answer,) = by_text["diagnosis"]["valueCodeableConcept"]["coding"]
    assert answer == {"system": "http://snomed.info/sct", "code": "86049000", "display": "Malignant neoplasm"}
    volumes = [c for c in by_text["seg: lesion"]["component"] if c["code"]["text"] == "Volume"]
    assert volumes[0]["valueQuantity"]["code"] == "mm3"


def test_warnings_and_the_notice_are_in_it(tmp_path):
    case = replace(phantom(tmp_path / "scan", "axial")[0], warnings=("W-A b",), gate={"spacing": "too wide"})
    tree = written(case, tmp_path)
    assert NOTICE in tree["conclusion"]
    assert [item["valueString"] for item in tree["extension"]] == ["W-A b", "spacing: too wide"]
    assert "extension" not in written(replace(case, warnings=(), gate={}), tmp_path)


def test_nothing_of_the_patient_is_in_it(tmp_path):
    case, truth = phantom(tmp_path / "scan", "axial")
    text = record.write(case, tmp_path)[0].read_text()
    assert not [name for name in truth.identifiers if name in text]
    assert not re.search(r"\b(19|20)\d{6}\b|2\.25\.", text)


def test_equal_results_are_equal_bytes(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    first, second = (record.write(case, tmp_path / name)[0].read_bytes() for name in "ab")
    other = record.write(replace(case, source=replace(case.source, name="P2")), tmp_path / "c")[0].read_bytes()
    assert first == second != other


@pytest.mark.parametrize("name", ["ü/ö.nii", "odd\udcff.png", 'quo"te'])
def test_any_name_of_a_file_is_valid_json(tmp_path, name):
    case, _ = phantom(tmp_path / "scan", "axial")
    assert written(replace(case, source=replace(case.source, name=name)), tmp_path)["identifier"][0]["value"]
