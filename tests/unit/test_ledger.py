"""Laws of the ledger: what is in it counts, the last line of an input wins, a cut line never was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medmtl.errors import SafetyRefusal, UserError
from medmtl.files import sha256
from medmtl.inference.ledger import Entry, Ledger, read_ledger

OK = Entry("a.png", "a.png", 0, "hash", "ok", "bundle", "settings", seconds=0.1, cells={"t.p.x": 0.25, "t.label": "x"},
           warnings=("W-1",))  # fmt: skip


def _open(folder: Path, bundle: str = "bundle", settings: str = "settings") -> Ledger:
    return Ledger(folder / "cases.jsonl", bundle=bundle, settings=settings)


def _with_file(folder: Path, name: str = "m.png") -> Entry:
    (folder / name).write_bytes(b"mask")
    return replace(OK, outputs={name: sha256(folder / name)})


def test_round_trip_and_the_last_line_of_an_input_wins(tmp_path: Path) -> None:
    first = _open(tmp_path)
    first.append([replace(OK, status="failed", code="E"), replace(OK, id="b\udcff.png"), OK])
    assert read_ledger(first.path)[2] == OK
    assert _open(tmp_path).entries == first.entries == {OK.id: OK, "b\udcff.png": replace(OK, id="b\udcff.png")}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_cut_last_line_never_was_and_the_next_line_is_whole(tmp_path: Path, cut: int) -> None:
    ledger = _open(tmp_path)
    ledger.append([OK])
    whole = ledger.path.read_bytes()
    ledger.append([replace(OK, id="b.png")])
    ledger.path.write_bytes(ledger.path.read_bytes()[:-cut])
    assert read_ledger(ledger.path) == (OK,)
    again = _open(tmp_path)
    assert ledger.path.read_bytes() == whole
    again.append([replace(OK, id="c.png")])
    assert [entry.id for entry in read_ledger(ledger.path)] == ["a.png", "c.png"]


@pytest.mark.parametrize("line", [b"{", b"[]", b"3", b'{"id": "a"}', b"\0\0", b'{"warnings": 3}'])
def test_damage_before_the_end_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(UserError, match=r"E-PRE-LEDGER cases.jsonl line 1"):
        _open(tmp_path)


def test_done_needs_the_same_content_and_its_files_unchanged(tmp_path: Path) -> None:
    ledger = _open(tmp_path)
    ledger.append([_with_file(tmp_path), replace(OK, id="bad", status="failed"), replace(OK, id="s", status="skipped")])
    assert ledger.done("a.png", "hash")
    assert not ledger.done("a.png", "other")
    assert not any(ledger.done(name, "hash") for name in ("b.png", "bad", "s"))
    (tmp_path / "m.png").write_bytes(b"other")
    assert not ledger.done("a.png", "hash")
    (tmp_path / "m.png").unlink()
    assert not ledger.done("a.png", "hash")


@pytest.mark.parametrize(("bundle", "settings", "what"), [("new", "settings", "bundle"), ("bundle", "new", "settings")])
def test_another_bundle_or_settings_are_refused_with_the_remedy(
    tmp_path: Path, bundle: str, settings: str, what: str
) -> None:
    _open(tmp_path, "new", "new")  # an empty ledger belongs to nobody
    _open(tmp_path).append([OK])
    with pytest.raises(UserError, match=f"E-PRE-OUT.*other {what}.*--overwrite"):
        _open(tmp_path, bundle, settings)


def test_files_of_a_result_that_no_longer_holds_are_removed(tmp_path: Path) -> None:
    ledger = _open(tmp_path)
    ledger.append([_with_file(tmp_path)])
    ledger.append([replace(OK, status="failed", cells={})])
    assert not (tmp_path / "m.png").exists()


def test_a_ledger_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    line = json.dumps({**OK.__dict__, "outputs": {"../mine.txt": "x"}})
    (tmp_path / "out" / "cases.jsonl").write_text(line + "\n")
    ledger = _open(tmp_path / "out")
    with pytest.raises(SafetyRefusal):
        ledger.append([replace(OK, status="failed")])
    assert (tmp_path / "mine.txt").exists()


def test_numbers_are_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        _open(tmp_path).append([replace(OK, cells={"x": float("nan")})])


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", ["masks/gland/b.png.png", "masks/gland/B.png.png", "cases/b.png/record.json"])
def test_no_input_takes_the_place_of_anothers_files(tmp_path: Path, name: str, together: bool) -> None:
    ledger = _open(tmp_path)
    one = replace(OK, outputs={"masks/gland/b.png.png": "x", "overlays/gland/b.png.png": "y"})
    other = replace(OK, id="b.png", outputs={name: "z"})
    if not together:
        ledger.append([one])
        ledger = _open(tmp_path)  # also of an earlier run
    with pytest.raises(UserError, match=r"E-PRE-OWNER.*of b\.png lies where the files of a\.png do.*--overwrite"):
        ledger.append([one, other] if together else [other])
    assert "b.png" not in ledger.entries and "b.png" not in {entry.id for entry in read_ledger(ledger.path)}
    ledger.append([one, replace(other, outputs={"masks/gland/c.png.png": "z"})])


def test_a_place_that_is_given_up_is_free(tmp_path: Path) -> None:
    ledger = _open(tmp_path)
    one = replace(OK, outputs={"cases/x/organ.nii.gz": "x"})
    ledger.append([one])
    assert ledger.taken("b", "X") and not ledger.taken(one.id, "x") and not ledger.taken("b", "y")
    ledger.append([replace(one, status="failed", outputs={})])
    assert not ledger.taken("b", "x")
    ledger.append([replace(one, id="b")])
    assert ledger.taken(one.id, "x")


def test_a_file_that_two_lines_claim_goes_with_the_last_of_them(tmp_path: Path) -> None:
    ledger = _open(tmp_path)
    first = _with_file(tmp_path)
    lines = [json.dumps(entry.__dict__) for entry in (first, replace(first, id="b.png"))]
    ledger.path.write_text("\n".join(lines) + "\n")
    ledger = _open(tmp_path)
    ledger.append([replace(first, outputs={})])
    assert (tmp_path / "m.png").exists()
    ledger.append([replace(first, id="b.png", outputs={})])
    assert not (tmp_path / "m.png").exists()
