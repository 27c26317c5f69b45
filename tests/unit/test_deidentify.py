"""Laws of keys, pseudonyms, dates, kept words and scrubbing: same in, same out; nothing leaks; nothing is guessed."""

import json
import logging
import multiprocessing
import os
import re
import uuid
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmtl.errors import SafetyRefusal
from medmtl.io.deidentify.dates import capped_age, parse_date, shifted_date, shifted_datetime
from medmtl.io.deidentify.key import Key, load_or_make_key, private_folder, remember_source, write_private
from medmtl.io.deidentify.pseudonyms import LONGEST_SHIFT_DAYS, Pseudonyms, Subject
from medmtl.io.deidentify.scrub import REMOVED, Scrub
from medmtl.io.deidentify.vocabulary import SAFE, clean

KEY = Key(bytes(range(32)))
P = Pseudonyms(KEY)


def _refused(code: str):
    return pytest.raises(SafetyRefusal, match=f"^{code} ")


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "private" / "key.json"
    before = os.umask(0)
    try:
        key = load_or_make_key(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_make_key(path) == key
    assert load_or_make_key(tmp_path / "other.json") != key
    assert os.listdir(path.parent) == ["key.json"]  # noqa: PTH208  no temporary is left


def _make(path: str, barrier, queue) -> None:
    barrier.wait()
    queue.put(load_or_make_key(Path(path)).secret)


def test_processes_that_make_a_key_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(8), context.Queue()
    workers = [context.Process(target=_make, args=(str(tmp_path / "key.json"), barrier, queue)) for _ in range(8)]
    for worker in workers:
        worker.start()
    secrets = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(secrets) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.json"
    load_or_make_key(path)
    path.chmod(mode)
    with _refused("E-DEID-KEY-MODE"):
        load_or_make_key(path)


def test_a_key_inside_what_it_protects_is_refused(tmp_path: Path) -> None:
    with _refused("E-DEID-KEY-PLACE"):
        load_or_make_key(tmp_path / "out" / "a" / "key.json", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with _refused("E-DEID-KEY-PLACE"):
        load_or_make_key(tmp_path / "link" / "key.json", out=tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": 2, "secret": "00", "sources": []}', b"\xff\xfe",
     json.dumps({"version": 1, "secret": "00" * 32, "sources": []}).encode(),
     json.dumps({"version": 1, "secret": "ab" * 31, "sources": []}).encode(),
     json.dumps({"version": 1, "secret": 5, "sources": []}).encode()],
)  # fmt: skip
def test_a_damaged_key_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    path = write_private(tmp_path / "key.json", content)
    with _refused("E-DEID-KEY"):
        load_or_make_key(path)
    assert path.read_bytes() == content


def test_a_key_remembers_its_sources_and_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    secret = load_or_make_key(path).secret
    remember_source(path, tmp_path / "a")
    key = remember_source(path, tmp_path / "a")
    assert key == load_or_make_key(path) == Key(secret, (str(tmp_path / "a"),))
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret.hex() not in f"{key!r} {key} {Pseudonyms(key)!r}"
    assert str(secret)[2:-1] not in repr(Pseudonyms(key))


def test_the_private_folder_is_apart_and_closed(tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "source"
    made = private_folder(tmp_path / "p", out=out, source=source)
    assert made.stat().st_mode & 0o777 == 0o700
    for inside in (out / "p", source / "p", out, tmp_path):
        with _refused("E-DEID-KEY-PLACE"):
            private_folder(inside, out=out, source=source)
    made.chmod(0o750)
    with _refused("E-DEID-KEY-MODE"):
        private_folder(made, out=out, source=source)


def test_pseudonyms_are_what_they_were() -> None:
    """Frozen values: a study that grows over years must keep its pseudonyms through every version."""
    assert P.patient("HRN-1") == "PUNNDSFGXFC67"
    assert P.uid("1.2.3") == "2.25.95710236533967456333844610567944953478"
    assert P.shift_days("HRN-1") == -2096
    assert P.station("AWP1") == "SGNWZUNPFC2QI"


@pytest.mark.parametrize("same", ["HRN-1", " HRN-1 ", "hrn-1", "HRN-1\0", "ＨＲＮ-1"])
def test_padding_case_and_width_do_not_make_another_patient(same: str) -> None:
    assert P.patient(same) == P.patient("HRN-1")
    assert P.shift_days(same) == P.shift_days("HRN-1")


@pytest.mark.parametrize(
    "other",
    [Subject("HRN-01"), Subject("HRN1"), Subject("HRN-1", "Hospital B"), Subject("", "", "1.2.3"), Subject("1.2.3")],
)
def test_what_differs_is_another_patient(other: Subject) -> None:
    assert P.patient(other) != P.patient("HRN-1")


def test_without_a_patient_id_the_study_stands_for_the_patient() -> None:
    one, same, two = Subject("", "x", "1.2"), Subject(" \0", "y", "1.2 "), Subject("", "x", "1.3")
    assert one.anonymous
    assert P.patient(one) == P.patient(same) != P.patient(two)
    assert P.patient(Subject("A", study_uid="1.2")) == P.patient(Subject("A", study_uid="1.3"))


def test_another_key_gives_other_pseudonyms() -> None:
    other = Pseudonyms(Key(bytes(range(1, 33))))
    assert other.patient("a") != P.patient("a") and other.uid("1.2") != P.uid("1.2")
    assert other.fingerprint() != P.fingerprint() and other.station("a") != P.station("a")


@given(st.lists(st.text(min_size=1, max_size=70), min_size=2, max_size=40, unique_by=str.strip))
def test_uids_are_valid_and_distinct(texts: list[str]) -> None:
    uids = [P.uid(text) for text in texts]
    assert len(set(uids)) == len({text.strip(" \0") for text in texts})
    for uid in uids:
        assert len(uid) <= 64 and re.fullmatch(r"2\.25\.(0|[1-9]\d*)", uid)
        assert uuid.UUID(int=int(uid[5:])).version == 5
    assert uids == [Pseudonyms(KEY).uid(text) for text in texts]  # in another process, too: no state


@given(
    st.text(min_size=1).filter(lambda text: bool(text.strip(" \0"))),
    st.dates(date(1910, 1, 2)),
    st.dates(date(1910, 1, 2)),
)
def test_one_shift_for_a_patient_keeps_every_interval(patient: str, first: date, second: date) -> None:
    assert -LONGEST_SHIFT_DAYS <= P.shift_days(patient) <= -1
    moved = [P.date(patient, f"{day:%Y%m%d}") for day in (first, second)]
    assert None not in moved
    days = [parse_date(text) for text in moved if text]
    assert days[1] - days[0] == second - first
    assert days[0] < first


@given(st.dates(), st.integers(-LONGEST_SHIFT_DAYS, -1))
def test_no_date_before_1900(day: date, shift: int) -> None:
    moved = shifted_date(f"{day.year:04}{day:%m%d}", shift)
    assert moved is None or moved >= "19000101"
    assert (moved is None) == (day.toordinal() + shift < date(1900, 1, 1).toordinal())


@pytest.mark.parametrize(
    ("text", "moved"),
    [("20200301", "20200229"), ("2020.03.01", "20200229"), (" 20200301 ", "20200229"), ("20200301-20200302", None),
     ("", None), ("2020", None), ("20200230", None), ("19000101", None), ("John", None), ("2020-03-01", None)],
)  # fmt: skip
def test_dates(text: str, moved: str | None) -> None:
    assert shifted_date(text, -1) == moved


@pytest.mark.parametrize(
    ("text", "moved"),
    [("20200301", "20200229"), ("2020030112", "2020022912"), ("202003011230", "202002291230"),
     ("20200301123000", "20200229123000"), ("20200301123000.123456", "20200229123000.123456"),
     ("20200301123000.1+0200", "20200229123000.1+0200"), ("20200301-0500", "20200229-0500"),
     ("20200301123000-20200302", None), ("202003", None), ("2020", None), ("20200301x", None), ("202003011", None),
     ("20200301.5", None), ("", None)],
)  # fmt: skip
def test_date_times_keep_clock_fraction_and_offset(text: str, moved: str | None) -> None:
    assert shifted_datetime(text, -1) == moved


@pytest.mark.parametrize(
    ("age", "kept"),
    [("045Y", "045Y"), ("089Y", "089Y"), ("090Y", "090Y"), ("091Y", "090Y"), ("117Y", "090Y"), ("999M", "999M"),
     ("018M", "018M"), ("003W", "003W"), ("010D", "010D"), ("045y", "045Y"), ("45Y", None), ("", None), ("John", None)],
)  # fmt: skip
def test_nobody_is_older_than_90(age: str, kept: str | None) -> None:
    assert capped_age(age) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [("t1_mprage_sag_p2_iso", "t1 mprage sag"), ("AxT2FLAIR", "Ax T2 FLAIR"),
     ("ep2d_diff_b1000_TRACEW", "ep2d diff b1000 TRACEW"),
     ("CT Head 5mm John Doe", "CT Head 5mm"), ("DOE^JOHN", ""), ("MRN 12345678", ""), ("20210304 Head", "Head"),
     ("Müller Thorax", "Thorax"), ("Petra", ""), ("headdress", ""), ("", ""),
     ("Chest w/o contrast, Dr. Quack", "Chest contrast")],
)  # fmt: skip
def test_only_known_words_of_a_description_stay(text: str, kept: str) -> None:
    assert clean(text) == kept


@given(st.text())
def test_cleaning_is_idempotent_and_invents_nothing(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert all(word in text for word in once.split())


def test_the_vocabulary_is_lower_case_words() -> None:
    assert all(re.fullmatch(r"[a-z0-9]+", word) for word in SAFE)
    names = {"smith", "jones", "miller", "garcia", "anna", "maria", "john", "peter", "wang", "kim", "nguyen", "ali"}
    assert not SAFE & names


def test_scrub_replaces_names_in_every_order_and_case() -> None:
    scrub = Scrub(("Doe^Jonathan^^Dr",), ("HRN-770211", "42"), ("study/DOE_J/scan01.dcm",))
    text = scrub(
        "PatientName 'DOE^JONATHAN', jonathan doe, doe-jonathan.nii, id hrn-770211, 42 slices, uid 1.2.840.99.1.77"
    )
    for word in ("doe", "jonathan", "hrn", "770211", "1.2.840"):
        assert word not in text.lower()
    assert text.count(REMOVED) >= 6
    assert "42 slices" in text and "PatientName" in text and "uid" in text
    assert "jonathan" not in repr(scrub).lower()


def test_scrub_keeps_whole_words_around_short_names() -> None:
    scrub = Scrub(("Kim^Head",))
    assert scrub("Kimono at the head of Kim") == f"Kimono at the head of {REMOVED}"
    assert Scrub()("nothing to remove 1.2.3") == "nothing to remove 1.2.3"


def test_scrub_of_an_exception_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    scrub = Scrub(("Doe^Jonathan",), ("HRN-770211",))
    try:
        raise ValueError("cannot decode element (0010,0010) PN: 'Doe^Jonathan' of HRN-770211")
    except ValueError as error:
        logging.getLogger("medmtl").warning(scrub(str(error)))
    assert "Doe" not in caplog.text and "770211" not in caplog.text and "(0010,0010)" in caplog.text
