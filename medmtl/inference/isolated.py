"""A function in a process of its own: what ends that process is an error, not the end of the job.

gdcm, which decodes some compressed DICOM, can be ended by damaged data.
"""

import os
from collections.abc import Callable
from typing import TypeVar

from medmtl.errors import UserError
from medmtl.ingest.pool import Lost, Pool
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Stack
from medmtl.io.dicom.syntax import is_encapsulated
from medmtl.io.reasons import refusal
from medmtl.io.volume import Volume

_T = TypeVar("_T")
_R = TypeVar("_R")
_RLE = "1.2.840.10008.1.2.5"  # decoded by Python code
_TIMEOUT_S = 900.0


def load_stack(stack: Stack) -> Volume:
    """The volume of a stack; what is compressed is decoded in a process of its own."""
    syntaxes = {header.pixels.syntax for header in stack.headers if header.pixels is not None}
    if not any(is_encapsulated(syntax) and syntax != _RLE for syntax in syntaxes):
        return load(stack)
    result = isolated(_load, stack)
    if isinstance(result, UserError):
        raise result
    return result


def isolated(function: Callable[[_T], _R], item: _T, *, timeout_s: float = _TIMEOUT_S) -> _R:
    """``function(item)``, both picklable. Raises ``E-ING-WORKER`` or ``E-ING-TIMEOUT`` where its process is lost."""
    with Pool(1, timeout_s) as pool:
        for _, result in pool.map(function, [item]):
            if isinstance(result, Lost):
                code = "E-ING-TIMEOUT" if result.why == "timeout" else "E-ING-WORKER"
                raise refusal(code, f"decoding it ended a process ({result.detail})")
            return result  # type: ignore[no-any-return]
    raise AssertionError("a pool returns every item")


def _load(stack: Stack) -> Volume | UserError:
    """A refusal comes back as a value: an exception would come back as its name."""
    try:
        return load(stack)
    except UserError as error:
        return error
    except MemoryError:
        return refusal("E-ING-MEMORY", "the memory does not suffice for this image")
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        return refusal("E-FILE-OPEN", f"the file cannot be read ({what})")
