"""One line per task: what a reader of many tasks looks at first, in a report and in a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmtl.evaluation.skill import control_label, strongest, verdict_words
from medmtl.metrics import describe

CONSTANT = "constant"
REPORT = "report.html"
FEW = 6  # tasks: of more, the terminal shows the overview alone, and the report's sections are closed


@dataclass(frozen=True)
class Line:
    """A task's first number, what its controls come to, and the difference to the strongest of them."""

    task: str
    n: int
    metric: str
    cell: Mapping[str, Any]
    controls: Mapping[str, float | None]
    difference: Mapping[str, Any] | None
    words: str
    icc: float | None
    worst: Mapping[str, Any] | None


def overview(result: Mapping[str, Any]) -> list[Line]:
    """The lines of an evaluation, auxiliary tasks last."""
    entries = sorted(result["tasks"].items(), key=lambda item: item[1]["auxiliary"])
    return [line for name, entry in entries if (line := _line(name, entry)) is not None]


def _line(name: str, entry: Mapping[str, Any]) -> Line | None:
    """Of numbers and levels the mean absolute error, which has a unit, otherwise the first headline."""
    controls = entry.get("controls", {})
    metric = "mae" if "mae" in entry["overall"] else next(iter(entry["headline"]), None)
    if metric is None:
        return None
    values = {control: found["metrics"].get(metric, {}).get("control") for control, found in controls.items()}
    best = strongest(controls, metric)
    difference = None if best is None else controls[best]["metrics"][metric]
    return Line(
        name, entry["n"], metric, entry["overall"][metric],
        {**constant_of(entry, metric), **values}, difference,
        "" if best is None or difference is None else verdict_words(difference, best),
        entry["overall"].get("icc_agreement", {}).get("value"), entry["worst_domain"].get(metric),
    )  # fmt: skip


def constant_of(entry: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    """The constant's value where the task has no training mean and median, of which it is one."""
    if "training_mean" in entry.get("controls", {}):
        return {}
    return {CONSTANT: entry["control"]["constant"].get(metric)}


def control_columns(lines: Sequence[Line]) -> list[str]:
    """Every control of any line with a value, constants first."""
    found = dict.fromkeys(name for line in lines for name, value in line.controls.items() if value is not None)
    return sorted(found, key=lambda name: name != CONSTANT and not name.startswith("training_"))


def format_result(result: Mapping[str, Any]) -> str:
    """The overview as a plain table; of few tasks, every headline metric and its worst domain below it."""
    level = f"[{result['bootstrap']['level']:.0%}]"
    lines = overview(result)
    controls = control_columns(lines)
    skilled = any(line.difference is not None for line in lines)
    heads = ("task", "n", "metric", f"value {level}", *(control_label(name) for name in controls),
             *((f"difference {level}", "the model is") if skilled else ()), "ICC(2,1)")  # fmt: skip
    text = aligned([heads, *(_cells(line, controls, skilled) for line in lines)])
    if len(result["tasks"]) > FEW:
        return f"{text}\nevery metric of each task, and each domain: {REPORT}"
    more = [("task", "metric", f"value {level}", "worst domain"), *_headlines(result)]
    return f"{text}\n\n{aligned(more)}"


def _cells(line: Line, controls: Sequence[str], skilled: bool) -> tuple[str, ...]:
    skill = ("-", "-") if line.difference is None else (_difference(line.difference), line.words)
    return (
        line.task, str(line.n), describe(line.metric).label, f"{_number(line.cell['value'])}{_interval(line.cell)}",
        *(_number(line.controls.get(name)) for name in controls), *(skill if skilled else ()), _number(line.icc),
    )  # fmt: skip


def _headlines(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, entry in result["tasks"].items():
        for metric in entry["headline"]:
            cell, worst = entry["overall"].get(metric), entry["worst_domain"].get(metric)
            if cell is not None:
                where = f"{_number(worst['value'])}{_interval(worst)} ({worst['domain']})" if worst else "-"
                yield name, describe(metric).label, f"{_number(cell['value'])}{_interval(cell)}", where


def _difference(cell: Mapping[str, Any]) -> str:
    value = "-" if cell["difference"] is None else f"{cell['difference']:+.3f}"
    return f"{value}{_interval(cell)}"


def _interval(cell: Mapping[str, Any]) -> str:
    return "" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as columns of equal width."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
