"""Work goes on when a worker dies, hangs or raises, and each of these is told of the right item."""

import math
import operator
import os
import time

import pytest

from medmtl.ingest.pool import Lost, Pool


@pytest.fixture(scope="module")
def warm():
    """One pool for the cheap tests: starting a worker takes longer than they do."""
    with Pool(2) as pool:
        yield pool


def test_every_item_comes_back_once(warm):
    assert dict(warm.map(math.sqrt, [1.0, 4.0, 9.0, 16.0, 25.0])) == {1.0: 1, 4.0: 2, 9.0: 3, 16.0: 4, 25.0: 5}
    assert list(warm.map(math.sqrt, [])) == []


def test_what_an_item_raises_is_its_own(warm):
    results = dict(warm.map(int, ["1", "x", "3"]))
    assert (results["1"], results["3"]) == (1, 3)
    lost = results["x"]
    assert (lost.why, lost.detail) == ("raised", "ValueError") and "invalid literal" in lost.trace


def test_stopping_finishes_what_is_at_hand_and_begins_nothing(warm):
    done = []
    for item, _ in warm.map(abs, range(100), stopped=lambda: len(done) >= 3):
        done.append(item)
    assert 3 <= len(done) <= 4  # two workers


def test_a_worker_that_dies_takes_one_item_with_it():
    with Pool(2) as pool:
        results = dict(pool.map(operator.methodcaller("__call__"), [_Exit(3), _Exit(None), _Exit(-9)]))
    by_code = {item.code: result for item, result in results.items()}
    assert by_code[None] == "alive"
    assert by_code[3] == Lost("died", "exit status 3")
    assert by_code[-9] == Lost("died", "killed by SIGKILL")


def test_a_worker_that_hangs_is_ended():
    with Pool(1, timeout_s=0.2) as pool:
        results = dict(pool.map(time.sleep, [600, 0]))
    assert results[600] == Lost("timeout", "0.2 s") and results[0] is None


def test_memory_is_limited():
    with Pool(1, memory=2**31) as pool:
        ((_, lost),) = pool.map(bytes, [2**32])
    assert (lost.why, lost.detail) == ("raised", "MemoryError")


def test_what_libraries_print_goes_to_the_log(tmp_path, capfd):
    with Pool(1, log=tmp_path / "log") as pool:
        list(pool.map(os.system, ["echo DOE^JANE; echo DOE^JOHN >&2"]))
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "log").read_text() == "DOE^JANE\nDOE^JOHN\n"
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


class _Exit:
    """Ends the process that calls it, if it has a code; unpickled from builtins and os alone."""

    def __init__(self, code):
        self.code = code

    def __hash__(self):
        return hash(self.code)

    def __eq__(self, other):
        return isinstance(other, _Exit) and self.code == other.code

    def __reduce__(self):
        text = {None: "lambda: 'alive'", -9: "lambda: __import__('os').kill(__import__('os').getpid(), 9)"}.get(
            self.code, f"lambda: __import__('os')._exit({self.code})"
        )
        return eval, (text,)
