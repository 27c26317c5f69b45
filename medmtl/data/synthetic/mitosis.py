"""A small multi-scanner study of drawn mitotic figures: real files, known truth, built-in domain shift and label gaps.

Every patch is painted in optical density with two stains and turned to colour by its scanner's stain vectors. What the
label depends on is the *shape* of the dark figure in the middle. What a network can cheat with is there as in the
clinic: scanners differ in colour, blur, noise *and* prevalence, slides differ among themselves, experts err.

The columns are those of ``workflows.atypical_mitosis.prepare``; ``meta.truth`` and ``meta.truth_phase`` are what was
drawn, free of the experts' errors. Nothing here is a patient.
"""

import io
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from medmtl.data.case import Case, write_manifest
from medmtl.errors import UserError
from medmtl.io.raster import write_png

CLASSES = ("normal", "atypical")
NORMAL_PHASES = ("NMF prometaphase", "NMF metaphase", "NMF ring shape", "NMF anaphase-telophase")
ATYPICAL_PHASES = ("AMF segregation", "AMF multipolar", "AMF bipolar asymmetric", "AMF other")
PHASES = NORMAL_PHASES + ATYPICAL_PHASES
_PHASE_SHARE = {"normal": (0.32, 0.42, 0.08, 0.18), "atypical": (0.36, 0.24, 0.22, 0.18)}
_EXPERTS = ((0.78, 0.96), (0.88, 0.89), (0.90, 0.92))  # sensitivity and specificity for "atypical"
_NO_LABEL, _NO_MASK, _NO_PHASE, _NO_DOMAIN = 0.10, 0.30, 0.25, 0.04  # shares of missing cells
_SPLIT = {"common": (0.65, 0.15), "rare": (0.25, 0.25)}  # shares of slides in train and val; the rest is test
Generator = np.random.Generator


@dataclass(frozen=True)
class Scanner:
    """How a site stains and digitises: optical densities (rows: haematoxylin, eosin), optics, and its case mix."""

    stains: tuple[tuple[float, float, float], tuple[float, float, float]]
    gain: float
    blur_px: float
    noise: float
    jpeg_quality: int
    prevalence: float


SCANNERS = (
    Scanner(((0.65, 0.70, 0.29), (0.16, 0.92, 0.20)), 0.98, 0.6, 0.010, 92, 0.28),
    Scanner(((0.58, 0.72, 0.20), (0.08, 0.80, 0.42)), 0.92, 0.9, 0.018, 80, 0.38),
    Scanner(((0.70, 0.62, 0.35), (0.20, 0.88, 0.16)), 0.86, 1.1, 0.026, 65, 0.50),
    Scanner(((0.50, 0.78, 0.30), (0.12, 0.95, 0.30)), 1.00, 0.7, 0.014, 88, 0.30),
)


@dataclass(frozen=True)
class Slide:
    """One group: its scanner, split and what all of its patches share."""

    name: str
    domain: int
    split: str
    prevalence: float
    haematoxylin: float
    eosin: float
    scale: float


def write_mitosis_study(
    out: Path, *, cases: int = 480, groups: int = 48, domains: int = 3, seed: int = 0, size: int = 96
) -> Path:
    """Draw the study into ``out`` and return the path of its manifest; the same arguments give the same bytes.

    ``groups`` slides are dealt to ``domains`` scanners in turn; the last scanner is rare in ``train`` and common in
    ``test``. ``size`` is the side of a patch in px; the figure spans about a quarter of it.
    """
    if not (1 <= domains <= len(SCANNERS) and 3 * domains <= groups <= cases and size >= 32):
        raise UserError(
            "E-SYN-SIZE",
            f"cases={cases}, groups={groups}, domains={domains}, size={size}",
            f"choose 1 to {len(SCANNERS)} domains, at least 3 groups of each, at least as many cases, and size >= 32",
            where="synthetic study",
        )
    rng = np.random.default_rng((seed, 0))
    slides = list(_slides(rng, groups, domains))
    owner = np.concatenate([np.arange(groups), rng.choice(groups, cases - groups, p=rng.dirichlet(np.full(groups, 4)))])
    rows = []
    for index, slide in enumerate(slides[i] for i in np.sort(owner)):
        rows.append(_write_case(out, f"SYN_{index:04d}", slide, np.random.default_rng((seed, 1, index)), size))
    return write_manifest(out / "manifest.csv", rows)


def _slides(rng: Generator, groups: int, domains: int) -> Iterator[Slide]:
    for domain in range(domains):
        members = rng.permutation(np.arange(domain, groups, domains))
        train, val = _SPLIT["rare" if domain == domains - 1 and domains > 1 else "common"]
        first = max(1, round(train * len(members)))
        second = min(first + max(1, round(val * len(members))), len(members) - 1)
        odds = SCANNERS[domain].prevalence / (1 - SCANNERS[domain].prevalence)
        for rank, member in enumerate(members):
            own = odds * np.exp(rng.normal(0, 0.35))
            yield Slide(
                f"SLIDE_{member:03d}",
                domain,
                "train" if rank < first else "val" if rank < second else "test",
                own / (1 + own),
                np.exp(rng.normal(0, 0.10)),
                np.exp(rng.normal(0, 0.18)),
                np.exp(rng.normal(0, 0.06)),
            )


def _write_case(out: Path, case_id: str, slide: Slide, rng: Generator, size: int) -> Case:
    truth = CLASSES[int(rng.random() < slide.prevalence)]
    phase = str(rng.choice(NORMAL_PHASES if truth == "normal" else ATYPICAL_PHASES, p=_PHASE_SHARE[truth]))
    image, mask = draw_patch(phase, SCANNERS[slide.domain], slide, rng, size)
    write_png(out / "images" / f"{case_id}.png", image)
    targets, meta = _labels(truth, phase, rng)
    if rng.random() >= _NO_MASK:
        write_png(out / "masks" / f"{case_id}.png", mask)
        targets["nucleus"], meta["nucleus_provider"] = f"masks/{case_id}.png", "truth"
    domain = f"scanner-{string.ascii_uppercase[slide.domain]}" if rng.random() >= _NO_DOMAIN else ""
    meta |= {"dataset": "synthetic", "scanner": domain, "slide": f"{slide.name}.tiff"}
    return Case(case_id, slide.name, f"images/{case_id}.png", domain, slide.split, targets, meta)


def _labels(truth: str, phase: str, rng: Generator) -> tuple[dict[str, str], dict[str, str]]:
    """Targets and meta of one case. Where the majority is missing, only the first expert has looked."""
    right = rng.random(3) < [expert[truth == "normal"] for expert in _EXPERTS]
    votes = [truth if correct else CLASSES[truth == "normal"] for correct in right]
    meta = {"truth": truth, "truth_phase": phase}
    looked = 1 if rng.random() < _NO_LABEL else 3
    targets = {f"vote.expert{i}": vote for i, vote in enumerate(votes[:looked], 1)}
    if looked == 3:
        count = votes.count("atypical")
        targets |= {"atypical": CLASSES[count >= 2], "vote_fraction": f"{count / 3:.4f}"}
        meta["unanimous"] = "1" if count in (0, 3) else "0"
    for i, vote in enumerate(votes[: min(looked, 2)], 1):
        if rng.random() >= _NO_PHASE:
            targets[f"phase.expert{i}"] = _phase_called(vote, phase, rng)
    return targets, meta


def _phase_called(vote: str, phase: str, rng: Generator) -> str:
    """The phase that an expert names: usually the true one, always one of the class that he voted for."""
    known = NORMAL_PHASES if vote == "normal" else ATYPICAL_PHASES
    return phase if phase in known and rng.random() < 0.8 else str(rng.choice(known, p=_PHASE_SHARE[vote]))


def draw_patch(phase: str, scanner: Scanner, slide: Slide, rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A patch uint8 [size, size, 3] with a figure of ``phase`` in its middle, and its mask bool [size, size]."""
    unit = 96 / size  # lengths below are px of a patch of 96
    axis = (np.arange(size) - (size - 1) / 2) * unit
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"))
    smooth = [_noise(rng, size, sigma / unit) for sigma in (1.0, 2.5, 9.0)]
    haematoxylin, eosin = _tissue(grid, smooth, rng)
    capsules = _rotated(_figure(phase, rng), rng.uniform(0, 2 * np.pi)) * slide.scale * rng.uniform(0.95, 1.35)
    capsules[:, :4] += np.tile(rng.normal(0, 1.2, 2), 2)
    distance = _distance(grid, capsules) + 0.45 * smooth[0] + 0.35 * smooth[1]
    inside = _soft(-distance, 0.5)
    dark = rng.uniform(1.0, 1.35) + 0.08 * smooth[0]
    haematoxylin = haematoxylin * (1 - inside) + dark * inside
    densities = np.stack([haematoxylin * slide.haematoxylin, eosin * slide.eosin * (1 - 0.7 * inside)])
    return _digitised(densities, scanner, unit, rng), distance < 0


def _tissue(grid: np.ndarray, smooth: list[np.ndarray], rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin [H, W] of stroma, resting nuclei, specks, and the pale cell around the centre."""
    fine, medium, coarse = smooth
    eosin = 0.33 + 0.07 * coarse + 0.05 * medium + 0.04 * fine
    gap = _soft(coarse - rng.uniform(1.2, 2.5), 0.12)  # lumen or tear: no tissue, hence white
    eosin = eosin * (1 - 0.9 * gap)
    haematoxylin = (0.08 + 0.02 * medium) * (1 - gap)
    centre, radius = np.hypot(*grid), rng.uniform(17, 22)
    for _ in range(rng.integers(3, 10)):
        place = _ring_point(rng, 27, 58)
        nucleus = _soft(
            1 - np.hypot(*_turned(grid - place[:, None, None], rng) / rng.uniform(6, 11, 2)[:, None, None]), 0.08
        )
        chromatin = rng.uniform(0.35, 0.75) * (1 + 0.22 * fine + 0.12 * medium)
        haematoxylin = np.maximum(haematoxylin, nucleus * chromatin)
    for _ in range(rng.integers(0, 5)):  # pigment, apoptotic bodies: dark spots that mean nothing
        place = _ring_point(rng, 20, 48)
        speck = _soft(rng.uniform(1.2, 3.2) - np.hypot(*(grid - place[:, None, None])), 0.5)
        haematoxylin = np.maximum(haematoxylin, speck * rng.uniform(0.7, 1.3))
    cell = _soft(radius + 1.5 * medium - centre, 1.0)
    eosin = eosin * (1 - cell) + (rng.uniform(0.16, 0.34) + 0.03 * medium) * cell
    return haematoxylin * (1 - cell) + (0.1 + 0.02 * fine) * cell, np.clip(eosin, 0, None)


def _figure(phase: str, rng: Generator) -> np.ndarray:
    """Capsules [n, 5] (y0, x0, y1, x1, radius) of a figure around the origin; plates lie along x, poles along y."""
    apart, length = rng.uniform(5.5, 9.5), rng.uniform(12, 17)
    match phase:
        case "NMF prometaphase":
            ends = rng.normal(0, 4.2, (9, 4))
            return np.column_stack([ends, rng.uniform(1.6, 2.6, 9)])
        case "NMF metaphase":
            return _plate(rng, 0, length * 1.35, rng.uniform(2.8, 3.8))
        case "NMF ring shape":
            angle = np.linspace(0, 2 * np.pi, 11)
            points = rng.uniform(6.0, 8.0) * np.column_stack([np.sin(angle) * rng.uniform(0.75, 1), np.cos(angle)])
            return np.column_stack([points[:-1], points[1:], rng.uniform(1.9, 2.6, 10)])
        case "NMF anaphase-telophase":
            return np.concatenate([_plate(rng, y, length, 2.6) for y in (-apart, apart)])
        case "AMF segregation":
            if rng.random() < 0.5:
                plates = [_plate(rng, 0, length * 1.3, 3.1)]
                reach = (5.5, 11.0)
            else:
                plates = [_plate(rng, y, length, 2.5) for y in (-apart, apart)]
                reach = (0.0, apart - 3.5)
            return np.concatenate([*plates, _fragments(rng, reach)])
        case "AMF multipolar":
            arms = int(rng.integers(3, 5))
            angle = np.arange(arms) * 2 * np.pi / arms + rng.normal(0, 0.15, arms)
            tips = rng.uniform(8, 12, (arms, 1)) * np.column_stack([np.sin(angle), np.cos(angle)])
            return np.column_stack([np.zeros((arms, 2)), tips, rng.uniform(2.2, 3.1, arms)])
        case "AMF bipolar asymmetric":
            share, tilt = rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.8) * rng.choice((-1, 1))
            large, small = _plate(rng, -apart, length * 1.25, 3.1), _plate(rng, 0, length * share, 2.3)
            return np.concatenate([large, _rotated(small, tilt) + np.array([apart, 0, apart, 0, 0])])
        case "AMF other":
            places = np.concatenate([_ring_point(rng, 4, 11)[None] for _ in range(int(rng.integers(4, 7)))])
            return np.column_stack(
                [places, places + rng.normal(0, 2.2, places.shape), rng.uniform(1.7, 3.0, len(places))]
            )
    raise AssertionError(f"unknown phase {phase!r}")


def _plate(rng: Generator, y: float, length: float, radius: float) -> np.ndarray:
    """A slightly bent plate of three capsules along x, at height ``y``."""
    half = length / 2 - radius * 0.5
    points = np.column_stack([y + rng.normal(0, 0.7, 4), np.linspace(-half, half, 4)])
    return np.column_stack([points[:-1], points[1:], radius * rng.uniform(0.88, 1.12, 3)])


def _fragments(rng: Generator, reach: tuple[float, float]) -> np.ndarray:
    """One to three lagging or scattered chromosomes, off the plates by ``reach`` along the poles."""
    count = int(rng.integers(1, 4))
    y = rng.uniform(*reach, count) * rng.choice((-1, 1), count)
    places = np.column_stack([y, rng.uniform(-5, 5, count)])
    return np.column_stack([places, places + rng.normal(0, 1.2, (count, 2)), rng.uniform(1.2, 1.9, count)])


def _rotated(capsules: np.ndarray, angle: float) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([capsules[:, :2] @ turn.T, capsules[:, 2:4] @ turn.T, capsules[:, 4]])


def _distance(grid: np.ndarray, capsules: np.ndarray) -> np.ndarray:
    """Signed distance [H, W] to the union of the capsules, negative inside."""
    start, along = capsules[:, :2, None, None], (capsules[:, 2:4] - capsules[:, :2])[:, :, None, None]
    offset = grid[None] - start
    share = np.clip((offset * along).sum(1) / np.maximum((along**2).sum(1), 1e-9), 0, 1)
    return (np.sqrt(((offset - share[:, None] * along) ** 2).sum(1)) - capsules[:, 4, None, None]).min(0)


def _digitised(densities: np.ndarray, scanner: Scanner, unit: float, rng: Generator) -> np.ndarray:
    """Stain densities [2, H, W] as uint8 [H, W, 3]: Beer-Lambert, blur, noise and JPEG artefacts of the scanner."""
    stains = np.array(scanner.stains)
    light = scanner.gain * 10 ** -np.tensordot(
        densities, stains / np.linalg.norm(stains, axis=1, keepdims=True), (0, 0)
    )
    blur = scanner.blur_px * rng.uniform(0.8, 1.4) / unit
    light = ndimage.gaussian_filter(light, (blur, blur, 0)) + rng.normal(0, scanner.noise, light.shape)
    stream = io.BytesIO()
    Image.fromarray((np.clip(light, 0, 1) * 255).round().astype(np.uint8)).save(
        stream, format="JPEG", quality=scanner.jpeg_quality
    )
    return np.asarray(Image.open(stream).convert("RGB"))


def _noise(rng: Generator, size: int, sigma: float) -> np.ndarray:
    """A smooth random field of mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal((size, size)), sigma, mode="wrap")
    return (field - field.mean()) / field.std()


def _soft(height: np.ndarray, width: float) -> np.ndarray:
    """0 below, 1 above the zero of ``height``, over about ``width``."""
    return 1 / (1 + np.exp(-np.clip(height / width, -30, 30)))


def _ring_point(rng: Generator, near: float, far: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return rng.uniform(near, far) * np.array([np.sin(angle), np.cos(angle)])


def _turned(grid: np.ndarray, rng: Generator) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.tensordot(turn, grid, 1)
