"""Private attributes that stay: numbers without which pixels would be read wrongly, or diffusion and dose be lost.

The first table is a subset of DICOM PS3.15 table E.3.10-1 (Safe Private Attributes); the second is ours, each line with
its reason. All are numbers or one of a few words: the value is checked, not only the tag. Every other private attribute
is removed.
"""

import re
from collections.abc import Callable

STANDARD: dict[tuple[int, str, int], str] = {  # (group, private creator, low byte of the element) -> what it is
    (0x0019, "GEMS_ACQU_01", 0x23): "table speed",
    (0x0019, "GEMS_ACQU_01", 0x24): "mid scan time",
    (0x0019, "GEMS_ACQU_01", 0x27): "rotation speed",
    (0x0019, "SIEMENS MR HEADER", 0x0C): "b value",
    (0x0019, "SIEMENS MR HEADER", 0x0D): "diffusion directionality",
    (0x0019, "SIEMENS MR HEADER", 0x0E): "diffusion gradient direction",
    (0x0019, "SIEMENS MR HEADER", 0x27): "b matrix",
    (0x0025, "GEMS_SERS_01", 0x07): "images in series",
    (0x0043, "GEMS_PARM_01", 0x27): "scan pitch ratio",
    (0x0043, "GEMS_PARM_01", 0x39): "b value and others",
    (0x0043, "GEMS_PARM_01", 0x6F): "table entry, gradient coil",
    (0x0045, "GEMS_HELIOS_01", 0x01): "detector rows",
    (0x0045, "GEMS_HELIOS_01", 0x02): "detector row width at the centre",
    (0x00E1, "ELSCINT1", 0x21): "dose length product",
    (0x01E1, "ELSCINT1", 0x50): "acquisition duration",
    (0x01F1, "ELSCINT1", 0x07): "table velocity",
    (0x01F1, "ELSCINT1", 0x26): "pitch",
    (0x01F1, "ELSCINT1", 0x27): "rotation time",
    (0x2001, "Philips Imaging DD 001", 0x03): "b factor",
    (0x2001, "Philips Imaging DD 001", 0x04): "diffusion direction",
    (0x2005, "Philips MR Imaging DD 001", 0x0D): "scale intercept",
    (0x2005, "Philips MR Imaging DD 001", 0x0E): "scale slope",
    (0x7053, "Philips PET Private Group", 0x00): "SUV factor",
    (0x7053, "Philips PET Private Group", 0x09): "activity concentration factor",
}
OURS: dict[tuple[int, str, int], str] = {
    (0x0019, "SIEMENS MR HEADER", 0x0A): "slices in a mosaic",  # without it a mosaic is one flat image
    (0x0019, "SIEMENS MR HEADER", 0x0B): "slice measurement duration",
    (0x0019, "SIEMENS MR HEADER", 0x28): "bandwidth per pixel, phase encoding",
    (0x0019, "SIEMENS MR HEADER", 0x29): "slice times",
    (0x0029, "SIEMENS CSA HEADER", 0x10): "image header, cut down to numbers",  # csa.py
    (0x0065, "Image Private Header", 0x50): "slices in a mosaic (UIH)",
    (0x2005, "Philips MR Imaging DD 005", 0x09): "original rescale intercept",
    (0x2005, "Philips MR Imaging DD 005", 0x0A): "original rescale slope",
}
CSA = (0x0029, "SIEMENS CSA HEADER", 0x10)
SAFE = {**STANDARD, **OURS}
NUMERIC_VRS = frozenset({"DS", "IS", "FD", "FL", "SS", "US", "SL", "UL", "SV", "UV"})
WORDS = frozenset({
    "", "NONE", "DIRECTIONAL", "BIDIRECTIONAL", "ISOTROPIC", "BMATRIX", "P", "M", "S", "R", "L", "A", "F", "H", "I",
    "O",
})  # fmt: skip
_NUMBERS = re.compile(r"[\d\s.+\-eE\\\0]*")


def key_of(group: int, element: int, creator_of: Callable[[int], str]) -> tuple[int, str, int] | None:
    """(group, creator, low byte) of a private element whose block is reserved; None of one without a creator.

    ``creator_of`` gives the text of the private creator element (gggg,00bb) of this group and dataset, or "".
    """
    if not 0x1000 <= element <= 0xFFFF:
        return None
    creator = creator_of(element >> 8).strip(" \0")
    return (group, creator, element & 0xFF) if creator else None


def harmless(vr: str, text: str) -> bool:
    """Whether the value of a safe attribute is what it should be: numbers, or a code word of ``WORDS``."""
    if vr in ("DS", "IS"):
        return _NUMBERS.fullmatch(text) is not None
    if vr in NUMERIC_VRS:
        return True
    return vr == "CS" and all(word.strip(" \0") in WORDS for word in text.split("\\"))
