"""What a DICOM object is, by its SOP class (DICOM PS3.4 B.5, PS3.6 A): an image, or which other thing."""

IMAGE, NO_PIXELS = "image", "object without pixels"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_KINDS = {  # SOP class after the storage root, and all below it; the longest that fits counts
    **dict.fromkeys(("1", "2", "3", "4", "5", "6", "7", "12", "13", "20", "30", "128", "130"), IMAGE),
    **dict.fromkeys(("77.1.1", "77.1.2", "77.1.4", "77.1.5.1", "77.1.5.2", "77.1.5.4", "77.1.7"), IMAGE),
    **dict.fromkeys(("77.1.1.1", "77.1.2.1", "77.1.4.1"), "video"),
    **dict.fromkeys(("77.1.3", "77.1.6", "77.1.8", "77.1.9"), "whole-slide image"),
    **dict.fromkeys(("77.1.5", "78", "79", "80", "81", "82"), "ophthalmic measurements"),
    **dict.fromkeys(("66.1", "66.3"), "registration"),
    "4.2": "MR spectroscopy",
    "9": "waveform",
    "11": "PR",
    "66": "raw data",
    "66.2": "fiducials",
    "66.4": "SEG",
    "66.5": "surface segmentation",
    "66.6": "tractography",
    "66.7": "SEG",
    "67": "real world mapping",
    "68": "surface scan",
    "88": "SR",
    "88.59": "KO",
    "91": "microscopy annotations",
    "104": "encapsulated document",
    "104.1": "PDF",
    "481": "RT object",
    "481.1": IMAGE,
    "481.2": "RTDOSE",
    "481.3": "RTSTRUCT",
}
_MODALITIES = {  # of objects whose SOP class says nothing
    "SR": "SR", "KO": "KO", "PR": "PR", "DOC": "PDF", "SEG": "SEG", "RTSTRUCT": "RTSTRUCT", "RTPLAN": "RT object",
    "RTDOSE": "RTDOSE", "RTRECORD": "RT object", "REG": "registration", "FID": "fiducials", "ECG": "waveform",
    "HD": "waveform", "EPS": "waveform", "AU": "waveform", "SM": "whole-slide image",
}  # fmt: skip


def kind_of(sop_class: str, modality: str, *, has_pixels: bool) -> str:
    """``"image"``, or the short name of what the object is instead."""
    if sop_class == "1.2.840.10008.1.3.10":
        return "DICOMDIR"
    if sop_class.startswith(_STORAGE):
        parts = sop_class.removeprefix(_STORAGE).split(".")
        for length in range(len(parts), 0, -1):
            if kind := _KINDS.get(".".join(parts[:length])):
                return kind
    if modality in _MODALITIES:
        return _MODALITIES[modality]
    return IMAGE if has_pixels else NO_PIXELS
