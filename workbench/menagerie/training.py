"""One training loop for every part of the menagerie: warm-up and decay, EMA, progress bar, checkpoints, resume."""

import copy
import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from workbench.loading import DATA
from workbench.menagerie.world import Scene, render, sample_scene


@dataclass
class Options:
    """What every training script takes on its command line."""

    steps: int | None = None
    """Stop after this many optimiser steps."""
    minutes: float | None = None
    """Or after this much training time, all resumed runs together."""
    resume: bool = False
    """Go on from the checkpoint in `runs`, to the end that --steps or --minutes names."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    threads: int | None = None
    """CPU threads; all cores when not given."""
    batch_size: int = 32
    learning_rate: float = 1e-3
    scenes: int = 40_000
    """How many different training pictures are rendered."""
    seed: int = 0
    ema: float = 0.99
    """Decay of the averaged weights; the longer the training, the nearer to 1 it may be."""
    runs: Path = Path("runs/menagerie")
    """Where checkpoints are kept while training."""
    out: Path = DATA
    """Where the finished weights are written."""
    checkpoint_minutes: float = 2.0

    def __post_init__(self):
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(
                f"give --steps or --minutes, one of them; found steps={self.steps}, minutes={self.minutes}"
            )
        if self.threads:
            torch.set_num_threads(self.threads)


def fit(
    name: str,
    model: torch.nn.Module,
    loss: Callable[[int], dict[str, torch.Tensor]],
    options: Options,
    *,
    autocast: bool = False,
    weight_decay: float = 0.01,
) -> tuple[torch.nn.Module, dict]:
    """Minimise `loss(step)["loss"]` over `model`'s parameters; return the EMA model and what the training was.

    The loss must depend on `step` alone (draw its batch with `batch_rng`), so that a run that was killed and resumed is
    the run that was never killed. Learning rate: linear warm-up over 200 steps, constant, then linear to 0 over the last
    third. The checkpoint `runs/name.pt` is replaced atomically every `checkpoint_minutes` and on Ctrl-C.
    """
    path = options.runs / f"{name}.pt"
    model.to(options.device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema), use_buffers=True)
    on_gpu = options.device.startswith("cuda")
    optimiser = torch.optim.AdamW(
        model.parameters(), options.learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98), fused=on_gpu
    )
    parts = {"model": model, "average": average, "optimiser": optimiser}
    step, elapsed = 0, 0.0
    if options.resume:
        if not path.exists():
            raise FileNotFoundError(f"--resume: no checkpoint {path}; leave --resume out to start, or set --runs")
        state = torch.load(path, map_location=options.device, weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(state[key])
        step, elapsed = state["step"], state["elapsed"]

    def save():
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {key: part.state_dict() for key, part in parts.items()} | {"step": step, "elapsed": elapsed}
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def refuse_infinite(loss: torch.Tensor):
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{name}: loss is {loss.item()} at step {step}; lower --learning-rate (now {options.learning_rate})"
            )

    def progress() -> float:
        return step / options.steps if options.steps is not None else elapsed / (60 * (options.minutes or 0) or 1e-9)

    bar = tqdm(total=options.steps, initial=step, desc=name, mininterval=5)
    saved = elapsed
    try:
        while progress() < 1:
            began = time.perf_counter()
            rate = options.learning_rate * min(1, (step + 1) / 200) * min(1, 3 * (1 - progress()))
            for group in optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(1_000_003 * options.seed + step)
            with torch.autocast(
                torch.device(options.device).type, torch.bfloat16, enabled=autocast, cache_enabled=not on_gpu
            ):
                losses = loss(step)
            if step % 20 == 0 or not on_gpu:  # asking makes a GPU wait
                refuse_infinite(losses["loss"])
            optimiser.zero_grad()
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average.update_parameters(model)
            step += 1
            elapsed += time.perf_counter() - began
            bar.update()
            if step % (100 if on_gpu else 20) == 0:
                shown = {key: f"{value.item():.4f}" for key, value in losses.items()}
                bar.set_postfix(shown, minutes=f"{elapsed / 60:.1f}", refresh=False)
            if elapsed - saved > 60 * options.checkpoint_minutes:
                refuse_infinite(losses["loss"])
                save()
                saved = elapsed
    except KeyboardInterrupt:
        save()
        raise SystemExit(f"\n{name}: stopped at step {step}, kept in {path}; go on with --resume") from None
    bar.close()
    save()
    hardware = torch.cuda.get_device_name() if on_gpu else f"{options.device}, {torch.get_num_threads()} threads"
    record = {key: getattr(options, key) for key in ("batch_size", "learning_rate", "ema", "scenes", "seed")}
    record = {"steps": step, "minutes": round(elapsed / 60, 1), "hardware": hardware} | record
    return average.module.eval(), record


class Replayed:
    """A module whose forward and backward pass are recorded once on a GPU and replayed: small models wait for Python else.

    All its calls take tensors of the same shapes. On other devices it is the module itself.
    """

    def __init__(self, module: torch.nn.Module, device: str):
        self.module, self.waits = module, device.startswith("cuda")

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.waits:
            samples = tuple(x.detach().clone() for x in inputs)
            self.module = torch.cuda.make_graphed_callables(self.module, samples, allow_unused_input=True)
            self.waits = False
        return self.module(*inputs)


def kept(path: Path, key: dict, make: Callable[[], dict[str, torch.Tensor]]) -> dict:
    """What `make` returns, computed once and kept in a file for as long as its key is the same."""
    if path.exists() and (data := torch.load(path, weights_only=True))["key"] == key:
        return data
    data = {"key": key} | make()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(data, temporary)
    os.replace(temporary, path)
    return data


def save_half(part: torch.nn.Module, folder: Path):
    """Write a part of a pipeline in half precision, its configuration saying float32: what it is to be loaded as."""
    if hasattr(part, "register_to_config"):
        part.register_to_config(_name_or_path="")  # where it was loaded from is this machine's own
    copy.deepcopy(part).half().save_pretrained(folder)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    if "dtype" in config:  # transformers loads as what this says, diffusers as float32
        path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def batch_rng(options: Options, step: int) -> np.random.Generator:
    """The random numbers of one training step, the same in every run."""
    return np.random.default_rng((options.seed, step))


def training_scenes(count: int, seed: int, *, holdout: bool = False) -> list[Scene]:
    rng = random.Random(f"scenes {seed} {holdout}")
    return [sample_scene(rng, holdout=holdout) for _ in range(count)]


def pictures(scenes: list[Scene]) -> torch.Tensor:
    """Rendered scenes: uint8 (scene, channel=3, y=64, x=64)."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(_draw, scenes, chunksize=250)
        images = np.stack(list(tqdm(drawn, total=len(scenes), desc="rendering", mininterval=5)))
    return torch.from_numpy(images).movedim(-1, 1).contiguous()


def _draw(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene)[0])


def to_model_range(images: torch.Tensor, device="cpu") -> torch.Tensor:
    """uint8 pictures as float in [-1, 1], the range of diffusers' VAE."""
    return images.to(device).float() / 127.5 - 1
