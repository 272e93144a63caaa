"""Loading models: `wb.load()` gives the embedded menagerie, `wb.load(path or id or pipeline)` any Stable Diffusion."""

import hashlib
import json
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import nnsight
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from workbench.commits import Commit, Commits
from workbench.engine import Fold, Run, Start, run, wrap
from workbench.interventions import World
from workbench.pipeline import quiet
from workbench.sites import Sites, find_sites

if TYPE_CHECKING:
    from workbench.edit.low_rank import Edit

_PACKAGE = Path(__file__).resolve().parent
DATA = next(
    folder for folder in (_PACKAGE / "data", _PACKAGE.parent / "data") if folder.exists()
)  # in a wheel, in a clone
MENAGERIE = DATA / "menagerie-sd"
GRADER = DATA / "menagerie-clip"
MANIFEST = "SHA256SUMS"
DEFAULTS = "defaults.json"
EDITS = "edits.json"


@dataclass(repr=False)
class Model:
    """A text-to-image model under study.

    pipeline: the untouched diffusers pipeline. num_inference_steps, guidance_scale: what `generate` uses when not told.
    """

    pipeline: DiffusionPipeline
    num_inference_steps: int = 50
    guidance_scale: float = 7.5

    @cached_property
    def sites(self) -> Sites:
        """Every value that can be read or changed, in execution order; call it with a glob to select."""
        return find_sites(self.pipeline)

    @property
    def record(self) -> dict[str, str]:
        """What tells this model from others, for results to carry: its pipeline's class, scheduler and weights."""
        pipeline = self.pipeline
        parts = {
            name: fingerprint(part) for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)
        }
        return {"pipeline": type(pipeline).__name__, "scheduler": type(pipeline.scheduler).__name__, "weights": parts}

    def __repr__(self):
        size = sum(
            p.numel()
            for part in self.pipeline.components.values()
            if isinstance(part, torch.nn.Module)
            for p in part.parameters()
        )
        return (
            f"{type(self.pipeline).__name__}, {size / 1e6:.1f} M parameters; num_inference_steps={self.num_inference_steps}, "
            f"guidance_scale={self.guidance_scale:g}; {len(self.sites)} sites:\n{self.sites!r}"
        )

    @cached_property
    def nn(self) -> nnsight.NNsight:
        """The pipeline as NNsight sees it."""
        return wrap(self.pipeline)

    @cached_property
    def lock(self) -> threading.Lock:
        """Held by a running trace: one at a time per model."""
        return threading.Lock()

    def run(
        self,
        worlds: Sequence[World],
        *,
        seeds: Sequence[int] = (0,),
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        record: Sequence[str | Fold] = (),
        batch_size: int = 16,
        progress: bool = True,
        latents: torch.Tensor | None = None,
    ) -> Run:
        """Generate every world from every seed, with its interventions.

        Worlds of one run share the starting noise of each seed, and read one another's values in the same forward pass.
        record: globs of sites whose values (of the conditional half, behind all interventions) are kept, or folds, which
        accumulate them. batch_size: largest number of images per pipeline call. progress: whether a bar counts the denoising steps.
        latents: to begin from, (seed, channel, y, x); the seeds' own noise when left out.

        Raises KeyError for a site, ValueError for a token, step, head or world that does not exist and for latents of another
        shape, all before anything is computed; RuntimeError when an intervention did not fire as often as planned;
        FloatingPointError for images that are not finite.
        """
        unet = self.pipeline.unet.config
        shape = (len(seeds), unet.in_channels, unet.sample_size, unet.sample_size)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}: the run needs (seed, channel, y, x) = {shape}; give one for each "
                "seed"
            )
        return run(
            self,
            worlds,
            seeds=seeds,
            record=record,
            batch_size=batch_size,
            progress=progress,
            latents=latents,
            num_inference_steps=self.num_inference_steps if num_inference_steps is None else num_inference_steps,
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
        )

    def run_once(
        self,
        worlds: Sequence[World],
        images: Mapping[str, Image.Image],
        *,
        step: int,
        seeds: Sequence[int] = (0,),
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        record: Sequence[str | Fold] = (),
        batch_size: int = 16,
    ) -> Run:
        """One call of the UNet on each world's image, noised to a step of the run: what the model sees in a given picture.

        images: by the worlds' names, of the model's own size. seeds: of the noise. The run's images and latents are those behind
        that step. Raises ValueError for an image that is missing or of another size, and for a step outside the run.
        """
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        if missing := [world.name for world in worlds if world.name not in images]:
            raise ValueError(f"run_once: no image for the worlds {missing}; images has {list(images)}")
        if not 0 <= step < steps:
            raise ValueError(
                f"run_once: step={step}, but the run has steps 0 to {steps - 1}; raise num_inference_steps or name another"
            )
        self._check_sizes(images.values())
        return run(
            self,
            worlds,
            seeds=seeds,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            record=record,
            batch_size=batch_size,
            progress=False,
            start=Start(images, step),
        )

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Images of the model's own size as latents, the mean of the VAE's posterior: (image, channel, y, x)."""
        self._check_sizes(images)
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess(list(images)).to(vae.device, vae.dtype)
        return torch.cat([vae.encode(some).latent_dist.mode() for some in pixels.split(16)]) * vae.config.scaling_factor

    def _check_sizes(self, images):
        side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        if wrong := sorted({image.size for image in images} - {(side, side)}):
            raise ValueError(
                f"images of {wrong[0][0]} x {wrong[0][1]} pixels: the model draws {side} x {side}; resize them"
            )

    def latents(self, seeds: Sequence[int]) -> torch.Tensor:
        """Starting noise, one row per seed: (row, channel, y, x), float32 on the CPU whatever the model's device."""
        unet = self.pipeline.unet.config
        shape = (1, unet.in_channels, unet.sample_size, unet.sample_size)
        return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        batch_size: int = 16,
    ) -> list[Image.Image]:
        """Images of one or several prompts, row i from prompt i and seed i; a single prompt or seed serves all rows.

        A seed gives the same starting noise in any row, batch and process. Raises ValueError when the numbers of prompts
        and seeds differ; warns of prompts that are longer than the text encoder reads.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        seeds = [seed] if isinstance(seed, int) else list(seed)
        rows = max(len(prompts), len(seeds))
        prompts, seeds = (values * rows if len(values) == 1 else values for values in (prompts, seeds))
        if not len(prompts) == len(seeds) == rows:
            raise ValueError(
                f"generate: {len(prompts)} prompts and {len(seeds)} seeds; give one of either, or equally many"
            )
        self._warn_of_long(prompts)
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = self.guidance_scale if guidance_scale is None else guidance_scale
        images = []
        with quiet(self.pipeline), tqdm(total=rows, desc="images", disable=rows <= batch_size) as bar:
            for at in range(0, rows, batch_size):
                some = slice(at, at + batch_size)
                latents = self.latents(seeds[some]).to(self.pipeline.device, self.pipeline.unet.dtype)
                images += self.pipeline(
                    prompts[some], latents=latents, num_inference_steps=steps, guidance_scale=guidance
                ).images
                bar.update(len(latents))
        return images

    @cached_property
    def _commits(self) -> Commits:
        return Commits(self)

    @property
    def edits(self) -> tuple[Commit, ...]:
        """The log of what is committed: what, where, when, and the hash of each weight before."""
        return tuple(self._commits.log)

    def hashes(self, site: str) -> list[str]:
        """SHA-256 of a site's weight as it is, then as it was before each commit: an edit may be based on any of them."""
        return self._commits.hashes(site)

    def commit(self, edit: "Edit", *, base: bool = True):
        """Add an edit to the weights; `undo` takes it back.

        Weights as they were are kept until then (a copy for each commit, on their device). base: refuse an edit that was
        made for other weights. Raises ValueError, with nothing changed, for an edit that does not fit.
        """
        with self.lock:
            self._commits.commit(edit, base)

    def undo(self):
        """Take the latest commit back, bit-exact, from the saved copy; raises ValueError when there is none."""
        with self.lock:
            self._commits.undo()

    @contextmanager
    def applied(self, edit: "Edit", *, base: bool = True) -> Iterator["Model"]:
        """The model with an edit committed for as long as the block lasts, whatever happens in it."""
        depth = len(self.edits)
        self.commit(edit, base=base)
        try:
            yield self
        finally:
            while len(self.edits) > depth:  # what the block committed on top goes too
                self.undo()

    def save_pretrained(self, folder: str | Path):
        """Write the model as it now is as a diffusers folder, with its defaults, the log of its edits and SHA-256 sums."""
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"save_pretrained(folder={str(folder)!r}): the folder holds files; name an empty or a new one"
            )
        self.pipeline.save_pretrained(folder)
        defaults = {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale}
        (folder / DEFAULTS).write_text(json.dumps(defaults) + "\n")
        (folder / EDITS).write_text(json.dumps([asdict(entry) for entry in self.edits], indent=1) + "\n")
        write_manifest(folder)

    def _warn_of_long(self, prompts: Sequence[str]):
        tokenizer = self.pipeline.tokenizer
        for text in dict.fromkeys(prompts):
            ids = tokenizer(text, verbose=False)["input_ids"]
            if len(ids) > tokenizer.model_max_length:
                lost = tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])
                warnings.warn(
                    f"prompt of {len(ids)} tokens, the text encoder reads {tokenizer.model_max_length}: "
                    f"{lost!r} is cut off {text!r}; shorten the prompt",
                    stacklevel=3,
                )


def load(
    source: str | Path | DiffusionPipeline | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    verify: bool = True,
) -> Model:
    """Load a model to study.

    source: None for the embedded menagerie; a folder or a hub id that diffusers loads; or a live pipeline, which is taken
    as it is (device and dtype stay its own). verify: check a folder's files against its SHA256SUMS, where it has one.

    Raises FileNotFoundError for a missing and ValueError for an altered file, with both hashes.
    """
    if isinstance(source, DiffusionPipeline):
        return Model(source)
    folder = Path(MENAGERIE if source is None else source)
    if verify and (folder / MANIFEST).exists():
        verify_files(folder)
    pipeline = DiffusionPipeline.from_pretrained(
        str(folder) if folder.exists() else str(source), revision=revision, dtype=dtype
    )
    defaults = folder / DEFAULTS
    return Model(pipeline.to(device), **(json.loads(defaults.read_text()) if defaults.exists() else {}))


def fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers, in hexadecimal."""
    state = hashlib.sha256()
    for name, value in module.state_dict().items():
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path):
    """Write SHA256SUMS for every file under a folder, in the form that `sha256sum -c` reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    (folder / MANIFEST).write_text(
        "".join(f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    )


def verify_files(folder: Path):
    """Check a folder against its SHA256SUMS."""
    for line in (folder / MANIFEST).read_text().splitlines():
        expected, name = line.split("  ", 1)
        path = folder / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: {MANIFEST} expects it with SHA-256 {expected}, found no file; restore it "
                "(git checkout, or install the package again)"
            )
        if (found := digest(path)) != expected:
            raise ValueError(
                f"{path} was altered: {MANIFEST} expects SHA-256 {expected}, found {found}; restore it "
                "(git checkout, or install the package again), or pass verify=False to load it as it is"
            )
