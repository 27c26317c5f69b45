"""Findings: codes, units and numbers as they stand in every report."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from pydicom.sr.codedict import codes
from writers_made import CELLS, TASKS

from medmtl.config import validate
from medmtl.errors import UserError
from medmtl.inference.prediction import CasePrediction, Source
from medmtl.inference.writers import FORMATS, Output, write_case
from medmtl.inference.writers.findings import KNOWN, Coding, coded, findings, private, unit_of


def picture(**changes):
    tasks = {name: task for name, task in TASKS.items() if name != "seg"}
    cells = {key: value for key, value in CELLS.items() if not key.startswith("seg")}
    image = np.full((3, 20, 30), 0.5, np.float32)
    case = CasePrediction(Source("raster", "a.png", ()), image, tasks, cells, {}, "abc123def456")
    return replace(case, **changes)


def test_the_short_list_of_codes_is_dicoms_own():
    for name, known in KNOWN.items():
        code = getattr(codes.SCT, name.capitalize())
        assert (code.value, code.scheme_designator) == (known.value, known.scheme), name
        assert known.category is not None and known.category.value in {"91723000", "49755003"}


def test_the_users_code_comes_before_ours_and_the_nearer_key_first():
    mine, nearer = Coding(value="1", meaning="mine"), Coding(value="2", meaning="nearer")
    assert coded("lesion", {}).value == "52988006" == coded(" Lesion", {}).value
    assert coded("tumour", {}).value == coded("neoplasm", {}).value
    assert coded("lesion", {"lesion": mine}, task="seg") == mine
    assert coded("lesion", {"lesion": mine, "seg.lesion": nearer}, task="seg") == nearer
    assert coded("lesion", {"seg.lesion": nearer}, task="other").value == "52988006"


def test_our_own_codes_are_valid_distinct_and_stable():
    names = ["benign", "no finding", "no_finding", "no-finding ", "ü", "ö", "a" * 16, "a" * 17, "a" * 18, "a\\b", " "]
    made = [private(name) for name in names]
    assert len({code.value for code in made}) == len(names)
    for code in made:
        assert code.scheme == "99MEDMTL" and 1 <= len(code.value) <= 16 and code.value.isascii()
        assert "\\" not in code.value + code.meaning and len(code.meaning) <= 64
    assert private("benign").value == "benign" and private("no finding") == private("no finding")


@pytest.mark.parametrize(
    ("unit", "ucum"),
    [("", "1"), ("years", "a"), ("mm", "mm"), ("points", "{points}"),
     ("HU", "[hnsf'U]"), ("ADAS {x}\\p t", "{ADAS_x_p_t}")],
)  # fmt: skip
def test_units_are_ucum(unit, ucum):
    found = unit_of(unit)
    assert (found.value, found.scheme) == (ucum, "UCUM") and len(found.value) <= 16
    assert len(unit_of("a very long unit that nobody abbreviates").value) <= 16


def test_a_case_is_an_answer_or_numbers_for_each_task():
    found = {item.task: item for item in findings(picture(), {})}
    assert found["diagnosis"].answer.meaning == "malignant" and found["stage"].answer.meaning == "II"
    assert found["adas_cog"].answer is None and found["grade"].answer is None
    assert [m.value for m in found["adas_cog"].measures] == [17.12346]  # as the table has it
    columns = {m.column for item in found.values() for m in item.measures} | {i.answer_column for i in found.values()}
    assert columns - {""} == {c for c in CELLS if not c.startswith("seg") and not c.endswith("unit")}


def test_of_several_bundles_every_task_says_how_far_they_are_apart():
    spreads = {f"{name}.spread": 0.125 for name in TASKS}
    found = findings(picture(tasks=TASKS, cells={**CELLS, **spreads}), {})
    assert {item.task for item in found} == set(TASKS)
    for item in found:
        assert [m.value for m in item.measures if m.column == f"{item.task}.spread"] == [0.125], item.task


def test_absent_cells_are_left_out():
    found = {item.task: item for item in findings(picture(cells={"adas_cog.value": ""}), {})}
    assert found["diagnosis"].answer is None and found["adas_cog"].measures == ()


def test_codes_come_from_yaml_and_a_mistake_is_named():
    tree = yaml.safe_load(
        "formats: [json]\n"
        "coding:\n  lesion: {value: 108369006, meaning: Neoplasm, category: {value: 49755003, meaning: x}}"
    )
    output = validate(Output, tree, where="job.yaml")
    assert output.coding["lesion"].value == "108369006" and output.coding["lesion"].scheme == "SCT"
    for wrong in ({"coding": {"lesion": {"value": "1"}}}, {"formats": ["pdf"]}, {"coding": {"a": {"vlaue": "1"}}}):
        with pytest.raises(UserError, match="E-CFG"):
            validate(Output, wrong, where="job.yaml")


def test_formats_are_written_once_and_in_an_order_that_lets_them_refer_to_each_other():
    assert Output(formats=("html", "dicom-sr", "dicom-seg", "html")).formats == ("dicom-seg", "dicom-sr", "html")
    assert FORMATS.index("dicom-seg") < FORMATS.index("dicom-sr")


def test_what_an_input_cannot_have_is_a_warning(tmp_path):
    made = write_case(picture(), tmp_path / "a", Output(formats=FORMATS))
    assert sorted(path.name for path in made.paths) == ["findings.json", "report.html"]
    assert [text.split(":")[0] for text in made.warnings] == [
        "W-OUT-FORMAT no nifti", "W-OUT-FORMAT no dicom-seg", "W-OUT-FORMAT no dicom-sr"
    ]  # fmt: skip
    assert sorted(path for path in (tmp_path / "a").iterdir()) == sorted(made.paths)
