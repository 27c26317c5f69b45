"""Random changes of a training sample, counted and not stateful: the same seed gives the same bits in any process.

Nothing is on by default. Per sample: geometry first, on an image with some surroundings (the *context*), from which
flips, jitter and the affine map take a window, so that no border shows; then appearance, on the window in [0, 1]. Dense
targets get the same geometry with the nearest label, and no change of appearance.

Every ingredient is drawn from its own stream, so switching one on leaves the others' draws as they were: two runs that
differ in one ingredient are a paired comparison. Drawing (``draw``) is apart from applying, which is pure.

Plain torch and numpy on plain tensors, not MONAI's ``Rand...d``: on a 64 px patch those cost 5 to 28 times as much
(flips, quarter turns, jitter, gain and offset together 2.4 ms per sample against 0.09, ``benchmarks/augment_cost.py``),
mostly for the MetaTensor's history, which only a switch that is global to the process turns off, and for new random
states, whose seed is folded to 32 bits. (``RandCoarseDropout`` also writes into the tensor it is given once that switch
is off, that is, into a cache.) The tests compare matrices, sampling, blur and gamma with MONAI.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from medmtl.config import Config
from medmtl.data.appearance import Blur, Colour, Erase, Fourier, Highlights, Ingredient, Noise, Stain
from medmtl.data.geometry import Affine, Geometry, draw_placement, shearing
from medmtl.data.mri import Mri
from medmtl.data.preprocess import IMAGE, SampleDict
from medmtl.errors import UserError


class Augment(Config):
    """All augmentation of a training run; an empty configuration changes nothing.

    Appearance acts in this order, ``mri`` between ``stain`` and ``colour``.
    """

    geometry: Geometry = Geometry()
    fourier: Fourier = Fourier()
    stain: Stain = Stain()
    colour: Colour = Colour()
    blur: Blur = Blur()
    noise: Noise = Noise()
    erase: Erase = Erase()
    highlights: Highlights = Highlights()
    mri: Mri = Mri()

    def acting(self) -> tuple[str, ...]:
        """What changes images, by its key. Raises UserError for a probability of something that has no strength."""
        geometry = [name for name in ("flip", "rotate90", "jitter_px") if getattr(self.geometry, name)]
        acting, idle = [f"geometry.{name}" for name in geometry], []
        for name, part in self._parts().items():
            if part.on and part.probability:
                acting.append(name)
            elif not part.on and part.probability not in (0.0, 1.0):  # 1: nobody said it
                idle.append(name)
        if idle:
            fields = type(self._parts()[idle[0]]).model_fields
            strengths = ", ".join(key for key in fields if key not in ("probability", "padding"))
            raise UserError(
                "E-AUG-OFF",
                f"it has a probability and no strength, so it changes nothing ({strengths})",
                "give it a strength, or set its probability to 0",
                where=f"augment.{idle[0]}",
            )
        return tuple(acting)

    def _parts(self) -> dict[str, Affine | Ingredient]:
        """What has a probability and strengths, by its key."""
        mine = {name: getattr(self, name) for name in type(self).model_fields if name not in ("geometry", "mri")}
        mri = {
            f"mri.{name}": value for name in Mri.model_fields if isinstance(value := getattr(self.mri, name), Config)
        }
        return {"geometry.affine": self.geometry.affine, **mine, **mri}

    def build(self, window: Sequence[int] | None, dense_keys: Sequence[str] = ()) -> "AugmentPipeline":
        """The pipeline for a network input of that size; without a window the image keeps its own."""
        self.acting()
        if window is None and self.geometry.jitter_px:
            raise UserError(
                "E-AUG-WINDOW",
                "jitter needs a window that is smaller than the image",
                "set preprocess.window, or augment.geometry.jitter_px to 0",
                where="augment.geometry.jitter_px",
            )
        return AugmentPipeline(self, None if window is None else tuple(window), tuple(dense_keys))

    def reach(self, window: Sequence[int]) -> tuple[int, ...]:
        """Context size, per axis, that no draw looks beyond: enough to cache, and what an image should have.

        ``2 ceil(max_i |u_i|) + 2 jitter`` for the corners' positions u, bounded over all angles and shears.
        """
        affine, half, axes = self.geometry.affine, np.array(window) / 2, len(window)
        box = half
        if affine.on:
            sin = math.sin(math.radians(min(affine.rotate_deg, 90)))
            box = shearing(axes, [affine.shear] * 6) @ half
            turned = box.copy()
            for i, j in combinations(range(axes), 2):  # |cos| <= 1, |sin| <= sin
                turned[[i, j]] += sin * turned[[j, i]]
            box = np.minimum(turned, np.linalg.norm(box)) / affine.scale[0]
        margin = np.maximum(np.ceil(box - half - 1e-9), 0).astype(int) + self.geometry.jitter_px
        return tuple(int(n + 2 * m) for n, m in zip(window, margin, strict=True))


@dataclass(frozen=True)
class AugmentPipeline:
    """``pipeline(sample, seed)``; or, to normalise or crop in between, the two halves with one generator::

    rng = np.random.default_rng(seed)
    sample = pipeline.intensity(pipeline.geometry(sample, rng), rng, reference)
    """

    config: Augment
    window: tuple[int, ...] | None
    dense_keys: tuple[str, ...]

    def __call__(self, sample: SampleDict, seed: int, reference: Tensor | None = None) -> SampleDict:
        """The sample, augmented by draws from ``seed`` (any natural number) alone."""
        rng = np.random.Generator(np.random.PCG64(seed))
        return self.intensity(self.geometry(sample, rng), rng, reference)

    def geometry(self, sample: SampleDict, rng: np.random.Generator) -> SampleDict:
        """Image and dense targets at the size of the window. Input tensors are not written to; the result may share
        their memory where nothing is drawn.
        """
        spatial = tuple(sample[IMAGE].shape[1:])
        place = draw_placement(self.config.geometry, rng, spatial, self.window or spatial)
        dense = {name: place(sample[name][None], labels=True)[0] for name in self.dense_keys}
        return {**sample, IMAGE: place(sample[IMAGE]), **dense}

    def intensity(self, sample: SampleDict, rng: np.random.Generator, reference: Tensor | None = None) -> SampleDict:
        """The image with another appearance, within [0, 1]. ``reference``: another training image for ``fourier``."""
        image, config = sample[IMAGE], self.config
        early = (config.fourier, config.stain)
        last = (config.colour, config.blur, config.noise, config.erase, config.highlights)
        streams = rng.integers(2**63, size=len(early) + len(last) + len(config.mri.ingredients))
        seeds = iter(streams.tolist())  # a new ingredient takes its own from the end: the others' draws stay
        before, after = [next(seeds) for _ in early], [next(seeds) for _ in last]
        image = _changed(image, early, before, reference)
        scanned = _changed(image, config.mri.ingredients, list(seeds), reference)
        if config.mri.keep_background and scanned is not image:
            scanned = torch.where(image > 0, scanned, image)
        image = _changed(scanned, last, after, reference)
        return {**sample, IMAGE: image}


def _changed(
    image: Tensor, ingredients: Sequence[Ingredient], seeds: Sequence[int], reference: Tensor | None
) -> Tensor:
    """One ingredient after the other, each drawn from its own seed."""
    for ingredient, seed in zip(ingredients, seeds, strict=True):
        if ingredient.on:
            own = np.random.Generator(np.random.PCG64(seed))
            if own.random() < ingredient.probability:
                image = ingredient.draw(own, image.shape, reference)(image)
    return image
