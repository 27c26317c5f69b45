"""A fingerprint beside the weights of its bundle, with its hash in the provenance."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from medmtl.errors import SafetyRefusal, UserError
from medmtl.files import write_atomic
from medmtl.fingerprint.gauge import Gauge
from medmtl.fingerprint.known import Fingerprint

FILE, FORMAT, KEY = "fingerprint.json", 2, "fingerprint_sha256"
_SURE_1, _WARN_1, _REFUSE_1 = 100, 1.25, 3.0  # of format 1: held-out cases to refuse by; times ``distance_99``
_KNOWN = TypeAdapter(Fingerprint)


def write_fingerprint(folder: Path, known: Fingerprint) -> dict[str, str]:
    """Write ``fingerprint.json`` into a bundle's folder; returns what its provenance must hold."""
    names = [item.name for item in fields(Gauge)]  # not vars(), which also holds what a gauge has cached
    gauges = {name: {key: getattr(gauge, key) for key in names} for name, gauge in known.gauges.items()}
    text = json.dumps({"format": FORMAT, **vars(known), "gauges": gauges}, allow_nan=False) + "\n"
    write_atomic(folder / FILE, text)
    return {KEY: hashlib.sha256(text.encode()).hexdigest()}


def read_fingerprint(folder: Path, provenance: Mapping[str, Any]) -> Fingerprint | None:
    """The fingerprint of a bundle; None of one that was made without. Refused if it is not the one that was written.

    One of format 1 is compared as it was then: ranges of all numbers, and the encoder's features. E-BUN-FORMAT of what
    is no fingerprint, though its hash be right.
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
    try:
        return _parsed(json.loads(content))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            "E-BUN-FORMAT",
            f"no fingerprint of format 1 to {FORMAT}: {_reason(error)}",
            "use the version that wrote the bundle or train again; --gate off predicts without it",
            where=str(path),
        ) from error


def _parsed(tree: dict[str, Any]) -> Fingerprint:
    """The fingerprint in a JSON tree; KeyError, TypeError or ValueError of what is none."""
    written = tree.pop("format", None)
    if written not in (1, FORMAT):
        raise ValueError(f"format {written!r}")
    tree = _of_format_1(tree) if written == 1 else tree
    known = _KNOWN.validate_python(tree)
    _check_keys(tree, Fingerprint)
    for name, gauge in tree["gauges"].items():
        _check_keys(gauge, Gauge)
        _check_sizes(name, known.gauges[name])
    return known


def _check_keys(tree: Mapping[str, Any], kind: type) -> None:
    unknown = sorted(tree.keys() - {item.name for item in fields(kind)})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")


def _check_sizes(name: str, gauge: Gauge) -> None:
    """ValueError where a gauge's tables are not of as many numbers as it has; one of format 1 has no names."""
    count = len(gauge.scale)
    rows = [*gauge.reference, *(gauge.precision or ())]
    if not gauge.reference or len(gauge.names) not in (0, count) or any(len(row) != count for row in rows):
        raise ValueError(f"gauges.{name}: its tables differ in size")
    if gauge.precision is not None and len(gauge.precision) != count:
        raise ValueError(f"gauges.{name}.precision is not square")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _of_format_1(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Features measured from their mean, each by its own variance: warned about from 1.25 times the 99 % quantile on,
    refused from 3 times, if that was measured on 100 held-out cases.

    The first files of the format do not say on how many: on none, they were measured on training cases.
    """
    kept = {name: tree[name] for name in ("cases", "kind", "channels", "ranges", "labels")}
    if not tree["mean"]:
        return {**kept, "gauges": {}}
    gauge = {
        "names": [],
        "scale": np.sqrt(np.asarray(tree["variance"], dtype=np.float64)).tolist(),
        "reference": [tree["mean"]],
        "unit": _WARN_1 * tree["distance_99"],
        "precision": None,
        "refuse": _REFUSE_1 / _WARN_1 if tree.get("held_out", 0) >= _SURE_1 else None,
    }
    return {**kept, "gauges": {"features": gauge}}
