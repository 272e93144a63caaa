"""Options that the commands share."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import workbench as wb


def beside(out: Path, end: str) -> Path:
    """OUT with an ending, its folder made; dots in OUT's own name stay ("sd1.5" is no suffix)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_name(f"{out.name}{end}")


def check_out(out: Path):
    """Raise ValueError where files beside OUT cannot be written."""
    if not str(out).strip() or out.name in ("", ".", ".."):
        raise ValueError(f"--out={str(out)!r}: give a path whose last part begins the files' names, such as runs/trace")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out={str(out)!r}: its folder cannot be made ({error.strerror}); name another") from None
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out={str(out)!r}: its folder cannot be written to; name another")


@dataclass
class Common:
    model: str | None = None
    """Folder or hub id; the embedded menagerie when left out."""
    device: str = "cpu"

    def load(self) -> "wb.Model":
        """The model; ValueError first, before anything is computed, where OUT could not be written."""
        if (out := getattr(self, "out", None)) is not None:
            check_out(out)
        return wb.load(self.model, device=self.device)


@dataclass
class Experimenting(Common):
    """Of commands that do experiments, which may be planned, and done by many."""

    folder: str | None = None
    """Where finished parts are kept, a path or an address such as s3://bucket/trace; the same command goes on where it was stopped."""
    executor: str | None = None
    """Who does the parts: "ray", workers on this machine; "auto" or "ray://host:10001", a Ray cluster's; this process when left out."""
    shard: str | None = None
    """Of a job array: "2/8" does every eighth part, from the second on, and waits for nobody. Numbered from 1; needs --folder."""
    plan: bool = False
    """Print what is left to do, with time and memory by one timed batch, and do nothing."""

    def load(self) -> "wb.Model":
        self.who()
        return super().load()

    def who(self) -> "wb.Executor | str | None":
        """What the options say of who does the parts; raises ValueError where they do not fit each other."""
        given = "--executor" if self.executor is not None else f"--shard {self.shard}"
        if self.executor is not None and self.shard is not None:
            raise ValueError(f"{given} and --shard: give one of both; Ray's workers divide the parts by themselves")
        if self.folder is None and (self.executor is not None or self.shard is not None):
            raise ValueError(f"{given} needs --folder, in which all who share the work leave their parts")
        return self.executor if self.shard is None else wb.Share.named(self.shard, "--shard")

    def asked(self, experiment: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """What an experiment found; None where it was to be planned, with the plan printed."""
        if self.plan:
            print(wb.plan(experiment, *arguments, **keywords))
            return None
        return experiment(*arguments, **keywords)
