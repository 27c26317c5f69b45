"""Masks of the central mitotic figure, as dense auxiliary labels: yours, or a licence-free classical guess.

Networks that draw such masks (NuClick and its kin) carry non-commercial licences or weights. ``Haematoxylin`` needs
neither: colour deconvolution, Otsu's threshold, the dark clumps around the patch centre. It is a *weak* label and is
allowed to fail: a mask whose area or place is implausible becomes a missing label with a reason, never a bad one.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that its documentation uses
from scipy import ndimage

from medmtl.config import digest
from medmtl.errors import UserError
from medmtl.files import write_atomic
from medmtl.io.raster import read_image, read_mask, write_png
from workflows.preparation import Remark

# Optical densities of haematoxylin, eosin and DAB in red, green, blue: Ruifrok & Johnston (2001), Anal Quant Cytol
# Histol 23:291. The third vector only takes up what the first two leave.
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


@dataclass(frozen=True)
class NucleusMask:
    """A mask (bool [H, W]), or None, the ``reason`` why there is none, and what to do where anything can be done."""

    mask: np.ndarray | None
    reason: str = ""
    remedy: str = ""


class MaskProvider(Protocol):
    """Draws the mask of the nucleus at the centre of a patch."""

    name: ClassVar[str]

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of the parameters: equal digits, equal masks."""
        ...

    def extra(self, case_id: str) -> bytes:
        """Whatever the mask depends on besides the image and the parameters; part of the cache key."""
        ...

    def draw(self, case_id: str, image: np.ndarray) -> NucleusMask:
        """The mask of ``image``, float [3, H, W] in [0, 1]."""
        ...


@dataclass(frozen=True)
class UserMasks:
    """Masks that you bring: ``folder/<case_id>.png`` with 0 for background and one other value (1 or 255) inside."""

    folder: Path
    name: ClassVar[str] = "user"

    @property
    def digest(self) -> str:
        return digest({})[:8]

    def extra(self, case_id: str) -> bytes:
        path = self.folder / f"{case_id}.png"
        return path.read_bytes() if path.is_file() else b""

    def draw(self, case_id: str, image: np.ndarray) -> NucleusMask:
        path = self.folder / f"{case_id}.png"
        if not path.is_file():
            return NucleusMask(None, "no mask file of this case", "add <case_id>.png, or leave the label empty")
        try:
            labels = read_mask(path)
        except UserError as error:
            return NucleusMask(None, error.what, error.remedy)
        if labels.shape != image.shape[1:]:
            what = f"mask of {labels.shape} for an image of {image.shape[1:]} pixels"
            return NucleusMask(None, what, "export the mask at the size of its image")
        values = set(np.unique(labels).tolist())
        if not values <= {0, 1} and not values <= {0, 255}:
            what = f"mask values {sorted(values)[:5]}; 0 and 1 (or 255) were expected"
            return NucleusMask(None, what, "write 0 outside and 1 (or 255) inside, without soft edges")
        if values == {0}:
            return NucleusMask(None, "the mask is empty", "draw the figure, or remove the file")
        return NucleusMask(labels > 0)


@dataclass(frozen=True)
class Haematoxylin:
    """Dark clumps around the centre of an H&E patch. Lengths in um, areas in um2; ``um_per_px`` scales them.

    1. Haematoxylin density by colour deconvolution (``STAINS``), Gaussian of ``smooth_um``.
    2. Otsu's threshold of the densities within ``window_um`` of the centre, twice: the second, ``high``, is found among
       the pixels above the first, ``low``. A mitotic figure is denser than the nuclei beside it, and one threshold
       would only part nuclei from stroma. Clumps are grown from pixels above ``high`` down to the mean of both; where
       that gives no plausible figure, down to ``high`` only, and last to ``low``.
    3. The clump nearest the centre, and others near it that are as dense: the second plate of an anaphase, the arms of
       a multipolar figure, lagging chromosomes.
    4. Holes filled, then checks of area, distance from the centre and contrast. A figure that fails has no mask.

    Known faults: a ring or pale centre that is open to one side is left out, and a neighbouring nucleus that touches
    the figure is taken with it. The area bounds, 6 to 130 um2, are 96 to 2,080 px in a 128-px patch of 0.25 um/px:
    from a metaphase plate seen edge-on (8 x 1 um) to a wide prometaphase (13 um across).
    """

    um_per_px: float = 0.25
    smooth_um: float = 0.3
    close_um: float = 0.4  # gaps between chromosome arms up to this radius belong to the figure
    window_um: float = 10.0
    reach_um: float = 7.0  # farthest centroid of a further component; telophase plates lie up to 14 um apart
    centred_um: float = 1.75  # a component this near the centre is the figure itself, not one plate of two: then
    fragment_um: float = 4.0  # further components are fragments within this distance, not the neighbouring nuclei
    density_ratio: float = 0.8  # how dense a further component is, of the first one's median
    smallest_um2: float = 6.0
    largest_um2: float = 130.0
    off_centre_um: float = 4.0  # the annotation's click is this close to the figure
    contrast: float = 1.3  # median density inside, of the median in the window outside
    name: ClassVar[str] = "haematoxylin"
    version: ClassVar[int] = 1  # raise it with every change of the algorithm, so that no cached mask is stale

    def __post_init__(self) -> None:
        if not 0.05 <= self.um_per_px <= 2:
            raise UserError("E-NUC-SCALE", f"{self.um_per_px} um/px is no microscope's", "give um per pixel, e.g. 0.25")

    @property
    def digest(self) -> str:
        return digest({**asdict(self), "version": self.version})[:8]

    def extra(self, case_id: str) -> bytes:
        return b""

    def draw(self, case_id: str, image: np.ndarray) -> NucleusMask:
        density = ndimage.gaussian_filter(haematoxylin_density(image), self.smooth_um / self.um_per_px)
        distance = _from_centre(density.shape) * self.um_per_px
        window = density[distance <= self.window_um]
        if np.ptp(window) < 1e-3:
            return NucleusMask(None, "no stain in the centre window")
        low = _otsu(window)
        upper = window[window > low]
        high = _otsu(upper) if np.ptp(upper) > 1e-3 else low
        result = NucleusMask(None)
        for grown in ((low + high) / 2, high, low):
            result = self._figure(density, distance, seed=max(grown, high), grown=grown)
            if result.mask is not None:
                break
        return result

    def _figure(self, density: np.ndarray, distance: np.ndarray, *, seed: float, grown: float) -> NucleusMask:
        """The nearest clump above ``grown`` that holds pixels above ``seed``, and those like it; checked."""
        closed = ndimage.grey_closing(density, footprint=_disc(self.close_um / self.um_per_px))
        labels, count = ndimage.label(closed > grown)
        if not count:
            return NucleusMask(None, "nothing above the threshold")
        index = np.arange(1, count + 1)
        area = np.asarray(ndimage.sum_labels(np.ones_like(labels), labels, index)) * self.um_per_px**2
        nearest = np.asarray(ndimage.minimum(distance, labels, index))
        centroid = np.array(ndimage.center_of_mass(labels > 0, labels, index))
        middle = (np.array(density.shape) - 1) / 2
        off = np.hypot(*(centroid - middle).T) * self.um_per_px
        median = np.asarray(ndimage.median(density, labels, index))
        candidate = (area >= 1.0) & (np.asarray(ndimage.maximum(density, labels, index)) > seed)
        if not candidate.any():
            return NucleusMask(None, "only specks above the threshold")
        first = int(np.argmin(np.where(candidate, nearest + 0.25 * off, np.inf)))
        reach = self.reach_um if off[first] > self.centred_um else self.fragment_um
        alike = candidate & (off <= reach) & (median >= self.density_ratio * median[first])
        alike[first] = True
        mask = ndimage.binary_fill_holes(np.isin(labels, index[alike]))
        return self._checked(mask, density, distance)

    def _checked(self, mask: np.ndarray, density: np.ndarray, distance: np.ndarray) -> NucleusMask:
        area = float(mask.sum()) * self.um_per_px**2
        if not self.smallest_um2 <= area <= self.largest_um2:
            return NucleusMask(None, f"area {'below' if area < self.smallest_um2 else 'above'} the plausible range")
        middle = (np.array(mask.shape) - 1) / 2
        off = math.hypot(*(np.array(ndimage.center_of_mass(mask)) - middle)) * self.um_per_px
        if off > self.off_centre_um:
            return NucleusMask(None, "the figure lies off the centre")
        around = (distance <= self.window_um) & ~mask
        if np.median(density[mask]) < self.contrast * np.median(density[around]):
            return NucleusMask(None, "too little contrast with the surroundings")
        return NucleusMask(mask)


def cached_mask(provider: MaskProvider, folder: Path, case_id: str, image: Path) -> tuple[Path | None, Remark]:
    """The path of the mask PNG (0 background, 1 nucleus), drawn once per image content and parameters; or why none.

    ``folder/<provider>-<digest>/<sha256>.png``; where there is no mask a ``.txt`` of that name holds the reason, and in
    a second line the remedy if there is one.
    """
    key = hashlib.sha256(image.read_bytes() + provider.extra(case_id)).hexdigest()[:24]
    path = folder / f"{provider.name}-{provider.digest}" / f"{key}.png"
    if path.is_file():
        return path, Remark("")
    refusal = path.with_suffix(".txt")
    if not refusal.is_file():
        drawn = provider.draw(case_id, read_image(image, channels=3))
        if drawn.mask is not None:
            return write_png(path, drawn.mask), Remark("")
        write_atomic(refusal, f"{drawn.reason}\n{drawn.remedy}".rstrip("\n"))
    reason, _, remedy = refusal.read_text(encoding="utf-8").partition("\n")
    return None, Remark(reason, remedy)


def haematoxylin_density(image: np.ndarray) -> np.ndarray:
    """Haematoxylin's share of the optical density [H, W], from an RGB image [3, H, W] in [0, 1] on white."""
    optical_density = -np.log10(np.clip(image, 1 / 255, 1))
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    return np.clip(np.tensordot(np.linalg.inv(unit).T[0], optical_density, 1), 0, None)


def _from_centre(shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in shape)
    return np.hypot(rows[:, None], columns)


def _otsu(values: np.ndarray) -> float:
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(128)
    otsu.Execute(sitk.GetImageFromArray(values[None].astype(np.float32)))
    return float(otsu.GetThreshold())


def _disc(radius: float) -> np.ndarray:
    reach = np.arange(-int(radius), int(radius) + 1)
    return np.hypot(reach[:, None], reach) <= radius
