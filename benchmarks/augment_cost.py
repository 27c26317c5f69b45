"""What augmentation costs per sample on one core, ingredient by ingredient, beside a plain copy and MONAI's transform.

    python benchmarks/augment_cost.py [--patches FOLDER] [--repeats 400]

One 64 px window out of a 128 px RGB context; each ingredient with probability 1 and the pipeline's own overhead
included. MONAI's column is its dictionary transform on the same tensor, reseeded for each sample as counted randomness
requires; "no meta" is the same with its process-wide switch ``set_track_meta(False)``. Best of five rounds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
from monai.data import set_track_meta
from PIL import Image

from medmtl.data.augment import Augment, AugmentPipeline
from medmtl.data.preprocess import Preprocess

KEY, WINDOW = ["image"], (64, 64)
AFFINE = {"rotate_deg": 20.0, "scale": (0.9, 1.1), "shear": 0.1}
CHEAP = {"flip": True, "rotate90": True, "jitter_px": 8}
OURS: dict[str, dict[str, Any]] = {
    "nothing (window only)": {},
    "flip": {"geometry": {"flip": True}},
    "rotate90": {"geometry": {"rotate90": True}},
    "jitter": {"geometry": {"jitter_px": 8}},
    "affine": {"geometry": {"affine": AFFINE}},
    "gain + offset": {"colour": {"gain": 0.1, "offset": 0.1}},
    "all of colour": {
        "colour": dict.fromkeys(("gain", "offset", "brightness", "contrast", "saturation", "gamma"), 0.1)
        | {"hue_deg": 9}
    },
    "gamma": {"colour": {"gamma": 0.2}},
    "stain": {"stain": {"sigma": 0.1, "bias": 0.1}},
    "fourier": {"fourier": {"strength": 0.5}},
    "fourier + reference": {"fourier": {"strength": 0.5}},
    "blur": {"blur": {"sigma": 1.0}},
    "noise": {"noise": {"std": 0.05}},
    "erase": {"erase": {"fraction": 0.1}},
    "flip rot90 jitter gain offset": {"geometry": CHEAP, "colour": {"gain": 0.1, "offset": 0.1}},
    "  + affine + stain": {
        "geometry": CHEAP | {"affine": AFFINE},
        "colour": {"gain": 0.1, "offset": 0.1},
        "stain": {"sigma": 0.1, "bias": 0.1},
    },
}


def monai_transforms() -> dict[str, mt.Transform]:
    """MONAI's counterpart of each ingredient that has one."""
    crop = mt.CenterSpatialCropd(KEY, roi_size=WINDOW)
    affine = {"rotate_range": 0.35, "scale_range": 0.1, "shear_range": 0.1, "spatial_size": WINDOW}
    singles: dict[str, list[mt.Transform]] = {
        "nothing (window only)": [crop],
        "flip": [mt.RandFlipd(KEY, prob=0.5, spatial_axis=0), mt.RandFlipd(KEY, prob=0.5, spatial_axis=1), crop],
        "rotate90": [mt.RandRotate90d(KEY, prob=0.75), crop],
        "jitter": [mt.CenterSpatialCropd(KEY, (80, 80)), mt.RandSpatialCropd(KEY, WINDOW, random_size=False)],
        "affine": [mt.RandAffined(KEY, prob=1, **affine)],
        "gain + offset": [crop, mt.RandScaleIntensityd(KEY, 0.1, prob=1, channel_wise=True),
                          mt.RandShiftIntensityd(KEY, 0.1, prob=1, channel_wise=True)],
        "gamma": [crop, mt.RandAdjustContrastd(KEY, prob=1, gamma=(0.8, 1.2))],
        "blur": [crop, mt.RandGaussianSmoothd(KEY, prob=1, sigma_x=(0, 1), sigma_y=(0, 1))],
        "noise": [crop, mt.RandGaussianNoised(KEY, prob=1, std=0.05)],
        "erase": [crop, mt.RandCoarseDropoutd(KEY, holes=1, spatial_size=20, prob=1, fill_value=0.5)],
        "flip rot90 jitter gain offset": [mt.RandFlipd(KEY, prob=0.5, spatial_axis=0),
                                          mt.RandFlipd(KEY, prob=0.5, spatial_axis=1), mt.RandRotate90d(KEY, prob=0.75),
                                          mt.CenterSpatialCropd(KEY, (80, 80)),
                                          mt.RandSpatialCropd(KEY, WINDOW, random_size=False),
                                          mt.RandScaleIntensityd(KEY, 0.1, prob=1, channel_wise=True),
                                          mt.RandShiftIntensityd(KEY, 0.1, prob=1, channel_wise=True)],
    }  # fmt: skip
    return {name: mt.Compose(chain) for name, chain in singles.items()}


def milliseconds(action: Callable[[int], Any], repeats: int) -> float:
    """Best mean over five rounds; the argument counts up, so that random branches are averaged."""
    for warm in range(20):
        action(warm)
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for count in range(repeats // 5):
            action(count)
        rounds.append((time.perf_counter() - start) / (repeats // 5))
    return 1e3 * min(rounds)


def _monai(transform: mt.Compose, image: torch.Tensor, repeats: int, *, meta: bool) -> float:
    set_track_meta(meta)
    try:
        return milliseconds(lambda i: transform.set_random_state(seed=i)({"image": image.clone()}), repeats)
    finally:
        set_track_meta(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=Path, help="folder of RGB images; the first of 128 px or more is used")
    parser.add_argument("--repeats", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    if options.patches:
        pixels = np.asarray(Image.open(sorted(options.patches.rglob("*.png"))[0]).convert("RGB"))
        image = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1).contiguous()
    reference, theirs = image.flip(1), monai_transforms()
    copy = milliseconds(lambda _: image[:, 32:96, 32:96].clone(), options.repeats)

    print(f"{'ms per sample, one core':<32}{'medmtl':>9}{'/ copy':>8}{'MONAI':>9}{'no meta':>9}{'MONAI / medmtl':>16}")
    print(f"{'copy of the window':<32}{copy:>9.4f}{1:>8.0f}")
    for name, tree in OURS.items():
        pipeline: AugmentPipeline = Augment.model_validate(tree).build(WINDOW)
        second = reference if "reference" in name else None
        ours = milliseconds(lambda i, p=pipeline, r=second: p({"image": image}, i, r), options.repeats)
        line = f"{name:<32}{ours:>9.4f}{ours / copy:>8.0f}"
        if name in theirs:
            full, bare = (_monai(theirs[name], image, options.repeats, meta=meta) for meta in (True, False))
            line += f"{full:>9.3f}{bare:>9.3f}{full / ours:>16.1f}"
        print(line)
    apply = Preprocess(window=WINDOW).apply
    print(f"{'preprocess.apply (no normalise)':<32}{milliseconds(lambda _: apply(image), options.repeats):>9.4f}")


if __name__ == "__main__":
    main()
