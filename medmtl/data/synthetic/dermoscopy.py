"""A small study of drawn skin lesions and of annotators with a known bias: masks, agreement, diagnosis, three domains.

A lesion has a true outline and a *fuzziness*: how wide its pigment fades into the skin. Malignant lesions are less
symmetric, less regular, of more colours and, on average, fuzzier. Five annotators outline what they see. Each has a
bias (to draw too large or too small, which grows with the fuzziness), a carelessness, and a style (free hand, a few
straight strokes, flood fill), and works on some images only. So people agree less on fuzzy lesions, hence on malignant
ones, and how much they agree can be predicted from the image.

Domain A publishes agreement for all images but few masks, B all masks, C (photographs, not dermoscopy) one mask or two:
as the public data sets do. The columns are those of ``workflows.skin_lesions.prepare``. ``meta.truth_mask`` is the path
of the true outline's mask, ``meta.truth_agreement`` the agreement that all five annotators would have, and
``ANNOTATORS`` holds what each of them does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from medmtl.data.case import Case, write_manifest
from medmtl.data.synthetic.painting import Generator, grid, harmonics, parts, photograph
from medmtl.data.synthetic.skin import Domain, Lesion, draw_lesion, height, paint, true_mask
from medmtl.errors import UserError
from medmtl.io.raster import write_png

DIAGNOSES = ("benign", "malignant")
_SPLIT = {"common": (0.64, 0.12), "rare": (0.35, 0.15)}  # shares of groups in train and val; the rest is test
_NO_DIAGNOSIS = 0.10


@dataclass(frozen=True)
class Annotator:
    """How one annotator draws. Lengths are in units of the lesion's radius."""

    bias: float  # outwards, at fuzziness 0.5
    careless: float  # deviation of the outline at fuzziness 0.5
    tool: str  # T1 free hand, T2 flood fill, T3 automatic with few strokes
    skill: str  # S1 expert, S2 novice
    corners: int = 0  # straight strokes between so many points of the outline; 0: free hand
    works: float = 0.5  # share of the images that he or she annotates


ANNOTATORS: Mapping[str, Annotator] = {
    "A1": Annotator(bias=0.00, careless=0.03, tool="T1", skill="S1", works=0.7),
    "A2": Annotator(bias=0.22, careless=0.05, tool="T2", skill="S1", works=0.6),  # draws too large
    "A3": Annotator(bias=-0.22, careless=0.05, tool="T1", skill="S2", works=0.5),  # draws too small
    "A4": Annotator(bias=0.03, careless=0.06, tool="T3", skill="S2", corners=5, works=0.5),  # rough polygons
    "A5": Annotator(bias=0.00, careless=0.20, tool="T1", skill="S2", works=0.4),  # careless
}


DOMAINS = (
    Domain((0.86, 0.70, 0.64), (1.00, 0.98, 1.02), 0.010, 0.010, 92, 0.40, 0.35, 0.10, 0.35, 4),
    Domain((0.90, 0.74, 0.60), (1.00, 0.92, 0.84), 0.016, 0.016, 84, 0.10, 0.25, 0.45, 1.00, 3),
    Domain((0.70, 0.50, 0.40), (1.04, 1.00, 0.94), 0.018, 0.022, 75, 0.00, 0.15, 0.00, 1.00, 2),
    Domain((0.80, 0.62, 0.58), (0.90, 0.94, 1.00), 0.012, 0.014, 88, 0.60, 0.30, 0.20, 1.00, 3),
)


def write_dermoscopy_study(
    out: Path, *, cases: int = 400, groups: int = 320, domains: int = 3, seed: int = 0, size: int = 96
) -> Path:
    """Draw the study into ``out`` and return the path of its manifest; the same arguments give the same bytes.

    ``groups`` patients, dealt to ``domains`` data sets in turn, share ``cases`` lesions, at least one each; the last
    data set is rare in ``train``. ``size`` is the side of an image in px.
    """
    if not (1 <= domains <= len(DOMAINS) and 3 * domains <= groups <= cases and size >= 32):
        raise UserError(
            "E-SYN-SIZE",
            f"cases={cases}, groups={groups}, domains={domains}, size={size}",
            f"choose 1 to {len(DOMAINS)} domains, at least 3 groups of each, at least as many cases, and size >= 32",
            where="synthetic study",
        )
    rng = np.random.default_rng((seed, 0))
    split: dict[int, str] = {}
    for domain in range(domains):
        members = range(domain, groups, domains)
        share = _SPLIT["rare" if domain == domains - 1 and domains > 1 else "common"]
        split |= dict(zip(members, parts(rng, len(members), share), strict=True))
    owner = np.sort(np.concatenate([np.arange(groups), rng.integers(0, groups, cases - groups)]))
    rows = [
        _write_case(out, f"SKIN_{index:04d}", int(group), split[int(group)], domains, (seed, 1, index), size)
        for index, group in enumerate(owner)
    ]
    return write_manifest(out / "manifest.csv", rows)


def _write_case(
    out: Path, case_id: str, group: int, split: str, domains: int, seed: tuple[int, ...], size: int
) -> Case:
    number = group % domains
    domain, rng = DOMAINS[number], np.random.default_rng(seed)
    lesion = draw_lesion(rng)
    light = paint(lesion, domain, rng, size)
    image = photograph(
        out / "images" / f"{case_id}.jpg",
        light,
        gain=domain.gain,
        blur=domain.blur,
        grain=domain.grain,
        quality=domain.quality,
        rng=rng,
    )
    truth = write_png(out / "truth" / f"{case_id}.png", true_mask(lesion, size))
    masks = {name: annotate(lesion, annotator, rng, size) for name, annotator in ANNOTATORS.items()}
    targets, meta = _published(out, case_id, masks, domain, rng)
    if rng.random() >= _NO_DIAGNOSIS:
        targets["diagnosis"] = DIAGNOSES[lesion.malignant]
    meta |= {
        "truth_diagnosis": DIAGNOSES[lesion.malignant],
        "truth_fuzziness": f"{lesion.fuzziness:.4f}",
        "truth_agreement": f"{mean_dice(list(masks.values())):.6f}",
        "truth_mask": truth.relative_to(out).as_posix(),
    }
    place = f"set-{'ABCD'[number]}"
    return Case(case_id, f"P{group:03d}", image.relative_to(out).as_posix(), place, split, targets, meta)


def _published(
    out: Path, case_id: str, masks: Mapping[str, np.ndarray], domain: Domain, rng: Generator
) -> tuple[dict[str, str], dict[str, str]]:
    """The masks of those who worked on this image, as far as its data set publishes them, and their agreement."""
    willing = [name for name, annotator in ANNOTATORS.items() if rng.random() < annotator.works]
    chosen = sorted(rng.permutation(willing or ["A1"])[: domain.most].tolist())
    drawn = [ANNOTATORS[name] for name in chosen]
    targets: dict[str, str] = {}
    meta = {
        name: min(values) if len(values) == 1 else "mixed"
        for name, values in (("tool", {one.tool for one in drawn}), ("skill", {one.skill for one in drawn}))
    }
    if len(chosen) > 1:
        targets["agreement"] = f"{mean_dice([masks[name] for name in chosen]):.6f}"
        meta["annotator_pairs"] = str(len(chosen) * (len(chosen) - 1) // 2)
    if rng.random() < domain.masks:
        for name in chosen:
            path = write_png(out / "masks" / name / f"{case_id}.png", masks[name])
            targets[f"lesion.{name}"] = path.relative_to(out).as_posix()
        shared = np.mean([masks[name] for name in chosen], axis=0) > 0.5
        path = write_png(out / "masks" / "consensus" / f"{case_id}.png", shared)
        targets["lesion_consensus"] = path.relative_to(out).as_posix()
        meta["mask_annotators"] = str(len(chosen))
    return targets, meta


def mean_dice(masks: list[np.ndarray]) -> float:
    """Mean over all pairs of bool masks of ``2 |A and B| / (|A| + |B|)``, 1 for two empty ones."""
    sizes = [(int((a & b).sum()), int(a.sum()) + int(b.sum())) for a, b in combinations(masks, 2)]
    return float(np.mean([2 * both / total if total else 1.0 for both, total in sizes]))


def annotate(lesion: Lesion, annotator: Annotator, rng: Generator, size: int) -> np.ndarray:
    """The mask, bool [size, size], that an annotator draws of a lesion; all errors grow with its fuzziness."""
    turns = np.linspace(-np.pi, np.pi, 257)
    doubt = 0.1 + 2.0 * lesion.fuzziness
    shift = annotator.bias + rng.normal(0, annotator.careless / 2)
    moved = doubt * (shift + harmonics(rng, turns, annotator.careless, orders=range(1, 6)))
    if annotator.tool == "T2":  # flood fill follows every speck of pigment
        moved = moved + harmonics(rng, turns, 0.03 + 0.05 * lesion.fuzziness, orders=range(6, 20))
    if annotator.corners:
        corners = np.linspace(-np.pi, np.pi, annotator.corners + 1) + rng.uniform(0, 2 * np.pi / annotator.corners)
        at = np.interp(corners, turns, np.clip(lesion.outline + moved, 0.15, None), period=2 * np.pi)
        return _polygon(lesion, corners, lesion.radius * at, size)
    return height(lesion, size, outwards=np.clip(moved, 0.15 - lesion.outline, None)) > 0


def _polygon(lesion: Lesion, angles: np.ndarray, radii: np.ndarray, size: int) -> np.ndarray:
    """Inside the polygon with corners at ``angles`` (the last is the first again) and ``radii`` about the centre."""
    y, x = grid(size)
    dy, dx = y - lesion.centre[0], x - lesion.centre[1]
    inside = np.zeros(y.shape, bool)
    for k in range(len(angles) - 1):
        (y0, x0), (y1, x1) = ((radii[j] * np.sin(angles[j]), radii[j] * np.cos(angles[j])) for j in (k, k + 1))
        area = x0 * y1 - x1 * y0
        first, second = (dx * y1 - x1 * dy) / area, (x0 * dy - dx * y0) / area  # barycentric, the centre being 0
        inside |= (first >= 0) & (second >= 0) & (first + second <= 1)
    return inside
