"""Images that may have a name written into their pixels, and objects that are documents: both stay out.

No test of a header is reliable: BurnedInAnnotation (0028,0301) is optional and often wrong. So kinds of image that
usually carry text are set aside whatever they say of themselves, and somebody looks at them.
"""

from collections.abc import Sequence
from typing import Any

from medmtl.io.volume import Note

MODALITIES = frozenset({"US", "IVUS", "ES", "XA", "RF", "SC", "OT", "XC", "HC", "DOC", "GM"})
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_TEXT_CLASSES = tuple(  # secondary capture, ultrasound, XA and RF, endoscopy, photographs
    _STORAGE + tail for tail in ("7", "3.1", "6.1", "6.2", "6.3", "12.1", "12.2", "77.1.1", "77.1.4")
)
_COMPUTED = tuple(
    _STORAGE + tail for tail in ("66.4", "66.7", "30", "481.2")
)  # segmentations, maps, dose: no raster text
_DOCUMENTS = {  # prefixes of SOP classes whose content is text, curves or references, which this profile does not clean
    _STORAGE + "88.": "a structured report or key object selection",
    _STORAGE + "104.": "an encapsulated document",
    _STORAGE + "11.": "a presentation state",
    _STORAGE + "9.": "a waveform",
    _STORAGE + "4.2": "spectroscopy",
    _STORAGE + "66": "raw data",
    "1.2.840.10008.1.3.10": "a directory (DICOMDIR)",
}
_RASTERLESS = tuple(_STORAGE + tail for tail in ("481.", "66.", "67"))  # radiotherapy, registrations, value maps


def risk(
    *, modality: str, sop_class_uid: str, image_type: Sequence[str] = (), burned_in_annotation: str = ""
) -> Note | None:
    """Why an object is set aside (``E-DEID-KIND``, ``E-DEID-BURNED``), from four values of its header, or None.

    DERIVED and SECONDARY images pass if BurnedInAnnotation is NO: many are maps and reformats. US, XA, ... do not.
    """
    for prefix, name in _DOCUMENTS.items():
        if sop_class_uid == prefix or (prefix.endswith(".") and sop_class_uid.startswith(prefix)):
            return Note("E-DEID-KIND", f"the file is {name}")
    words = [word.strip().upper() for word in image_type]
    annotated = burned_in_annotation.strip().upper()
    if annotated == "YES":
        return Note("E-DEID-BURNED", "BurnedInAnnotation is YES")
    if _under(sop_class_uid, _COMPUTED):
        return None
    if modality.strip().upper() in MODALITIES:
        return Note("E-DEID-BURNED", f"images of modality {modality.strip().upper()} often carry text")
    if _under(sop_class_uid, _TEXT_CLASSES):
        return Note("E-DEID-BURNED", "images of this SOP class often carry text")
    if any(mark in word.replace(" ", "").replace("_", "") for word in words for mark in ("SCREENSAVE", "SCREENSHOT")):
        return Note("E-DEID-BURNED", "ImageType says that it is a screenshot")
    if {"LABEL", "OVERVIEW"} & set(words):
        return Note("E-DEID-BURNED", "ImageType says that it shows a slide's label")
    if words[:2] == ["DERIVED", "SECONDARY"] and annotated != "NO":
        return Note("E-DEID-BURNED", "ImageType is DERIVED\\SECONDARY and BurnedInAnnotation does not say NO")
    return None


def burned_in(ds: Any) -> Note | None:
    """:func:`risk` of a pydicom data set; one without pixels that is no radiotherapy object is ``E-DEID-KIND`` too."""
    sop_class = str(ds.get("SOPClassUID", "") or "")
    image_type = ds.get("ImageType") or ()
    found = risk(
        modality=str(ds.get("Modality", "") or ""),
        sop_class_uid=sop_class,
        image_type=[image_type] if isinstance(image_type, str) else [str(word) for word in image_type],
        burned_in_annotation=str(ds.get("BurnedInAnnotation", "") or ""),
    )
    pixels = any(keyword in ds for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    if found is None and not pixels and not _under(sop_class, _RASTERLESS):
        return Note("E-DEID-KIND", "the file holds no image")
    return found


def _under(uid: str, roots: Sequence[str]) -> bool:
    return any(uid == root or uid.startswith(root if root.endswith(".") else root + ".") for root in roots)
