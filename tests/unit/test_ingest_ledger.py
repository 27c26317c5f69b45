"""The ledger is the resume state: what it says is done holds exactly as long as the files are what was written."""

import os

import pytest

from medmtl.errors import SafetyRefusal, UserError
from medmtl.ingest.ledger import PASSING, Entry, Ledger, output_of
from medmtl.io.reasons import REMEDY


def _entry(out, name="images/a.nii.gz", content=b"voxels", **changes):
    path = out / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    values = {
        "outputs": dict([output_of(out, path)]),
        "image": name,
        "notes": (("W-X", "what"),),
        "facts": {"shape": [2]},
    }
    return Entry("a", "s1", "ok", **{**values, **changes})


def test_what_is_appended_is_read_back(tmp_path):
    entry = _entry(tmp_path)
    Ledger(tmp_path / "cases.jsonl").append(entry)
    assert Ledger(tmp_path / "cases.jsonl").entries == {"a": entry}
    assert Ledger(tmp_path / "cases.jsonl").done("a", "s1") == entry
    assert Ledger(tmp_path / "cases.jsonl").done("a", "s2") is None


@pytest.mark.parametrize(("change", "holds"), [("touch", True), ("gone", False), ("shorter", False), ("other", False)])
def test_a_result_holds_while_its_files_do(tmp_path, change, holds):
    ledger = Ledger(tmp_path / "cases.jsonl")
    ledger.append(_entry(tmp_path))
    path = tmp_path / "images/a.nii.gz"
    match change:
        case "touch":
            os.utime(path, ns=(5, 5))
        case "gone":
            path.unlink()
        case "shorter":
            path.write_bytes(b"vox")
        case "other":
            path.write_bytes(b"VOXELS")
            os.utime(path, ns=(5, 5))
    assert (ledger.done("a", "s1") is not None) == holds


def test_a_failure_that_may_pass_is_tried_again_and_another_is_not(tmp_path):
    ledger = Ledger(tmp_path / "cases.jsonl")
    for code in (*PASSING, "E-ING-EMPTY"):
        ledger.append(Entry("a", "s1", "failed", code, "what", REMEDY[code]))
        assert (ledger.done("a", "s1") is None) == (code in PASSING)


def test_files_of_an_earlier_result_go(tmp_path):
    ledger = Ledger(tmp_path / "cases.jsonl")
    ledger.append(_entry(tmp_path, "images/a.png"))
    ledger.append(_entry(tmp_path, "images/a.nii.gz"))
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.nii.gz"]
    ledger.append(Entry("a", "s1", "failed", "E-ING-EMPTY"))
    assert not list((tmp_path / "images").iterdir())


def test_a_ledger_never_removes_what_lies_outside(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_text("x")
    entry = _entry(out)
    ledger = Ledger(out / "cases.jsonl")
    ledger.append(Entry("a", "s1", "ok", outputs={"../precious": next(iter(entry.outputs.values()))}))
    with pytest.raises(SafetyRefusal):
        ledger.append(Entry("a", "s2", "failed"))
    assert (tmp_path / "precious").exists()


def test_a_line_that_a_kill_cut_counts_as_absent(tmp_path):
    ledger = Ledger(tmp_path / "cases.jsonl")
    ledger.append(_entry(tmp_path))
    ledger.append(Entry("b", "s", "failed", "E-ING-EMPTY"))
    path = tmp_path / "cases.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = Ledger(path)
    assert set(again.entries) == {"a"}
    again.append(Entry("b", "s", "failed", "E-ING-EMPTY"))
    assert set(Ledger(path).entries) == {"a", "b"}


def test_other_damage_is_named(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text('{"id": "a"}\n{}\n')
    with pytest.raises(UserError, match=r"E-ING-LEDGER cases.jsonl line 1"):
        Ledger(path)
