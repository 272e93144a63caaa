"""What a first minute costs and offers: importing, the public names, help on the command line."""

import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import workbench as wb
from workbench.cli import BENCHMARKS, COMMANDS, named
from workbench.metrics import METRICS
from workbench.p2p.edit import KINDS

SECONDS = 1.5  # of CPU
HEAVY = ("torch", "nnsight", "diffusers", "transformers", "matplotlib", "pandas", "xarray")
REPORT = f"import sys, time; print(round(time.process_time(), 2), [name for name in {HEAVY} if name in sys.modules])"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Code in a new process, from this checkout."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_importing_imports_nothing_heavy():
    run = python(f"import workbench as wb; dir(wb), wb.__version__, wb.__all__; {REPORT}")
    seconds, loaded = run.stdout.split(" ", 1)
    assert float(seconds) < SECONDS and loaded.strip() == "[]", run.stderr


@pytest.mark.parametrize(
    "arguments, status, text",
    [
        ("", 0, "Trace where a model keeps a concept"),
        ("--help", 0, "Print a model's sites"),
        ("tarce", 2, "Available subcommands: trace, locate"),
        ("benchmark --help", 0, "Steering towards winter"),
        ("benchmark swop", 2, "Available subcommands: swap, windows"),
        ("trace --help", 0, "each site is restored by itself"),
        ("locate --widht 2", 2, "--widht"),
        ("steer --help", 0, "Prompts with the concept and without"),
        ("p2p --kind redraw", 2, "redraw"),
        ("edit --help", 0, "Words whose meaning is changed"),
        ("check --every-stie", 2, "--every-stie"),
        ("gallery --help", 0, "Draw every cell again for so many prompts"),
        ("sites --help", 0, "globs (default:"),
    ],
)
def test_help_and_mistyped_names_are_answered_at_once(arguments, status, text):
    main = f"import atexit; from workbench.cli import main; atexit.register(lambda: exec({REPORT!r}, {{}})); main()"
    run = python(main, *arguments.split())
    *answer, report = run.stdout.splitlines()
    seconds, loaded = report.split(" ", 1)
    assert run.returncode == status and text in re.sub(r"[│\s]+", " ", " ".join(answer) + run.stderr)
    assert float(seconds) < SECONDS and loaded == "[]"


def test_every_public_name_is_there():
    names = {name: getattr(wb, name) for name in wb.__all__}
    assert set(names) <= set(dir(wb)) and {"load", "World", "check", "edit", "plot"} <= set(names)
    modules = {name for name, value in names.items() if inspect.ismodule(value)}
    assert modules == {"edit", "plot"}
    package = Path(wb.__file__).parent
    files = {path.stem for path in package.glob("*.py")} | {path.name for path in package.iterdir() if path.is_dir()}
    assert files & set(names) == modules  # or importing the module would hide the function of its name
    with pytest.raises(AttributeError, match="laod"):
        _ = wb.laod
    assert wb.__version__ == version("diffusion-workbench")


def test_the_package_is_typed():
    assert (Path(wb.__file__).parent / "py.typed").exists()


def test_nothing_offers_the_save_of_nnsight(menagerie):
    """Our process imported NNsight through the engine; another, where a person imported it first, keeps what it mounts."""
    run = menagerie.run("a zebra", num_inference_steps=1, guidance_scale=1.0)
    assert "nnsight" in sys.modules
    for value in ("a text", 3, run, run.images, run.pil()[0].size, menagerie, menagerie.sites, wb.World("a", "b")):
        assert not hasattr(value, "save"), value
    theirs = python("import nnsight; import workbench.engine; print('a text'.save.__name__)")
    assert theirs.stdout == "save\n", theirs.stderr


def test_the_command_table_says_what_the_commands_say():
    assert get_args(get_type_hints(named(COMMANDS["trace"].options))["metric"]) == METRICS
    assert get_args(get_type_hints(named(COMMANDS["p2p"].options))["kind"]) == KINDS
    for name, command in COMMANDS.items():
        if command.options:
            assert inspect.getdoc(named(command.options)) == command.help, name
            assert callable(named(command.options).run)
    for command in BENCHMARKS.values():
        assert inspect.isclass(named(command.options)) and callable(named(command.main))
