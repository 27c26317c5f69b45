"""A cervix as a colposcope shows it: vessels, os, glandular lining, a lesion, inflammation, light and steel."""

from dataclasses import dataclass

import numpy as np

from medmtl.data.synthetic.painting import Generator, blend, grid, harmonics, line_distance, noise, soft, wander

_WHITE, _RED = (0.93, 0.87, 0.85), (0.60, 0.16, 0.16)


@dataclass(frozen=True)
class Signs:
    """The Swede score of a patient, sign by sign, 0 to 2 each."""

    uptake: int
    margin: int
    vessels: int
    size: int
    iodine: int

    @property
    def score(self) -> int:
        return self.uptake + self.margin + self.vessels + self.size + self.iodine


@dataclass(frozen=True)
class Patient:
    """One group: what all of a patient's pictures share."""

    name: str
    site: int
    split: str
    signs: Signs
    grade: str  # normal, CIN1, CIN2, CIN3
    comorbidity: str
    age: int
    zone: str
    hpv: str
    seed: tuple[int, ...]


def draw_cervix(patient: Patient, own: Generator, shot: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Light [size, size, 3] of one picture and its lesion, bool [size, size].

    ``own`` draws the cervix and gives the same for every picture of the patient, ``shot`` what changes between two.
    """
    turn, zoom = shot.normal(0, 0.12), shot.uniform(0.88, 1.12)
    y0, x0 = grid(size)
    dy, dx = shot.normal(0, 0.06, 2)
    y = ((y0 - dy) * np.cos(turn) - (x0 - dx) * np.sin(turn)) / zoom
    x = ((y0 - dy) * np.sin(turn) + (x0 - dx) * np.cos(turn)) / zoom
    angle, inner = np.arctan2(y, x), np.hypot(y * own.uniform(0.95, 1.15), x)
    image, disc = _cervix(own, angle, inner, size)
    image = _vessels(image, own, y, x, disc)
    image, zone = _canal(image, patient, own, y, x, angle, inner)
    image, lesion = _lesion(image, patient, own, y, x, disc, zone)
    if patient.comorbidity == "inflammation":
        image = _inflamed(image, own, y, x, disc, size)
    elif patient.comorbidity == "atrophy":
        image = blend(image, (0.85, 0.66, 0.60), 0.25 * disc)
    image = _lit(image, shot, y0, x0, disc, size)
    return image, lesion & (disc > 0.5)


def _cervix(own: Generator, angle: np.ndarray, inner: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The wall of the vagina with its folds, and the pale dome of the cervix on it; where the dome is, 0 to 1."""
    folds = np.sin(7 * inner + harmonics(own, angle, 1.2, orders=range(1, 5))) * 0.10
    image = np.array([0.50, 0.27, 0.27]) * (0.55 + folds + 0.06 * noise(own, size, 0.12))[..., None]
    radius = own.uniform(0.78, 0.95) + harmonics(own, angle, 0.03, orders=range(2, 5))
    disc = soft(radius - inner, 0.025)
    tint = np.array([0.80, 0.47, 0.46]) + own.normal(0, 0.02, 3)
    dome = (
        tint
        * (1.02 - 0.28 * (inner / radius) ** 2 + 0.03 * noise(own, size, 0.06) + 0.02 * noise(own, size, 0.25))[
            ..., None
        ]
    )
    return blend(image, dome, disc), disc


def _vessels(image: np.ndarray, own: Generator, y: np.ndarray, x: np.ndarray, disc: np.ndarray) -> np.ndarray:
    """The fine vessels that any cervix has."""
    near = np.full(y.shape, np.inf)
    for _ in range(int(own.integers(4, 9))):
        start, angle = own.uniform(-0.8, 0.8, 2), own.uniform(0, 2 * np.pi)
        path = wander(own, start, angle, steps=6, length=own.uniform(0.3, 0.8), bend=0.35)
        near = np.minimum(near, line_distance(y, x, path))
    return blend(image, _RED, 0.30 * disc * soft(0.008 - near, 0.008))


def _canal(
    image: np.ndarray,
    patient: Patient,
    own: Generator,
    y: np.ndarray,
    x: np.ndarray,
    angle: np.ndarray,
    inner: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The os, and round it the red glandular lining as far as the transformation zone is open; distance to its rim."""
    wide = {"TZ1": 0.34, "TZ2": 0.24, "TZ3": 0.13}[patient.zone] + own.normal(0, 0.02)
    rim = wide * (1 + harmonics(own, angle, 0.14, orders=range(2, 7))) - inner
    grains = 0.5 + 0.5 * np.sin(own.uniform(26, 34) * x) * np.sin(own.uniform(26, 34) * y)
    image = blend(image, np.array([0.66, 0.24, 0.23]) * (0.9 + 0.2 * grains)[..., None], 0.75 * soft(rim, 0.03))
    flat = own.uniform(1.0, 3.2)  # a round os, or the slit of a woman who has given birth
    opening = 0.075 - np.hypot(y * flat, x / own.uniform(1.0, 1.6))
    return blend(image, (0.16, 0.05, 0.05), soft(opening, 0.015)), rim


def _lesion(
    image: np.ndarray,
    patient: Patient,
    own: Generator,
    y: np.ndarray,
    x: np.ndarray,
    disc: np.ndarray,
    zone: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Acetowhite epithelium beside the junction, as its signs say; and where it is, bool [H, W]."""
    signs = patient.signs
    where, reach = own.uniform(0, 2 * np.pi), (0.20, 0.30, 0.44)[signs.size] * own.uniform(0.9, 1.1)
    middle = own.uniform(0.30, 0.48)
    dy, dx = y - middle * np.sin(where), x - middle * np.cos(where)
    around = np.arctan2(dy, dx)
    edge = reach * (1 + harmonics(own, around, (0.10, 0.16, 0.20)[signs.margin], orders=range(2, 8)))
    height = np.minimum(edge - np.hypot(dy, dx * own.uniform(0.75, 1.3)), 0.05 - zone)
    veil = 0.20 if patient.comorbidity == "inflammation" else 1.0
    opacity = (0.0, 0.42, 0.82)[signs.uptake] * own.uniform(0.9, 1.1)
    if not opacity:
        return image, np.zeros(height.shape, bool)
    inside = disc * soft(height, (0.05, 0.028, 0.010)[signs.margin])
    texture = 0.94 + 0.05 * noise(own, len(y), 0.03)
    image = blend(image, np.array(_WHITE) * texture[..., None], opacity * veil * inside)
    if signs.margin == 2:  # a raised, peeling edge
        image = blend(image, (1.0, 0.95, 0.93), 0.45 * veil * disc * soft(0.012 - np.abs(height - 0.012), 0.006))
    if signs.vessels:
        image = blend(
            image, _RED, (0.0, 0.35, 0.75)[signs.vessels] * veil * inside * _pattern(own, dy, dx, signs.vessels)
        )
    return image, height > 0


def _pattern(own: Generator, y: np.ndarray, x: np.ndarray, level: int) -> np.ndarray:
    """Punctation, or for coarse vessels the tiles of a mosaic, 0 to 1."""
    pitch = (0.0, 42.0, 27.0)[level] * own.uniform(0.9, 1.1)
    bent_y, bent_x = (axis + 0.035 * noise(own, len(y), 0.09) for axis in (y, x))  # tiles of no two sizes
    waves = np.cos(pitch * (bent_x + 0.3 * bent_y)) * np.cos(pitch * (bent_y - 0.3 * bent_x))
    return soft(waves - 0.55, 0.10) if level == 1 else soft(0.20 - np.abs(waves), 0.08)


def _inflamed(
    image: np.ndarray, own: Generator, y: np.ndarray, x: np.ndarray, disc: np.ndarray, size: int
) -> np.ndarray:
    """Redness all over, and white patches of discharge and metaplasia that have nothing to do with the score."""
    image = blend(image, (0.74, 0.26, 0.26), disc * np.clip(0.30 + 0.10 * noise(own, size, 0.10), 0, 1))
    much = own.uniform(0, 1)
    for _ in range(round(4 * much)):
        where, away = own.uniform(0, 2 * np.pi), own.uniform(0.25, 0.62)
        dy, dx = y - away * np.sin(where), x - away * np.cos(where)
        reach = own.uniform(0.10, 0.16 + 0.16 * much)
        edge = reach * (1 + harmonics(own, np.arctan2(dy, dx), 0.2, orders=range(2, 7)))
        patch = soft(edge - np.hypot(dy, dx), 0.012)
        image = blend(image, _WHITE, disc * patch * (0.15 + 0.55 * much))
        image = blend(image, _RED, 0.55 * much * disc * patch * _pattern(own, dy, dx, 2))
    return image


def _lit(image: np.ndarray, shot: Generator, y: np.ndarray, x: np.ndarray, disc: np.ndarray, size: int) -> np.ndarray:
    """What light and instruments add: mucus, blood, a falling-off lamp, highlights, and the edge of the speculum."""
    if shot.random() < 0.25:
        run = wander(shot, shot.normal(0, 0.15, 2), np.pi / 2, steps=6, length=shot.uniform(0.2, 0.6), bend=0.25)
        image = blend(image, (0.48, 0.03, 0.05), 0.85 * soft(shot.uniform(0.02, 0.05) - line_distance(y, x, run), 0.01))
    lamp = shot.normal(0, 0.2, 2)
    image = image * (1.10 - 0.30 * ((y - lamp[0]) ** 2 + (x - lamp[1]) ** 2))[..., None] * shot.uniform(0.88, 1.08)
    wet = noise(shot, size, 0.025) + 0.8 * noise(shot, size, 0.12)
    middle = shot.normal(0, 0.3, 2)
    wet = wet - 2.2 * np.hypot(y - middle[0], x - middle[1])
    image = blend(image, (1.0, 1.0, 1.0), disc * soft(wet - shot.uniform(1.3, 2.2), 0.10))
    if shot.random() < 0.7:
        far = np.hypot(y * shot.uniform(0.8, 1.0), x * shot.uniform(0.8, 1.0)) - shot.uniform(1.02, 1.18)
        steel = np.clip(0.45 + 0.35 * np.sin(9 * far + 3 * np.arctan2(y, x)), 0.1, 1.0)
        image = blend(image, np.array([0.80, 0.82, 0.80]) * steel[..., None], 0.9 * soft(far, 0.02))
    return image
