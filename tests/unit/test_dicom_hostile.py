"""Files that say less than they hold, or inflate to more: refused, and never at the price of memory."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pydicom
import pytest
from dicom_made import DEFLATED, ct, loaded, pattern, write

from medmtl.data.synthetic.dicom import write_phantom
from medmtl.errors import UserError
from medmtl.io.dicom import decode, parse
from medmtl.io.dicom.header import read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.mosaic import check_tiles
from medmtl.io.dicom.series import plan

MIB = 2**20


def _bomb(folder, mib):
    """A deflated slice with ``mib`` MiB of zeros behind its pixels, in a file of a thousandth of that."""
    content = write(folder / "whole", ct(), DEFLATED).read_bytes()
    start = 144 + struct.unpack("<I", content[140:144])[0]
    machine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = [machine.compress(zlib.decompress(content[start:], -zlib.MAX_WBITS))]
    packed += [machine.compress(struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, mib * MIB))]
    packed += [machine.compress(bytes(MIB)) for _ in range(mib)]
    path = folder / "bomb"
    path.write_bytes(content[:start] + b"".join(packed) + machine.flush())
    return path


def test_a_deflated_file_inflates_to_what_it_states_and_no_more(tmp_path):
    path = _bomb(tmp_path, 512)
    assert path.stat().st_size < MIB
    read = "import sys, pathlib, resource\nfrom medmtl.io.dicom.header import read_header\n"
    code = f"""{read}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_header(pathlib.Path(sys.argv[1]))
except Exception as error:
    print(error.code, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    found, grown = said.split()
    assert found == "E-DCM-CLAIM"
    assert int(grown) < 300  # MiB, of the 512 that are packed in it


def test_padding_behind_deflated_pixels_is_no_bomb(tmp_path):
    with pytest.raises(UserError, match="E-DCM-CLAIM"):
        read_header(_bomb(tmp_path, 70))  # more than is inflated at once
    header = read_header(_bomb(tmp_path, 8))
    (stack,) = plan([header]).volumes
    np.testing.assert_array_equal(load(stack).array[:, ::-1, 0].T + 1024, pattern())


def test_a_large_deflated_image_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(parse, "_FIRST_BYTES", MIB)
    pixels = pattern(1500, 1400)  # 4 MiB
    header = read_header(write(tmp_path / "large", ct(pixels), DEFLATED))
    (stack,) = plan([header]).volumes
    np.testing.assert_array_equal(load(stack).array[:, ::-1, 0].T + 1024, pixels)


def test_an_unlisted_syntax_is_named(tmp_path):
    path = write(tmp_path / "a", ct())
    own = b"1.2.840.113619.5.2"  # General Electric's own
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", own.ljust(20, b"\0"))
    path.write_bytes(content)
    (refused,) = plan([read_header(path)]).refused
    assert refused.error.code == "E-DCM-CODEC" and own.decode() in refused.error.what


def test_a_file_that_is_written_to_while_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a", ct())
    (stack,) = plan([read_header(path)]).volumes
    plain = decode._plain_frames

    def slow(*args):
        yield from plain(*args)
        with path.open("r+b") as stream:  # a copy that goes on
            stream.write(b"x")
            stream.truncate(path.stat().st_size + 1)

    monkeypatch.setattr(decode, "_plain_frames", slow)
    with pytest.raises(UserError, match="E-FILE-CHANGED"):
        load(stack)


def test_a_mosaic_with_more_tiles_than_it_states_is_refused(tmp_path):
    write_phantom(tmp_path / "m", "mosaic-fewer")
    (stack,) = plan([read_header(tmp_path / "m" / "IM0001.dcm")]).volumes
    with pytest.raises(UserError, match=r"E-DCM-MOSAIC.*states 10 tiles.*tile 12"):
        load(stack)


@pytest.mark.parametrize("rest", [0, 4095])
def test_what_a_mosaic_leaves_free_may_be_of_any_one_value(rest):
    tiles = np.full((6, 6), rest, np.uint16)
    tiles[:4] = np.arange(24).reshape(4, 6)
    tiles[4:, :2] = np.arange(4).reshape(2, 2)
    check_tiles(tiles, 7)  # of nine: two are left free; a tile is 2 x 2
    with pytest.raises(UserError, match="states 6 tiles"):
        check_tiles(tiles, 6)


def test_a_mosaic_that_states_more_slices_than_it_holds_is_noted(tmp_path):
    write_phantom(tmp_path / "m", "mosaic-fewer")
    header = read_header(tmp_path / "m" / "IM0001.dcm")
    path = header.path
    content = path.read_bytes().replace(b"10      \0", b"13      \0")
    path.write_bytes(content)
    (stack,) = plan([read_header(path)]).volumes
    volume = load(stack)
    assert volume.array.shape[2] == 13 and not volume.array[:, :, -1].any()
    assert [note.code for note in volume.notes] == ["W-DCM-MOSAIC"]
    whole = write_phantom(tmp_path / "w", "mosaic")
    assert whole.volumes
    (stack,) = plan([read_header(tmp_path / "w" / "IM0001.dcm")]).volumes
    assert "W-DCM-MOSAIC" not in [note.code for note in load(stack).notes]


def test_two_numbers_of_tiles_that_disagree_say_nothing(tmp_path):
    write_phantom(tmp_path / "m", "mosaic")
    path = tmp_path / "m" / "IM0001.dcm"
    for count, refused in ((10, False), (12, True)):
        ds = pydicom.dcmread(path)
        block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0A, "US", count)
        ds.save_as(tmp_path / f"{count}.dcm")
        found = plan([read_header(tmp_path / f"{count}.dcm")])
        assert [r.error.code for r in found.refused] == (["E-DCM-MOSAIC"] if refused else [])


def test_a_header_of_endless_empty_elements_is_refused_at_once(tmp_path):
    path = tmp_path / "zeros"
    path.write_bytes(bytes(128) + b"DICM" + bytes(32 * MIB))
    with pytest.raises(UserError, match=r"E-DCM-HEADER.*more than 100,000 elements"):
        read_header(path)


def test_a_slice_of_another_contrast_in_a_volume_is_noted(tmp_path):
    slices = [ct(number=n, ConvolutionKernel="H30" if n != 3 else "H70") for n in range(6)]
    (note,) = loaded(tmp_path / "mixed", slices).notes
    assert (note.code, note.what) == ("W-DCM-CONTRAST", "slices differ from the rest: ConvolutionKernel in 1 of 6")
    assert not loaded(tmp_path / "one", [ct(number=n, ConvolutionKernel="H30") for n in range(6)]).notes
