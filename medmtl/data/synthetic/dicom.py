"""DICOM folders with known truth: a phantom series for every irregularity that a reader meets, and a large CT series.

``write_phantom(out, "gap-middle")`` writes the files and returns what reading them must end with, voxel by voxel
(:class:`~medmtl.data.synthetic.dicom_truth.Truth`). Nothing here is a patient; every name, number and date is made up
and listed in ``Truth.identifiers``, so that de-identification can be tested on the same files.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from medmtl.data.synthetic import dicom_files, dicom_frames, dicom_geometry, dicom_groups, dicom_pictures, dicom_pixels
from medmtl.data.synthetic.dicom_large import write_ct_series
from medmtl.data.synthetic.dicom_truth import Expected, Kind, Truth, flaws
from medmtl.errors import UserError

__all__ = ["KINDS", "Expected", "Kind", "Truth", "flaws", "write_ct_series", "write_phantom"]

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        **dicom_geometry.KINDS,
        **dicom_pixels.KINDS,
        **dicom_groups.KINDS,
        **dicom_frames.KINDS,
        **dicom_pictures.KINDS,
        **dicom_files.KINDS,
    }
)


def write_phantom(out: Path, kind: str, *, seed: int = 0) -> Truth:
    """Write the folder of one of ``KINDS`` into ``out``, which must be empty or absent, and return its truth.

    The same kind and seed give the same bytes; another seed is another body with other UIDs.
    """
    if kind not in KINDS:
        raise UserError(
            "E-SYN-KIND", f"no phantom {kind!r}", f"choose one of {', '.join(sorted(KINDS))}", where="phantom"
        )
    if out.exists() and any(out.iterdir()):
        raise UserError(
            "E-SYN-FOLDER",
            "the folder holds other files, for which the truth would not hold",
            "choose another",
            where=out.name,
        )
    out.mkdir(parents=True, exist_ok=True)
    return KINDS[kind].write(out, seed)
