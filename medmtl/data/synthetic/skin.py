"""A skin lesion as a dermatoscope or a telephone shows it: pigment, network, colours, hair, ruler and dark corners."""

from dataclasses import dataclass

import numpy as np

from medmtl.data.synthetic.painting import Generator, blend, grid, harmonics, line_distance, noise, soft, wander

_MALIGNANT = 0.35  # share of lesions
_BROWN = np.array([0.48, 0.30, 0.20])
_COLOURS = np.array(
    [[0.36, 0.21, 0.14], [0.66, 0.45, 0.32], [0.13, 0.10, 0.10], [0.36, 0.40, 0.48], [0.70, 0.33, 0.31]]
)


@dataclass(frozen=True)
class Domain:
    """A data set: its skin, light and optics, what lies in the picture, and what of the annotations is published."""

    skin: tuple[float, float, float]
    gain: tuple[float, float, float]
    blur: float
    grain: float
    quality: int
    dark_corners: float  # share of images with the black rim of a dermatoscope
    hair: float
    ruler: float
    masks: float  # share of images whose masks are published
    most: int  # annotators per image


@dataclass(frozen=True)
class Lesion:
    """What is drawn in one picture: the true outline, how it fades, and what colours it has."""

    malignant: bool
    fuzziness: float  # 0 sharp to 1
    centre: tuple[float, float]
    radius: float
    outline: np.ndarray  # of the radius, at 256 angles from -pi to pi
    colours: tuple[int, ...]  # of the palette, in the order in which they are painted


def draw_lesion(rng: Generator) -> Lesion:
    """A lesion of either kind; what tells them apart overlaps."""
    malignant = bool(rng.random() < _MALIGNANT)
    turns = np.linspace(-np.pi, np.pi, 257)
    uneven = rng.uniform(0.18, 0.36) if malignant else rng.uniform(0.02, 0.18)
    ragged = rng.uniform(0.04, 0.11) if malignant else rng.uniform(0.0, 0.06)
    outline = 1 + harmonics(rng, turns, uneven, orders=range(1, 4)) + harmonics(rng, turns, ragged, orders=range(5, 14))
    # browns and black are anybody's; blue-grey and red are rare in what is benign
    palette = rng.permutation(len(_COLOURS) if malignant or rng.random() < 0.15 else 3)
    return Lesion(
        malignant,
        float(rng.beta(2.4, 2.0) if malignant else rng.beta(1.4, 2.6)),
        (rng.normal(0, 0.10), rng.normal(0, 0.10)),
        rng.uniform(0.30, 0.52),
        np.clip(outline, 0.45, 1.7),
        tuple(int(k) for k in palette[: rng.integers(2, 5) if malignant else rng.integers(0, 3)]),
    )


def height(lesion: Lesion, size: int, *, outwards: np.ndarray | float = 0.0) -> np.ndarray:
    """Distance [H, W] from the outline along the radius, positive inside; the outline moved ``outwards`` (radii)."""
    y, x = grid(size)
    dy, dx = y - lesion.centre[0], x - lesion.centre[1]
    edge = np.interp(np.arctan2(dy, dx), np.linspace(-np.pi, np.pi, 257), lesion.outline + outwards)
    return lesion.radius * edge - np.hypot(dy, dx)


def true_mask(lesion: Lesion, size: int) -> np.ndarray:
    """Inside the true outline, bool [size, size]: where half of the pigment is left."""
    return height(lesion, size) > 0


def paint(lesion: Lesion, domain: Domain, rng: Generator, size: int) -> np.ndarray:
    """Light [size, size, 3] of the lesion on its skin, with hair, ruler, bubbles and dark corners."""
    y, x = grid(size)
    fine, broad = noise(rng, size, 0.03), noise(rng, size, 0.30)
    image = np.asarray(domain.skin) * (1 + 0.035 * broad + 0.02 * fine)[..., None] * rng.uniform(0.90, 1.06)
    image = image + rng.normal(0, 0.02, 3)
    for _ in range(int(rng.integers(0, 4))):  # freckles
        spot = rng.uniform(0.01, 0.03) - np.hypot(y - rng.uniform(-1, 1), x - rng.uniform(-1, 1))
        image = blend(image, _BROWN * 1.3, 0.5 * soft(spot, 0.01))
    image = _pigment(image, lesion, rng, size)
    return _clutter(image, domain, rng, y, x)


def _pigment(image: np.ndarray, lesion: Lesion, rng: Generator, size: int) -> np.ndarray:
    """The lesion: brown, a network, blotches of further colours, fading over a width that its fuzziness sets."""
    inside = soft(height(lesion, size), 0.004 + 0.13 * lesion.fuzziness**1.5)
    density = rng.uniform(0.65, 0.95) * (1 - 0.35 * lesion.fuzziness)
    image = blend(image, _BROWN * rng.uniform(0.8, 1.2), density * inside * (0.90 + 0.05 * noise(rng, size, 0.05)))
    pitch = rng.uniform(30, 40)
    y, x = grid(size)
    net = soft(np.abs(np.sin(pitch * y) * np.sin(pitch * x)) - 0.55, 0.12)
    image = blend(image, _BROWN * 0.55, rng.uniform(0.0, 0.5) * inside * (1 - net) * (noise(rng, size, 0.15) > -0.3))
    for k in lesion.colours:
        away = rng.uniform(0.0, 0.65) * lesion.radius
        where = rng.uniform(0, 2 * np.pi)
        blotch = rng.uniform(0.25, 0.55) * lesion.radius - np.hypot(
            y - lesion.centre[0] - away * np.sin(where), x - lesion.centre[1] - away * np.cos(where)
        )
        edge = soft(blotch + 0.05 * noise(rng, size, 0.08), 0.03)
        image = blend(image, _COLOURS[k], rng.uniform(0.5, 0.85) * density * inside * edge)
    return image


def _clutter(image: np.ndarray, domain: Domain, rng: Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Hairs, a ruler, gel bubbles, the flash, and the dark rim of the dermatoscope: none of it says anything."""
    if rng.random() < domain.hair:
        near = np.full(y.shape, np.inf)
        for _ in range(int(rng.integers(2, 8))):
            start = rng.uniform(-1, 1, 2)
            path = wander(rng, start, rng.uniform(0, 2 * np.pi), steps=5, length=rng.uniform(0.6, 1.6), bend=0.25)
            near = np.minimum(near, line_distance(y, x, path))
        image = blend(image, (0.14, 0.10, 0.09), 0.8 * soft(0.008 - near, 0.006))
    if rng.random() < domain.ruler:
        top = rng.uniform(0.80, 0.92) * rng.choice((-1, 1))
        ticks = (np.abs((x / 0.08) % 1 - 0.5) > 0.38) & (
            np.abs(y - top) < np.where(np.abs((x / 0.4) % 1) < 0.2, 0.07, 0.04)
        )
        image = blend(image, (0.12, 0.12, 0.14), 0.8 * (ticks | (np.abs(y - top) < 0.012)))
    for _ in range(int(rng.integers(0, 3)) if domain.dark_corners else 0):
        ring = np.abs(np.hypot(y - rng.uniform(-1, 1), x - rng.uniform(-1, 1)) - rng.uniform(0.04, 0.14))
        image = blend(image, (1.0, 1.0, 1.0), 0.35 * soft(0.008 - ring, 0.006))
    lamp = rng.normal(0, 0.3, 2)
    image = image * (1.05 - 0.12 * ((y - lamp[0]) ** 2 + (x - lamp[1]) ** 2))[..., None]
    if rng.random() < domain.dark_corners:
        image = blend(image, (0.03, 0.03, 0.04), soft(np.hypot(y, x) - rng.uniform(1.0, 1.15), 0.02))
    return image
