"""The fingerprint of a bundle's training images, and how an image compares with it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from medmtl.fingerprint.facts import LABELS, Facts
from medmtl.fingerprint.gauge import Gauge, calibrated, level_of

Level = Literal["in_range", "warn", "refuse", "unknown"]
_TRIMMED = 200  # from so many cases on, the extreme 0.5 % at both ends are not part of the range
_WARN, _REFUSE = 0.25, 2.0  # how far beyond the range, in its own width
_REFUSE_GAUGE = 2.0  # times the distance that LEVEL of images of the kind exceed; no test image reached it
_LOG = ("_px", "_mm")  # sizes: compared as ratios
_NARROWEST = {"log": math.log(1.25), "unit": 0.05}  # a range is never narrower than this
_SMALLEST = 0.01  # nor is a standard deviation that a gauge measures by
_HARD = ("kind", "channels", "modality")  # another one is refused, whatever its distance


@dataclass(frozen=True)
class Fingerprint:
    """The training images' properties. ``gauges`` measure ``appearance`` and ``layout`` (format 1: ``features``)."""

    cases: int
    kind: str
    channels: int
    ranges: Mapping[str, tuple[float, float]]
    labels: Mapping[str, tuple[str, ...]]  # every value that occurs; a label that no case has is left out
    groups: int = 0  # patients or slides that the gauges were calibrated on
    level: float | None = None  # share of images of new groups that the gauges warn about; None without gauges
    gauges: Mapping[str, Gauge] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """How an image compares: the worst of its fields, and what is wrong with each that is not in range."""

    level: Level
    fields: Mapping[str, str] = field(default_factory=dict)
    distance: float | None = None  # the largest of the gauges' ratios


def fingerprint(facts: Sequence[Facts], groups: Sequence[str] | None = None) -> Fingerprint:
    """The fingerprint of images of a study; ``groups``: whose they are, by default each of a patient of its own.

    Images that the model was fitted on serve as well as others: nothing that is measured depends on the model.
    """
    assert facts, "a fingerprint needs an image"
    whose = [str(number) for number in range(len(facts))] if groups is None else list(groups)
    assert len(whose) == len(facts), (len(whose), len(facts))
    first = facts[0]
    labels = {
        name: tuple(sorted({other.labels[name] for other in facts if name in other.labels}))
        for name in (*LABELS, "plane")
    }
    kinds = {"appearance": [other.appearance for other in facts]}
    if first.kind == "volume":  # pictures have no top or bottom
        kinds["layout"] = [other.layout for other in facts]
    tables = {kind: _table(rows) for kind, rows in kinds.items() if _shared(rows)}
    gauges = calibrated(tables, whose, narrowest=_SMALLEST, refuse=_REFUSE_GAUGE) if tables else {}
    count = len(set(whose))
    return Fingerprint(
        len(facts),
        first.kind,
        first.channels,
        {name: _range([other.numbers[name] for other in facts]) for name in _shared([o.numbers for o in facts])},
        {name: values for name, values in labels.items() if values},
        count,
        level_of(count) if gauges else None,
        gauges,
    )


def _shared(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return [name for name in rows[0] if all(name in row for row in rows)]


def _table(rows: Sequence[Mapping[str, float]]) -> "tuple[list[str], np.ndarray]":
    names = _shared(rows)
    return names, np.asarray([[row[name] for name in names] for row in rows], dtype=np.float64)


def _range(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < _TRIMMED:
        return min(values), max(values)
    low, high = np.quantile(values, (0.005, 0.995))
    return float(low), float(high)


def compare(known: Fingerprint, facts: Facts) -> Verdict:
    """Whether an image is like those of the fingerprint; what is unknown of either is not compared."""
    levels: dict[str, Level] = {}
    words: dict[str, str] = {}

    def note(name: str, level: Level, text: str) -> None:
        if levels.get(name) != "refuse":
            levels[name], words[name] = level, text

    for name, found, expected in (("kind", facts.kind, known.kind), ("channels", facts.channels, known.channels)):
        if found != expected:
            note(name, "refuse", f"{found}, trained on {expected}")
    for name, text in facts.labels.items():
        if name in known.labels and text not in known.labels[name]:
            shown = text if name == "plane" else "another one"  # free text of a header may name anything
            note(name, "refuse" if name in _HARD else "warn", f"{shown}, trained on {', '.join(known.labels[name])}")
    for name, (low, high) in known.ranges.items():
        if name not in facts.numbers or (level := _beyond(name, facts.numbers[name], low, high)) is None:
            continue
        if level == "refuse" or name.endswith(_LOG) or "appearance" not in known.gauges:  # which looks closer
            note(name, level, f"{facts.numbers[name]:.4g}, trained on {low:.4g} to {high:.4g}")
    ratios = []
    for kind, gauge in known.gauges.items():
        values = _values(kind, gauge, facts)
        if values is None:
            continue
        ratio = gauge.ratio(values)
        ratios.append(ratio)
        if not ratio <= 1:
            sure = not math.isfinite(ratio) or (gauge.refuse is not None and ratio > gauge.refuse)
            name, text = _far(kind, gauge, values, ratio)
            note(name, "refuse" if sure else "warn", text)
    worst: Level = "refuse" if "refuse" in levels.values() else "warn" if levels else "in_range"
    return Verdict(worst, words, max(ratios, default=None))


def _values(kind: str, gauge: Gauge, facts: Facts) -> list[float] | None:
    """What a gauge measures, of an image; None where the image has not all of it."""
    if kind == "features":
        return None if facts.features is None else list(facts.features)
    numbers = facts.appearance if kind == "appearance" else facts.layout
    return [numbers[name] for name in gauge.names] if all(name in numbers for name in gauge.names) else None


def _far(kind: str, gauge: Gauge, values: Sequence[float], ratio: float) -> tuple[str, str]:
    """The field and the words for an image that is far off: of its numbers, the one that says most."""
    how = f"{ratio:.2g} times as far from the nearest training image as images of the kind go"
    if kind != "appearance" or not math.isfinite(ratio):
        return kind, how
    name, value, nearest = gauge.culprit(values)
    return name, f"{value:.4g}, {nearest:.4g} in the nearest training image; with its other numbers {how}"


def _beyond(name: str, value: float, low: float, high: float) -> Level | None:
    if not math.isfinite(value):
        return "refuse"
    if name.endswith(_LOG):
        value, low, high = (math.log(max(x, 1e-6)) for x in (value, low, high))
        least = _NARROWEST["log"]
    else:
        least = _NARROWEST["unit"] * max(1.0, abs(low), abs(high))
    beyond = max(low - value, value - high, 0.0) / max(high - low, least)
    return "refuse" if beyond > _REFUSE else "warn" if beyond > _WARN else None
