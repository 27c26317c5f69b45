"""Names of cases and groups: stable, safe as file names, and saying nothing unless they are meant to."""

import re
from pathlib import Path

import pytest

from medmtl.errors import SafetyRefusal
from medmtl.ingest.naming import Namer, cell, check_domains, plain, unique
from medmtl.ingest.rules import Rule, Subject
from medmtl.io.deidentify.key import Key
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.dicom.header import Header

KEY = Pseudonyms(Key(bytes(range(32))))


def _namer(*, keep=False, group="", domain=""):
    rules = [Rule(text, "--x") if text else None for text in (group, domain)]
    return Namer(KEY, keep, *rules)


def _header(patient_id="MRN 42", study="1.2", **facts):
    return Header(
        path=Path("f"), size=1, mtime_ns=1, sop_instance_uid="1", sop_class_uid="2", kind="image", series_uid="1.2.3",
        study_uid=study, patient_id=patient_id, modality="CT", facts=facts, private={"PatientName": "DOE^JANE"},
    )  # fmt: skip


def test_pseudonyms_are_file_names_and_show_nothing():
    namer, header = _namer(), _header()
    group = namer.patient(header)
    case = namer.volume_id(header, "1.2.3.4|echo 2", group)
    assert re.fullmatch(r"P[A-Z2-7]{12}_CT_[A-Z2-7]{10}", case) and case.startswith(group)
    assert namer.volume_id(header, "another", group) != case
    path = "DOE^JANE/MRN 42.nii.gz"
    image = namer.image_id(path, namer.group(path)[0], None)
    assert re.fullmatch(r"P[A-Z2-7]{12}_IMG_[A-Z2-7]{10}", image)
    assert namer.image_id(path, "P", 0) != namer.image_id(path, "P", 1)
    assert "MRN" not in namer.file_id(path)


def test_a_patient_is_one_group_in_dicom_and_in_folders():
    assert _namer(group="{folder:1}").group("MRN 42/scan.nii.gz") == (_namer().patient(_header()), True)


def test_without_a_patient_id_each_study_is_its_own_group():
    namer = _namer(keep=True)
    one, other = namer.patient(_header("", "1.2")), namer.patient(_header("", "1.3"))
    assert one != other and one == namer.patient(_header(" ", "1.2"))


@pytest.mark.parametrize(
    ("path", "rule", "group", "found"),
    [
        ("sub-07/anat/sub-07_T1w.nii.gz", "", "sub-07", True),
        ("site/sub-07_T1w.nii.gz", "", "sub-07", True),
        ("patient 3/x/y.png", "", "patient-3", True),
        ("lonely.png", "", "lonely", False),
        ("a/b/c_17.png", r"_(?P<group>\d+)\.", "17", True),
        ("a/b/c.png", "{folder:2}", "b", True),
        ("a/c.png", "{folder:2}", "c", False),
    ],
)
def test_groups_of_files(path, rule, group, found):
    assert _namer(keep=True, group=rule).group(path) == (group, found)
    hidden, also_found = _namer(group=rule).group(path)
    assert also_found == found and re.fullmatch(r"P[A-Z2-7]{12}", hidden)


def test_two_files_without_a_group_are_two_groups():
    namer = _namer()
    assert namer.group("a.png")[0] != namer.group("b.png")[0]


def test_kept_names_are_tidy_and_distinct():
    namer = _namer(keep=True)
    assert namer.image_id("sub-01/anat/sub-01_T1w.nii.gz", "g", None) == "sub-01_T1w"
    assert namer.image_id("a/b.png", "g", 2) == "a_b_p003"
    spaced, dashed = namer.image_id("a b.png", "g", None), namer.image_id("a-b.png", "g", None)
    assert re.fullmatch(r"a-b-[0-9a-f]{10}", spaced) and dashed == "a-b"
    assert len(namer.image_id("x" * 240 + ".png", "g", None)) < 120
    for path in ("é\n.png", "..png", "a\udcff.png", "con:*?.png"):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*|-[0-9a-f]{10}", namer.image_id(path, "g", None))


def test_ids_that_a_file_system_would_confuse_get_suffixes_of_their_own():
    namer = _namer(keep=True)
    names = {"Scan.nii": "Scan", "scan.nii": "scan", "other.nii": "other"}
    found = unique(names, namer)
    assert found["other.nii"] == "other"
    assert found["Scan.nii"].lower() != found["scan.nii"].lower()
    assert found == unique(dict(reversed(names.items())), namer)


def test_domains():
    facts = {"Manufacturer": "ACME  Inc ", "ManufacturerModelName": "X-1"}
    assert _namer().domain(Subject("f", _header(**facts))) == "ACME Inc X-1"
    assert _namer().domain(Subject("f")) == ""
    assert _namer(domain="{folder:1}").domain(Subject("=cmd/x.nii")) == "'=cmd"


@pytest.mark.parametrize("domain", ["MRN 42", "Jane", "site-DOE"])
def test_a_domain_that_names_the_patient_is_refused(domain):
    with pytest.raises(SafetyRefusal, match="E-ING-DOMAIN-ID"):
        check_domains([(domain, _header())], "--domain")
    check_domains([("ACME X-1", _header()), (domain, None), ("", _header())], "--domain")


@pytest.mark.parametrize(
    ("text", "safe"),
    [("=1+1", "'=1+1"), ("@x", "'@x"), ("+49 x", "'+49 x"), ("-2.5", "-2.5"), ("a\tb\n", "a b"), ("µm", "µm")],
)
def test_cells_that_a_spreadsheet_would_compute_are_text(text, safe):
    assert cell(text) == safe


def test_plain_names():
    assert plain("Müller^Ann") == "Muller-Ann" and plain("../x") == "x" and plain("\u0000") == ""


def test_a_first_folder_is_a_guess_and_a_rule_or_bids_is_none():
    assert _namer().guessed("normal/a.png") and not _namer().guessed("a.png")
    assert not _namer().guessed("sub-07/anat/t1.nii.gz") and not _namer(group="{folder:1}").guessed("normal/a.png")
