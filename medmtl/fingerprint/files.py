"""A fingerprint beside the weights of its bundle, with its hash in the provenance."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medmtl.errors import SafetyRefusal, UserError
from medmtl.files import write_atomic
from medmtl.fingerprint.gauge import Gauge
from medmtl.fingerprint.known import Fingerprint

FILE, FORMAT, KEY = "fingerprint.json", 2, "fingerprint_sha256"
_SURE_1, _WARN_1, _REFUSE_1 = 100, 1.25, 3.0  # of format 1: held-out cases to refuse by; times ``distance_99``


def write_fingerprint(folder: Path, known: Fingerprint) -> dict[str, str]:
    """Write ``fingerprint.json`` into a bundle's folder; returns what its provenance must hold."""
    gauges = {name: vars(gauge) for name, gauge in known.gauges.items()}
    text = json.dumps({"format": FORMAT, **vars(known), "gauges": gauges}, allow_nan=False) + "\n"
    write_atomic(folder / FILE, text)
    return {KEY: hashlib.sha256(text.encode()).hexdigest()}


def read_fingerprint(folder: Path, provenance: Mapping[str, Any]) -> Fingerprint | None:
    """The fingerprint of a bundle; None of one that was made without. Refused if it is not the one that was written.

    One of format 1 is compared as it was then: ranges of all numbers, and the encoder's features.
    """
    expected, path = provenance.get(KEY), folder / FILE
    if expected is None:
        return None
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != expected:
        raise SafetyRefusal(
            "E-BUN-HASH",
            f"{FILE} is missing or not the one that was written with the bundle",
            "copy the bundle again",
            where=str(folder),
        )
    tree = json.loads(content)
    written = tree.pop("format", None)
    if written not in (1, FORMAT):
        raise UserError("E-BUN-FORMAT", f"{FILE} is of another format", "use the version that wrote it", where=FILE)
    tree = _of_format_1(tree) if written == 1 else tree
    ranges = {name: (float(low), float(high)) for name, (low, high) in tree.pop("ranges").items()}
    labels = {name: tuple(values) for name, values in tree.pop("labels").items()}
    gauges = {name: _gauge(gauge) for name, gauge in tree.pop("gauges").items()}
    return Fingerprint(ranges=ranges, labels=labels, gauges=gauges, **tree)


def _gauge(tree: Mapping[str, Any]) -> Gauge:
    precision = tree["precision"]
    return Gauge(
        names=tuple(tree["names"]),
        scale=tuple(tree["scale"]),
        reference=tuple(map(tuple, tree["reference"])),
        unit=tree["unit"],
        precision=None if precision is None else tuple(map(tuple, precision)),
        refuse=tree["refuse"],
    )


def _of_format_1(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Features measured from their mean, each by its own variance: warned about from 1.25 times the 99 % quantile on,
    refused from 3 times, if that was measured on 100 held-out cases."""
    kept = {name: tree[name] for name in ("cases", "kind", "channels", "ranges", "labels")}
    gauge = {
        "names": [],
        "scale": np.sqrt(tree["variance"]).tolist(),
        "reference": [tree["mean"]],
        "unit": _WARN_1 * tree["distance_99"],
        "precision": None,
        "refuse": _REFUSE_1 / _WARN_1 if tree["held_out"] >= _SURE_1 else None,
    }
    return {**kept, "gauges": {"features": gauge} if tree["mean"] else {}}
