"""What long work shows: in a terminal, in a notebook, in a log, and when nothing is to be shown."""

import operator
import sys
import types
from functools import partial

import pytest
import tqdm.std

from workbench import progress
from workbench.processes import worked
from workbench.progress import Bar, each


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_with_the_time_that_is_left(clock, capsys):
    with Bar(400, "causal trace") as bar:
        bar.skip(100)
        for _ in range(100):
            clock[0] += 1
            bar.update(2)
        assert str(bar) == "causal trace: 300 of 400 images, 2 a second, 0:00:50 left"
        clock[0] += 1
        bar.update(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "causal trace: 120 of 400 images, 2 a second, 0:02:20 left"  # behind ten seconds
    assert [int(line.split()[2]) for line in lines] == [120, 180, 240, 300, 400][: len(lines) - 1] + [400]
    assert lines[-1] == "causal trace: 400 of 400 images, in 0:01:41" and len(lines) <= 5


def test_what_is_done_at_once_says_nothing_in_a_log(clock, capsys):
    assert list(each([1, 2, 3], "steps")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_slow_work_says_how_long_one_takes(clock):
    bar = Bar(10, "search", "trial")
    assert str(bar) == "search: 0 of 10 trials"
    clock[0] += 50
    bar.update()
    assert str(bar) == "search: 1 of 10 trials, one in 50 seconds, 0:07:30 left"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Bar(10, "sweep") as bar:
        bar.skip(4)
        bar.update(3)
        bar.say("a line beside it")
    said = capsys.readouterr().err
    assert "sweep:" in said and "7/10" in said and "a line beside it\n" in said and "\r" in said


def test_a_notebook_gets_a_bar(monkeypatch, capsys):
    """Of text where there are no widgets: a notebook overwrites it as a terminal does."""
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    with Bar(10, "sweep") as bar:
        assert isinstance(bar.moving, tqdm.std.tqdm) and not bar.moving.disable
        bar.update(10)
    assert "10/10" in capsys.readouterr().err


def test_it_can_be_silenced(monkeypatch, clock, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with Bar(10, "sweep") as bar:
        clock[0] += 100
        bar.update(5)
        bar.say("nothing")
    assert capsys.readouterr() == ("", "")


def test_an_error_is_not_told_as_an_end(clock, capsys):
    with pytest.raises(KeyboardInterrupt), Bar(10, "sweep"):
        clock[0] += 100
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_are_shared_out_among_processes(processes):
    found = worked(partial, (operator.mul, 3), [1, 2, 3], processes=processes, minutes=None)
    assert sorted(found) == [3, 6, 9]


def test_no_job_is_begun_too_late():
    assert list(worked(partial, (operator.mul, 3), [1, 2, 3], processes=1, minutes=-1)) == [None] * 3
