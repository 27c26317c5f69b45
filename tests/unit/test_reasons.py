"""The table of codes: its page, its shape, and that no code is written that it does not hold."""

import ast
import re
from pathlib import Path

import pytest

import medmtl
from medmtl.errors import SafetyRefusal, UserError
from medmtl.io.reasons import REMEDY, as_markdown, refusal

ROOT = Path(medmtl.__file__).parent
CODE = re.compile(r"[EWRI]-(FILE|SEC|NOT|DCM|NII|MASK|SEG|DEID|ING|RAS|IMG)-[A-Z0-9-]+")
ROOMS = [*sorted((ROOT / "io" / "dicom").glob("*.py")), *sorted((ROOT / "ingest").glob("*.py"))]


def test_the_page_is_the_table():
    page = Path("docs/codes.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "run python -m medmtl.io.reasons > docs/codes.md"


def test_codes_and_remedies_have_one_form():
    assert all(CODE.fullmatch(code) for code in REMEDY), [code for code in REMEDY if not CODE.fullmatch(code)]
    assert all(remedy and not remedy.endswith(".") and "|" not in remedy for remedy in REMEDY.values())


def test_an_unknown_code_is_a_defect():
    with pytest.raises(KeyError):
        refusal("E-DCM-NOTHING", "x")
    assert isinstance(refusal("E-SEC-PATH", "x"), SafetyRefusal)
    assert type(refusal("E-DCM-GAP", "x")) is UserError


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_code_that_is_told_is_in_the_table(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    told = [c for c in calls if getattr(c.func, "id", "") in ("refusal", "Note", "_refused", "_fault") for c in c.args]
    used = {n.value for n in told if isinstance(n, ast.Constant) and CODE.fullmatch(str(n.value))}
    assert used <= set(REMEDY), used - set(REMEDY)


def test_the_search_for_codes_finds_some():
    assert sum(len(re.findall(CODE, path.read_text(encoding="utf-8"))) for path in ROOMS) > 100
