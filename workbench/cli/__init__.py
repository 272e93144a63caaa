"""The command line: `workbench trace`, `locate`, `steer`, `check`, `benchmark swap`, `sites "unet.*.cross"`; see `--help`.

A command's module is imported when the command is named: help and the answer to a mistyped name come without torch.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Union

import tyro

from workbench.experiments.executors import Unfinished
from workbench.steps import Window


@dataclass(frozen=True)
class Command:
    """A command by name only.

    options: "module:class" of its dataclass, whose docstring is the help here. main: "module:function" that takes one; left out,
    the dataclass's own `run`.
    """

    options: str
    help: str
    main: str | None = None


BENCHMARK = "benchmark"
COMMANDS = {
    "trace": Command(
        "workbench.cli.find:Trace",
        "Trace where a model keeps a concept; write OUT.png, OUT.csv and print the strongest sites.",
    ),
    "locate": Command(
        "workbench.cli.find:Locate",
        "Find the cross-attention layers whose text decides an attribute (LocoGen); write OUT.png, OUT.csv and print the best window.",
    ),
    "steer": Command(
        "workbench.cli.change:SteerConcept",
        "Steer prompts towards a concept; write the direction, and images and measures of each strength.",
    ),
    "p2p": Command(
        "workbench.cli.change:P2P",
        "Prompt-to-Prompt: draw prompts with the attention of a source, or of a real picture; print what was aligned, write OUT.png.",
    ),
    "edit": Command(
        "workbench.cli.change:EditConcept",
        "Make words act as others by changing weights; write the edit, its LoRA where it can be one, and pictures before and after.",
    ),
    "recover": Command(
        "workbench.cli.recover:Recover",
        "Attack an edited model: is a concept gone, or only hidden? Write OUT.png, OUT.csv and print every attack beside its controls.",
    ),
    BENCHMARK: Command("", "Run a benchmark on the embedded model."),
    "gallery": Command(
        "workbench.cli.show:Gallery",
        "Write a folder of results as one HTML page to click through, OUT.html: heat-maps with intervals, prompts and pictures.",
    ),
    "sites": Command("workbench.cli.find:ListSites", "Print a model's sites in execution order."),
    "check": Command(
        "workbench.cli.check:CheckModel",
        "Prove on a model of your own what the workbench takes for granted; print what does not hold, exit with 1 if anything does not.",
    ),
}
BENCHMARKS = {
    name: Command(f"workbench.studies.{options}", help, f"workbench.studies.{main}")
    for name, options, main, help in (
        ("swap", "swap:SwapOptions", "swap:main", "Zebra and giraffe swapped by every editor, graded and drawn."),
        ("windows", "windows:WindowsOptions", "windows:main", "The swap at every window of neighbouring layers."),
        ("ranks", "swap_rank:RankOptions", "swap_rank:main", "How many vectors a swap is: five pairs, over rank."),
        (
            "erase",
            "erase:EraseOptions",
            "erase:main",
            "Every subject erased to a guide that is chosen.",
        ),
        ("erase-grid", "erase_grid:GridOptions", "erase_grid:main", "Every subject and style erased, and attacked."),
        ("hidden", "hidden:HiddenOptions", "hidden:main", "Erased or only hidden: every editor under every attack."),
        ("tasks", "edit_tasks:TasksOptions", "edit_tasks:main", "Erasing a subject, a style, changing a fact."),
        ("winter", "winter_setting:WinterOptions", "winter:main", "Steering towards winter by every method."),
        ("edit-speed", "edit_speed:EditSpeedOptions", "edit_speed:main", "How long edits take."),
        ("p2p", "prompt_to_prompt:P2POptions", "prompt_to_prompt:main", "Prompt-to-Prompt against plain prompts."),
    )
}


OPTIONS = tyro.constructors.ConstructorRegistry()


@OPTIONS.primitive_rule
def window_option(kind: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """A window of the denoising, as results call it: 0-0.5."""
    if kind.type is not Window:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="START-STOP",
        instance_from_str=lambda given: Window.of_name(given[0]),
        is_instance=lambda value: isinstance(value, Window),
        str_from_instance=lambda value: [str(value)],
    )


def named(path: str):
    """What "module:name" names, imported."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def read(commands: Mapping[str, Command], arguments: list[str], prog: str):
    """The options of the command that the arguments name. All others are known to the parser by name and help alone."""
    completing = any(argument.startswith("--tyro-") for argument in arguments)

    def kind(name: str, command: Command) -> type:
        if command.options and (completing or name == arguments[0]):
            return named(command.options)
        return dataclass(type(name, (), {"__doc__": command.help}))

    kinds = [
        Annotated[kind(name, command), tyro.conf.subcommand(name, description=command.help)]
        for name, command in commands.items()
    ]
    either: Any = Union[tuple(kinds)]  # noqa: UP007  made from a table
    with OPTIONS:
        return tyro.cli(
            either,
            prog=prog,
            args=arguments,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        )


def main():
    try:
        arguments = sys.argv[1:] or ["--help"]
        commands, prog = COMMANDS, "workbench"
        if arguments[0] == BENCHMARK:
            arguments, commands, prog = arguments[1:] or ["--help"], BENCHMARKS, f"workbench {BENCHMARK}"
        options = read(commands, arguments, prog)
        command = commands[arguments[0]]
        if command.main is None:
            options.run()
        else:
            named(command.main)(options)
    except Unfinished as rest:
        print(rest.told("the same command without --shard does what is left, if anything, and draws"))
    except KeyboardInterrupt as interrupt:
        notes = getattr(interrupt, "__notes__", [])  # of an experiment, that say what is kept
        raise SystemExit("\nstopped" + "".join(f": {note}" for note in notes[:1])) from None
    except BrokenPipeError:  # whoever read what we print has gone, as `head` does
        raise SystemExit(1) from None
    except (ValueError, KeyError, OSError, FloatingPointError, MemoryError, RuntimeError, ImportError) as error:
        raise SystemExit(f"workbench: {error.args[0] if isinstance(error, KeyError) else error}") from None
