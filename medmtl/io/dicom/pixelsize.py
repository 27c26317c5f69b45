"""The size of a pixel in the patient, by modality; never one that nobody stated."""

import math

from medmtl.io.dicom.record import Frame, Header
from medmtl.io.reasons import refusal
from medmtl.io.volume import Note

CROSS_SECTIONAL = ("CT", "MR", "PT")  # of no use without a place in the patient
PHYSICAL = ("CT", "PT")  # values that mean something, however they are shown
PROJECTION = ("CR", "DX", "MG", "RF", "XA", "IO", "PX", "RG", "RTIMAGE")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
Spacing = tuple[float, float]


def is_cross_sectional(header: Header) -> bool:
    """Whether the image must have a place; a screenshot in a series of a scanner need not."""
    return header.modality in CROSS_SECTIONAL and not header.sop_class_uid.startswith(_SECONDARY_CAPTURE)


def is_colour(header: Header) -> bool:
    """Whether the loaded pixels are RGB."""
    assert header.pixels is not None
    return header.pixels.samples > 1 or header.pixels.photometric == "PALETTE COLOR"


def itemsize_of(header: Header) -> int:
    """Bytes of a stored value."""
    assert header.pixels is not None
    return header.pixels.itemsize


def pixel_size(header: Header, frame: Frame) -> tuple[Spacing | None, tuple[Note, ...]]:
    """(between rows, between columns) mm, or None where nothing can be trusted to say so; and how it is known.

    A cross-sectional image without it is refused (``E-DCM-SPACING``). A projection has the size at its detector if
    there is no calibrated one, an ultrasound image that of its calibrated region.
    """
    stated = frame.spacing
    valid = stated is not None and all(0 < length < math.inf for length in stated)
    if is_cross_sectional(header):
        if not valid:
            found = "no number" if "PixelSpacing" in frame.broken else f"{stated}" if stated else "missing"
            raise refusal("E-DCM-SPACING", f"the pixel spacing is {found}")
        return stated, ()
    if header.modality in PROJECTION:
        if valid and stated != header.detector_spacing:
            return stated, ()
        if header.detector_spacing:
            size = " x ".join(f"{length:g}" for length in header.detector_spacing)
            return header.detector_spacing, (Note("W-DCM-PIXEL-SIZE", f"{size} mm at the detector"),)
        return None, ()
    if header.modality == "US":
        return header.region_spacing or (stated if valid else None), ()
    return (stated if valid else None), ()
