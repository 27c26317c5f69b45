"""A tree is walked once, without opening anything and without leaving it."""

import os
import socket

import pytest

from medmtl.ingest.sniff import empty, head_of, ignored_kind, kind_of, open_regular, unknown
from medmtl.ingest.walk import walk
from medmtl.io.reasons import REMEDY


def _asides(root):
    return {aside.path: aside.code for aside in walk(root).asides}


def _files(root):
    return [found.path for found in walk(root).files]


def test_files_are_sorted_by_the_bytes_of_their_path(tmp_path):
    names = ["b", "a b", "Z", "é", "line\nbreak", os.fsdecode(b"\xff\xfe")]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert _files(tmp_path) == sorted(names, key=os.fsencode)
    found = walk(tmp_path).files[0]
    info = (tmp_path / found.path).stat()
    assert (found.size, found.mtime_ns, found.inode) == (1, info.st_mtime_ns, info.st_ino)


def test_a_hundred_nested_folders(tmp_path):
    deep = tmp_path.joinpath(*["d"] * 100)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"x")
    assert _files(tmp_path) == ["d/" * 100 + "f"]


def test_links(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    (source / "folder").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "f").write_bytes(b"x")
    (source / "folder" / "f").write_bytes(b"x")
    for name, target in {
        "out": elsewhere / "f",
        "out_folder": elsewhere,
        "up": "..",
        "inside": "folder/f",
        "loop": "loop",
        "to_folder": "folder",
        "to_itself": ".",
        "broken": "nothing",
        "broken_out": elsewhere / "nothing",
    }.items():
        (source / name).symlink_to(target)
    assert _files(source) == ["folder/f"]
    assert _asides(source) == {
        "out": "E-SEC-PATH",
        "out_folder": "E-SEC-PATH",
        "up": "E-SEC-PATH",
        "broken_out": "E-SEC-PATH",
        "inside": "I-FILE-LINK",
        "to_folder": "I-FILE-LINK",
        "to_itself": "I-FILE-LINK",
        "loop": "E-FILE-LINK",
        "broken": "E-FILE-LINK",
    }


def test_a_link_stands_for_a_file_of_a_hidden_folder(tmp_path):
    """As in a git-annex data set, whose files are links into ``.git``."""
    (tmp_path / ".git" / "annex").mkdir(parents=True)
    (tmp_path / ".git" / "annex" / "key").write_bytes(b"xyz")
    (tmp_path / "scan.dcm").symlink_to(".git/annex/key")
    walked = walk(tmp_path)
    assert [(found.path, found.size) for found in walked.files] == [("scan.dcm", 3)]
    assert _asides(tmp_path) == {".git/annex/key": "I-FILE-HIDDEN"}


def test_what_is_no_regular_file_is_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
        server.bind("socket")
    assert _asides(tmp_path) == {"fifo": "I-FILE-SPECIAL", "socket": "I-FILE-SPECIAL"}
    with pytest.raises(ValueError, match="E-FILE-OPEN"):
        open_regular(tmp_path / "fifo")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o000)
    try:
        assert _asides(tmp_path) == {"closed/": "E-FILE-OPEN"}
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_cannot_be_listed_is_refused_for_root_too(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert _asides(tmp_path) == {"closed/": "E-FILE-OPEN"}


def test_every_code_of_a_walk_has_a_remedy():
    codes = {"E-SEC-PATH", "E-FILE-OPEN", "E-FILE-LINK", "I-FILE-LINK", "I-FILE-HIDDEN", "I-FILE-SPECIAL"}
    assert codes <= set(REMEDY)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (bytes(128) + b"DICM" + bytes(20), "dicom"),
        (b"\x08\0\x05\0\n\0\0\0ISO_IR 100", "maybe-dicom"),
        (b"\x02\0\0\0UL\x04\0", "maybe-dicom"),
        (b"\0\x08\0\x08\0\0\0\x10", "maybe-dicom"),
        (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0", "nifti"),
        (b"\x1c\x02\0\0n+2\0\r\n\x1a\n", "nifti"),
        (b"\x89PNG\r\n\x1a\nrest", "raster"),
        (b"\xff\xd8\xff\xe0", "raster"),
        (b"II*\0\x08\0\0\0", "tiff"),
        (b"%PDF-1.7", "other"),
        (b"\x1f\x8b\x08broken", "other"),
        (b"", "other"),
    ],
)
def test_content_says_what_a_file_is(head, kind):
    assert kind_of(head) == kind


def test_a_gzipped_nifti_is_known_by_its_first_kilobytes(tmp_path):
    import gzip

    path = tmp_path / "no_suffix"
    path.write_bytes(gzip.compress(b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + os.urandom(100_000)))
    with path.open("rb") as stream:
        assert kind_of(head_of(stream)) == "nifti"


def test_kinds_quote_nothing_of_a_name():
    names = ("folder/.DS_Store", "Thumbs.db", "README.txt", "DICOMDIR", "a.TXT", "b.nii.gz")
    assert [ignored_kind(name) for name in names] == [
        "desktop file", "desktop file", "read-me", "DICOM directory", ".txt", ".nii",
    ]  # fmt: skip
    assert ignored_kind("Smith.John") == "other suffix"
    assert ignored_kind("Smith") == "no suffix"


def test_a_name_that_promises_an_image_is_refused_and_others_are_ignored():
    assert unknown("a.dcm")[0] == unknown("b.nii.gz")[0] == unknown("c.JPG")[0] == "E-FILE-CONTENT"
    assert unknown("a.nrrd")[0] == unknown("export.zip")[0] == "I-FILE-FORMAT"
    assert unknown("notes.txt")[0] == unknown("._scan.dcm")[0] == "I-FILE-OTHER"
    assert empty("IM0001") == empty("a.dcm") == empty("a.nii.gz") == "E-FILE-EMPTY"
    assert empty(".gitkeep") == empty("log.txt") == "I-FILE-OTHER"
