"""Headers are read once; what is known of a file holds exactly as long as the file stays as it was."""

import os

import pytest

from medmtl.data.synthetic.dicom import write_ct_series
from medmtl.ingest import headers
from medmtl.ingest.pool import Lost
from medmtl.ingest.scan import Index, scan
from medmtl.ingest.tasks import read_headers
from medmtl.ingest.walk import walk
from medmtl.io.dicom.header import header_of, read_header


class _Here:
    """A pool of no processes."""

    processes = 2

    def __init__(self, dies_on=()):
        self.dies_on = set(dies_on)

    def map(self, function, items, *, stopped):
        for item in items:
            if stopped():
                return
            died = self.dies_on & {found.path for found in item.files}
            yield item, Lost("died", "killed by SIGKILL") if died else function(item)


@pytest.fixture
def source(tmp_path):
    write_ct_series(tmp_path / "source", slices=3, size=16)
    (tmp_path / "source" / "notes.txt").write_text("x")
    (tmp_path / "source" / "empty.dcm").write_bytes(b"")
    (tmp_path / "source" / os.fsdecode(b"\xff.txt")).write_text("x")
    return tmp_path / "source"


def _index(source, keywords=("PatientName",)):
    return Index(source.parent / "index.jsonl", root=source, keywords=keywords, max_bytes=2**30)


def _scan(source, *, pool=None, keywords=("PatientName",), stopped=lambda: False):
    files = walk(source).files
    return scan(files, _index(source, keywords), pool or _Here(), advance=lambda n: None, stopped=stopped)


@pytest.fixture
def reads(monkeypatch):
    """Paths of the headers that were read."""
    paths = []

    def reading(path, stream, status, **options):
        paths.append(path.name)
        return header_of(path, stream, status, **options)

    monkeypatch.setattr(headers, "header_of", reading)
    return paths


def test_a_second_scan_reads_nothing(source, reads):
    first, read = _scan(source)
    assert read == 6 and sorted(reads) == ["IM0001.dcm", "IM0002.dcm", "IM0003.dcm"]
    assert first["IM0001.dcm"].header == read_header(source / "IM0001.dcm", keywords=("PatientName",))
    assert first["notes.txt"].code == "I-FILE-OTHER" and first["empty.dcm"].code == "E-FILE-EMPTY"
    assert all(item.remedy for item in first.values() if item.code)
    reads.clear()
    again, read = _scan(source)
    assert (again, read, reads) == (first, 0, [])


@pytest.mark.parametrize("change", ["time", "size", "inode"])
def test_a_file_that_changed_is_read_again_and_no_other(source, reads, change):
    _scan(source)
    reads.clear()
    path = source / "IM0002.dcm"
    match change:
        case "time":
            os.utime(path, ns=(1, 1))
        case "size":
            path.write_bytes(path.read_bytes() + b"\0\0")
        case "inode":
            info = path.stat()
            copy = path.with_name("copy")
            copy.write_bytes(path.read_bytes())
            os.utime(copy, ns=(info.st_atime_ns, info.st_mtime_ns))
            copy.replace(path)
    _, read = _scan(source)
    assert (read, reads) == (1, ["IM0002.dcm"])


def test_a_folder_that_was_moved_is_not_read_again(source, reads):
    _scan(source)
    reads.clear()
    moved = source.rename(source.with_name("moved"))
    found, read = _scan(moved)
    assert (read, reads) == (0, []) and found["IM0001.dcm"].header.path == moved / "IM0001.dcm"


def test_other_keywords_need_another_reading(source):
    _scan(source)
    found, read = _scan(source, keywords=("PatientName", "ReferringPhysicianName"))
    assert read == 6 and "PatientName" in found["IM0001.dcm"].header.private


@pytest.mark.parametrize("damage", ["cut", "line", "all"])
def test_a_damaged_index_costs_a_reading_and_nothing_else(source, damage):
    first, _ = _scan(source)
    path = source.parent / "index.jsonl"
    content = path.read_bytes()
    lines = content.split(b"\n")
    damaged = {
        "cut": content[:-20],
        "line": b"\n".join([*lines[:2], b'{"file": 3', *lines[3:]]),
        "all": b"\xff\xfe",
    }[damage]
    path.write_bytes(damaged)
    again, read = _scan(source)
    assert again == first and read == (6 if damage == "all" else 1)
    assert _scan(source)[1] == 0


def test_the_index_is_for_its_owner_and_stays_small(source):
    _scan(source)
    path = source.parent / "index.jsonl"
    assert path.stat().st_mode & 0o077 == 0
    for turn in range(150):
        os.utime(source / "notes.txt", ns=(turn, turn))
        index = _index(source)
        request = index.request([found for found in walk(source).files if found.path == "notes.txt"])
        index.add(request.files, read_headers(request))
        index.keep_only(walk(source).files)
    assert len(path.read_bytes().split(b"\n")) < 120


def test_a_file_that_kills_its_reader_is_refused_alone(source):
    found, _ = _scan(source, pool=_Here(dies_on=["IM0002.dcm"]))
    assert found["IM0002.dcm"].code == "E-ING-WORKER" and "SIGKILL" in found["IM0002.dcm"].what
    assert found["IM0001.dcm"].header is not None and len(found) == 6
    assert _scan(source)[0]["IM0002.dcm"].header is not None  # and it is tried again


def test_a_file_that_cannot_be_opened_is_refused_and_tried_again(source, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(headers, "open_regular", closed)
        found, _ = _scan(source)
    assert found["IM0001.dcm"].code == "E-FILE-OPEN" and found["IM0001.dcm"].what == "Permission denied"
    assert _scan(source)[0]["IM0001.dcm"].header is not None


def test_a_scan_that_is_stopped_keeps_what_it_read(source):
    calls = []

    def stopped():
        calls.append(1)
        return len(calls) > 1

    found, _ = _scan(source, stopped=stopped)
    assert 0 < len(found) < 6
    assert _scan(source)[1] == 6 - len(found)
