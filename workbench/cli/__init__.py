"""The command line: `workbench trace`, `locate`, `steer`, `p2p`, `edit`, `benchmark swap`, `sites "unet.*.cross"`; see `--help`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from workbench.cli.change import P2P, EditConcept, SteerConcept
from workbench.cli.find import ListSites, Locate, Trace
from workbench.studies import edit_speed, edit_tasks, prompt_to_prompt, swap, windows, winter, winter_setting


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
@dataclass
class Benchmark:
    """Run a benchmark on the embedded model."""

    which: (
        Annotated[swap.SwapOptions, tyro.conf.subcommand("swap")]
        | Annotated[windows.WindowsOptions, tyro.conf.subcommand("windows")]
        | Annotated[edit_tasks.TasksOptions, tyro.conf.subcommand("tasks")]
        | Annotated[winter_setting.WinterOptions, tyro.conf.subcommand("winter")]
        | Annotated[edit_speed.EditSpeedOptions, tyro.conf.subcommand("edit-speed")]
        | Annotated[prompt_to_prompt.P2POptions, tyro.conf.subcommand("p2p")]
    )

    def run(self):
        mains = {
            swap.SwapOptions: swap.main,
            windows.WindowsOptions: windows.main,
            edit_tasks.TasksOptions: edit_tasks.main,
            winter_setting.WinterOptions: winter.main,
            edit_speed.EditSpeedOptions: edit_speed.main,
            prompt_to_prompt.P2POptions: prompt_to_prompt.main,
        }
        mains[type(self.which)](self.which)


def main():
    command = None
    try:
        commands = {
            "trace": Trace,
            "locate": Locate,
            "steer": SteerConcept,
            "p2p": P2P,
            "edit": EditConcept,
            "benchmark": Benchmark,
            "sites": ListSites,
        }
        command = tyro.extras.subcommand_cli_from_dict(commands, prog="workbench")
        command.run()
    except KeyboardInterrupt as interrupt:
        notes = getattr(interrupt, "__notes__", [])  # of an experiment, that say what is kept
        raise SystemExit("\nstopped" + "".join(f": {note}" for note in notes[:1])) from None
    except (ValueError, KeyError, FileNotFoundError, FloatingPointError) as error:
        raise SystemExit(f"workbench: {error.args[0] if isinstance(error, KeyError) else error}") from None
