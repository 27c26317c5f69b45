"""A line of the doctor's."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL"]
GIB = 2**30


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""  # empty where the verdict is PASS


def graded(name: str, found: str, value: float, limits: tuple[float, float], remedy: str) -> Line:
    """FAIL below the first limit, WARN below the second."""
    if value >= limits[1]:
        return Line(name, "PASS", found)
    return Line(name, "FAIL" if value < limits[0] else "WARN", found, remedy)
