"""Volumes as NIfTI files: equal volumes give equal bytes, and nothing but geometry is stored beside the voxels."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from medmtl.files import atomic_path
from medmtl.io.affine import corner_distance_mm
from medmtl.io.gzipped import BLOCK, write_gzip
from medmtl.io.volume import Volume

SCANNER = 1  # sform_code and qform_code: scanner-based coordinates
QFORM_MM = 1e-3  # a quaternion of float32 that misses the affine by more at a corner is left out
_LONGEST_NIFTI1 = 2**15 - 1  # voxels along an axis
_MM, _SECONDS = 2, 8  # xyzt_units
_RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
_STORED = (
    {"bool": "<u1", "float16": "<f4"}
    | {f"{name}{8 * size}": f"<{name[0]}{size}" for name in ("int", "uint") for size in (1, 2, 4, 8)}
    | {"float32": "<f4", "float64": "<f8"}
)


def write_nifti(path: Path, volume: Volume, *, level: int = 1) -> Path:
    """Write ``.nii``, or ``.nii.gz`` packed at ``level`` 0 (fastest) to 3, whole or not at all.

    Values are stored as they are (bool as bytes, float16 as float32), with slope 1. The sform holds the affine; the
    qform too if it can say the same within 0.001 mm, which shear and turns close to 180 degrees prevent. NIfTI-2 is
    written only where an axis is longer than NIfTI-1 can count. No name, time or free text is stored.

    Raises EnvironmentFailure (``E-DISK``) where the disk is full or may not be written to.
    """
    packed = path.name.endswith(".nii.gz")
    assert packed or path.suffix == ".nii", f"{path.name} is neither .nii nor .nii.gz"
    assert volume.array.ndim in (3, 4) and volume.array.size, f"no image: {volume.array.shape}"
    voxels = np.moveaxis(volume.array, -1, 0) if volume.colour else volume.array
    stored = np.dtype(_STORED[volume.array.dtype.name])
    blocks: Iterator[bytes | memoryview] = chain([_header(volume, stored)], _blocks(voxels, stored))
    with atomic_path(path) as temporary:
        if packed:
            write_gzip(temporary, blocks, level=level)
        else:
            with temporary.open("wb") as stream:
                stream.writelines(blocks)
    return path


def _blocks(array: npt.NDArray[np.generic], stored: np.dtype[np.generic]) -> Iterator[memoryview]:
    """The voxels, first index fastest, in slabs of about a megabyte; copied only where they do not lie so in memory."""
    step = max(1, BLOCK * array.shape[-1] // (array.size * stored.itemsize))
    for start in range(0, array.shape[-1], step):
        slab = np.asfortranarray(array[..., start : start + step], dtype=stored)
        yield slab.reshape(-1, order="F").view(np.uint8).data


def _header(volume: Volume, stored: np.dtype[np.generic]) -> bytes:
    shape = volume.array.shape[: 3 if volume.colour else 4]
    header = (Nifti1Header if max(shape) <= _LONGEST_NIFTI1 else Nifti2Header)(endianness="<")
    header.set_data_dtype(_RGB24 if volume.colour else stored)
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["descrip"] = b"medmtl"
    units = _place(header, volume)
    if len(shape) == 4:
        header["pixdim"][4] = volume.time_step_s or 0
        units |= _SECONDS if volume.time_step_s else 0
    header["xyzt_units"] = units
    return bytes(header.binaryblock) + bytes(4)  # and no extensions


def _place(header: Nifti1Header, volume: Volume) -> int:
    """Set sform, qform and voxel sizes; returns the unit of length (0 where no size is known)."""
    if volume.affine is None:
        sizes = volume.spacing or ()
        header["pixdim"][1:4] = [*sizes, *[1] * (3 - len(sizes))]
        return _MM if sizes else 0
    header.set_sform(volume.affine, SCANNER)
    header.set_qform(volume.affine, SCANNER)  # with the voxel sizes, without the shear
    if corner_distance_mm(header.get_qform(), volume.affine, volume.array.shape) > QFORM_MM:
        header["qform_code"], header["pixdim"][0] = 0, 1
        for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            header[field] = 0
    return _MM
