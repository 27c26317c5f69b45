"""Controls kept with a run: made once, read back while manifest, split, preprocessing and settings are the same."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from medmtl.config import digest, plain
from medmtl.controls.config import AnyControl, CarryForward, control_name
from medmtl.controls.features import Tick
from medmtl.controls.tables import Control, Setting, build_control, constant_controls
from medmtl.evaluation.cases import read_cases
from medmtl.files import write_atomic

_VERSION = 1  # of how controls are computed: another one is computed anew
Bar = Callable[[str, int], AbstractContextManager[Tick]]


def control_tables(setting: Setting, controls: Sequence[AnyControl], folder: Path, *, bar: Bar) -> dict[str, Control]:
    """Name -> control: the training mean and median, and every one that is configured, from ``folder`` where it is."""
    found = dict(constant_controls(setting))
    for control in controls:
        name = control_name(control)
        place = folder / f"{name}-{_key(setting, control)[:12]}.csv"
        found[name] = _read(place) or _made(setting, control, place, bar)
    return found


def _key(setting: Setting, control: AnyControl) -> str:
    return digest({
        "version": _VERSION, "manifest": setting.manifest.sha256, "split": setting.split.sha256,
        "preprocess": plain(setting.preprocess), "control": plain(control),
        "tasks": {name: plain(task) for name, task in setting.controlled.items()},
    })  # fmt: skip


def _made(setting: Setting, control: AnyControl, place: Path, bar: Bar) -> Control:
    images = 0 if isinstance(control, CarryForward) or not control.image else len(setting.manifest.cases)
    with bar(f"control {control_name(control)}", images) as tick:
        made = build_control(setting, control, tick=tick)
    write_atomic(place, made.table.to_csv(index=False, lineterminator="\n"))
    facts = {"chosen": made.chosen, "remarks": made.remarks}
    write_atomic(
        place.with_suffix(".json"), json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    )  # last: it is whole
    return made


def _read(place: Path) -> Control | None:
    facts = place.with_suffix(".json")
    if not place.is_file() or not facts.is_file():
        return None
    known = json.loads(facts.read_text(encoding="utf-8"))
    return Control(read_cases(place), known["chosen"], tuple(known["remarks"]))
