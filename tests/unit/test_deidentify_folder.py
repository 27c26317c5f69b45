"""Laws of de-identifying a folder: every file accounted for, nothing lost, nothing outside touched, resumed exactly."""

import csv
import io
import json
import os
from pathlib import Path

import phi
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from medmtl.errors import EnvironmentFailure, SafetyRefusal, UserError
from medmtl.io.deidentify import files, folder
from medmtl.io.deidentify.folder import Outcome, deidentify_folder
from medmtl.io.deidentify.profile import Options
from medmtl.io.reasons import REMEDY


def _save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def _image(number: int, **changes: object) -> Dataset:
    return phi.header(SOPInstanceUID=f"{phi.ROOT}77.{number}", InstanceNumber=str(number), **changes)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three images of one patient, one of another, and whatever else a folder of a PACS export holds."""
    root = tmp_path / "export of Müllerová"
    for number in range(3):
        _save(_image(number), root / "QUACKENBUSH^T" / "HRN-770211" / f"IM{number}")
    _save(_image(9, PatientID="HRN-2", StudyInstanceUID=phi.ROOT + "8"), root / "deep" / "a b\nc" / "Quack ä.dcm")
    (root / "README.txt").write_text("no DICOM")
    (root / ".DS_Store").write_bytes(b"\0" * 600)
    return root


def _rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "deidentification.csv").open(newline="", encoding="utf-8") as stream:
        return {row["file"]: row for row in csv.DictReader(stream)}


def _tree(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def _codes(outcome: Outcome) -> list[str]:
    return sorted(row.code for row in outcome.rows if row.code)


def test_every_file_ends_in_a_row_and_the_report_names_none(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = deidentify_folder(source, out)
    assert (outcome.ok, outcome.refused, outcome.exit_code) == (4, 0, 0)
    assert outcome.ignored == {".txt": 1, "no suffix": 1}
    images = list(out.rglob("*.dcm"))
    assert len(images) == 4
    for path in images:
        ds = pydicom.dcmread(path)
        patient, study, series, name = path.relative_to(out).parts
        assert (patient, study, series, name) == (
            ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID, f"{ds.SOPInstanceUID}.dcm"
        )  # fmt: skip
    assert len({path.relative_to(out).parts[0] for path in images}) == 2
    text = b"".join(content + name.encode() for name, content in _tree(out).items()).lower()
    for value in (*phi.PLANTED, str(tmp_path), "IM0"):
        assert value.lower().encode() not in text
    paths = json.loads((tmp_path / "out.private" / "files.json").read_text())
    assert {Path(paths[file]).name for file in _rows(out)} == {"IM0", "IM1", "IM2", "Quack ä.dcm"}
    for private in (tmp_path / "out.private").iterdir():
        assert private.stat().st_mode & 0o077 == 0
    assert (tmp_path / "out.private").stat().st_mode & 0o777 == 0o700


def test_bad_files_are_rows_and_stop_nothing(source: Path, tmp_path: Path) -> None:
    whole = (source / "QUACKENBUSH^T" / "HRN-770211" / "IM0").read_bytes()
    (source / "empty.dcm").write_bytes(b"")
    (source / "text.dcm").write_text("not DICOM at all")
    (source / "short.dcm").write_bytes(whole[:-9])
    (source / "cut.dcm").write_bytes(whole[:700])
    _save(_image(20, Modality="US"), source / "us")
    _save(_image(21, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), source / "sr")
    (source / "DICOMDIR").write_bytes(
        _save(_image(22, SOPClassUID="1.2.840.10008.1.3.10"), tmp_path / "directory").read_bytes()
    )
    (source / "out of the tree").symlink_to(tmp_path / "directory")
    (source / "in the tree").symlink_to(source / "us")
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "fifo")
    outcome = deidentify_folder(source, tmp_path / "out")
    assert outcome.ok == 4 and outcome.exit_code == 3
    assert _codes(outcome) == [
        "E-DEID-BURNED", "E-DEID-KIND", "E-DEID-READ", "E-DEID-READ", "E-DEID-READ", "E-FILE-EMPTY", "E-SEC-PATH"
    ]  # fmt: skip
    assert outcome.ignored["DICOMDIR"] == 1
    assert all(row["remedy"] for row in _rows(tmp_path / "out").values() if row["status"] == "refused")
    again = deidentify_folder(source, tmp_path / "out")
    assert (again.ok, again.resumed, _codes(again)) == (4, 4, _codes(outcome))


def test_nothing_usable_is_exit_4_and_burned_in_can_be_allowed(tmp_path: Path) -> None:
    _save(_image(1, Modality="US"), tmp_path / "in" / "us")
    assert deidentify_folder(tmp_path / "in", tmp_path / "out").exit_code == 4
    allowed = deidentify_folder(tmp_path / "in", tmp_path / "out2", options=Options(allow_burned_in=True))
    assert allowed.exit_code == 0
    _save(_image(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), tmp_path / "sr" / "sr")
    documents = deidentify_folder(tmp_path / "sr", tmp_path / "out3", options=Options(allow_burned_in=True))
    assert _codes(documents) == ["E-DEID-KIND"]


def test_a_second_run_does_nothing_and_a_changed_file_is_done_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    deidentify_folder(source, out)
    before = _tree(out)
    done: list[str] = []
    real = folder.deidentify_file
    monkeypatch.setattr(folder, "deidentify_file", lambda job: (done.append(Path(job.path).name), real(job))[1])
    deidentify_folder(source, out)
    assert not [name for name in done if name.startswith("IM")] and _tree(out) == before
    victim = next(out.rglob("*.dcm"))
    victim.write_bytes(b"damaged")
    _save(_image(0, SliceThickness="2"), source / "QUACKENBUSH^T" / "HRN-770211" / "IM0")
    outcome = deidentify_folder(source, out)
    assert 1 <= len([name for name in done if name.startswith(("IM", "Quack"))]) <= 2
    assert outcome.ok == 4
    assert sorted(pydicom.dcmread(path).SliceThickness for path in out.rglob("*.dcm")) == [1, 1, 1, 2]


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deidentify_folder(source, tmp_path / "one", private=tmp_path / "private")
    real, calls = folder.deidentify_file, []

    def stopped(job):
        calls.append(job)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(job)

    (tmp_path / "p2").mkdir(mode=0o700)
    (tmp_path / "p2" / "key.json").write_bytes((tmp_path / "private" / "key.json").read_bytes())
    (tmp_path / "p2" / "key.json").chmod(0o600)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "deidentify_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            deidentify_folder(source, tmp_path / "two", private=tmp_path / "p2")
    with (tmp_path / "p2" / "deidentify.jsonl").open("ab") as stream:
        stream.write(b'{"id": "cut o')
    deidentify_folder(source, tmp_path / "two", private=tmp_path / "p2")
    assert _tree(tmp_path / "one") == _tree(tmp_path / "two")


def test_processes_change_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = deidentify_folder(source, tmp_path / "one", private=tmp_path / "p1")
    (tmp_path / "p2").mkdir(mode=0o700)
    (tmp_path / "p2" / "key.json").write_bytes((tmp_path / "p1" / "key.json").read_bytes())
    (tmp_path / "p2" / "key.json").chmod(0o600)
    monkeypatch.setattr(folder, "_FEW", 0)
    two = deidentify_folder(source, tmp_path / "two", private=tmp_path / "p2", workers=2)
    assert one.rows == two.rows and _tree(tmp_path / "one") == _tree(tmp_path / "two")


def test_different_files_of_one_instance_are_both_refused_equal_ones_are_one(source: Path, tmp_path: Path) -> None:
    place = source / "QUACKENBUSH^T" / "HRN-770211"
    (source / "copy of IM0").write_bytes((place / "IM0").read_bytes())
    _save(_image(1, SliceThickness="9"), source / "another IM1")
    outcome = deidentify_folder(source, tmp_path / "out")
    assert _codes(outcome) == ["E-DEID-DUPLICATE"] * 2 and outcome.ok == 4  # IM0, its copy, IM2, the other patient
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 3
    (source / "another IM1").unlink()
    again = deidentify_folder(source, tmp_path / "out")
    assert _codes(again) == [] and len(list((tmp_path / "out").rglob("*.dcm"))) == 4


def test_a_file_without_a_patient_id_is_noted(tmp_path: Path) -> None:
    _save(_image(1, PatientID=""), tmp_path / "in" / "a")
    _save(_image(2, PatientID="", StudyInstanceUID=phi.ROOT + "8"), tmp_path / "in" / "b")
    outcome = deidentify_folder(tmp_path / "in", tmp_path / "out")
    assert [row.notes for row in outcome.rows] == [("W-DEID-NO-PATIENT-ID",)] * 2
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == 2


def test_folders_in_each_other_are_refused(source: Path, tmp_path: Path) -> None:
    for out, private in ((source / "out", None), (source, None), (tmp_path, None),
                         (tmp_path / "o", tmp_path / "o" / "p"), (tmp_path / "o", source / "p")):  # fmt: skip
        with pytest.raises(SafetyRefusal):
            deidentify_folder(source, out, private=private)
    assert not (tmp_path / "o").exists() and not (source / "out").exists()
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(SafetyRefusal, match=r"^E-DEID-PLACE"):
        deidentify_folder(source, tmp_path / "link" / "out")


def test_other_options_need_another_folder(source: Path, tmp_path: Path) -> None:
    deidentify_folder(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"^E-DEID-SETTINGS"):
        deidentify_folder(source, tmp_path / "out", options=Options(dates="remove"))
    (tmp_path / "out.private" / "key.json").unlink()
    with pytest.raises(UserError, match=r"^E-DEID-SETTINGS"):
        deidentify_folder(source, tmp_path / "out")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^E-DEID-SOURCE"):
        deidentify_folder(tmp_path / "nothing", tmp_path / "out")


def test_two_runs_at_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(job):
        with pytest.raises(UserError, match=r"^E-DEID-LOCK"):
            deidentify_folder(source, tmp_path / "out")
        return files.deidentify_file(job)

    monkeypatch.setattr(folder, "deidentify_file", nested)
    assert deidentify_folder(source, tmp_path / "out").ok == 4


def test_a_full_disk_stops_the_run_and_leaves_no_half_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        patch.setattr(folder, "load_or_make_key", lambda path, out: _made(path))
        with pytest.raises(EnvironmentFailure, match=r"^E-DISK"):
            deidentify_folder(source, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert deidentify_folder(source, tmp_path / "out").ok == 4


def _made(path: Path) -> None:
    from medmtl.io.deidentify.key import Key, _encoded, write_private

    write_private(path, _encoded(Key(bytes(range(32)))))


def test_a_file_that_changes_while_it_is_read_is_refused(source: Path, tmp_path: Path) -> None:
    path = source / "QUACKENBUSH^T" / "HRN-770211" / "IM0"
    info = path.stat()
    jobs = folder._jobs([(str(path), info)], tmp_path / "out", _key(), Options())
    job = next(jobs)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert files.deidentify_file(job).code == "E-FILE-CHANGED"


def _key():
    from medmtl.io.deidentify.key import Key

    return Key(bytes(range(32)))


def test_no_message_of_a_library_reaches_a_row(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quotes(*arguments, **options):
        raise ValueError("cannot decode 'QUACKENBUSH^THADDEUS'")

    monkeypatch.setattr(files, "deidentify_dataset", quotes)
    outcome = deidentify_folder(source, tmp_path / "out")
    assert _codes(outcome) == ["E-DEID-READ"] * 4
    assert all("QUACK" not in row.what for row in outcome.rows)
    assert {row.what for row in outcome.rows} == {"the header cannot be read (ValueError)"}


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_corrupted_files_end_in_a_row_and_leak_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes of a header changed, left out or put in, anywhere: a row with a code, or a file without identifiers."""
    content = bytearray(_WHOLE)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 8))
        content[place : place + length] = data.draw(st.binary(max_size=8))
    root = tmp_path_factory.mktemp("fuzz")
    (root / "a.dcm").write_bytes(content)
    (job,) = folder._jobs([(str(root / "a.dcm"), (root / "a.dcm").stat())], root / "out", _key(), Options())
    row = files.deidentify_file(job)
    assert row.status == "ok" or row.code in REMEDY or row.kind == "DICOMDIR"
    if row.status == "ok":
        left = (root / "out" / row.output).read_bytes().lower()
        for value in ("quackenbush", "hrn-770211", "gastroschisis", "ermintrude", "nowhere lane", "acc99817"):
            assert value.encode() not in left


def _whole() -> bytes:
    stream = io.BytesIO()
    _image(1).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


_WHOLE = _whole()
