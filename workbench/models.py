"""Models under study: `wb.load()` gives the embedded menagerie, `wb.load(path or id or pipeline)` any Stable Diffusion."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import partial
from html import escape
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from workbench.arguments import checked, instance_of, warn
from workbench.commits import Commit, commits_of
from workbench.elsewhere import named_elsewhere
from workbench.engine import Calls, Fold, Run, Settings, Start, calls_in, run, wrapped
from workbench.engine.call import arguments, guided, guiding, pictures_of
from workbench.engine.nn import NNsight
from workbench.engine.options import named_options
from workbench.engine.switches import check_switches
from workbench.engine.trace import sites_of, untouched
from workbench.families import Family, length_read, set_length
from workbench.identity import MANIFEST, fingerprint, identity, verify_files, write_manifest
from workbench.inputs import count, flag, shown, strings, text, user_path
from workbench.inputs import seeds as as_seeds
from workbench.interventions import Intervention, World
from workbench.loading import DATA, DEFAULTS, EDITS, GRADER, MENAGERIE, defaults_of, find_pipeline
from workbench.locks import holding, lock_of
from workbench.pictures import as_pil, as_rgb
from workbench.progress import Bar
from workbench.schema import site_name
from workbench.sites import Site, Sites, weight_of
from workbench.text import caption
from workbench.weights import check_savable, weight_hash

if TYPE_CHECKING:
    from workbench.edit.low_rank import Edit

__all__ = [
    "DATA",
    "GRADER",
    "MANIFEST",
    "MENAGERIE",
    "Model",
    "Worlds",
    "as_worlds",
    "fingerprint",
    "load",
    "verify_files",
]

Worlds = str | World | Iterable[str | World] | Mapping[str, "str | World | Iterable[Intervention]"]
Seeds = int | Iterable[int]


class Model:
    """A text-to-image model under study.

    pipeline: the diffusers pipeline, whose behaviour stays its own. num_inference_steps, guidance_scale: what is used when not
    told; left out, the pipeline's own (see `workbench.loading.defaults_of`). max_sequence_length: with which the pipeline is called,
    where it has such an argument: of T5's tokens, or of the zeros in their place; the sizes of sites follow it.

    >>> model = wb.load()
    >>> model.num_inference_steps, model.guidance_scale
    (25, 3.0)
    >>> model.num_inference_steps = 12  # of every run that does not say
    >>> model.pipeline.tokenizer.model_max_length  # all of diffusers' pipeline is there
    32
    """

    source: Mapping[str, Any] | None = None
    """What `load` was given to find it in files, for another process to find the same; None for a live pipeline."""

    @checked(pipeline=instance_of("diffusers:DiffusionPipeline"))
    def __init__(
        self,
        pipeline: DiffusionPipeline,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        max_sequence_length: int | None = None,
    ):
        self.family: Family = check_switches(pipeline)
        if max_sequence_length is not None:
            if self.family.length is None:
                raise ValueError(
                    f"max_sequence_length={max_sequence_length}: {type(pipeline).__name__} has no such argument, its tokenizer "
                    "says how much is read; leave it out"
                )
            set_length(pipeline, max_sequence_length)
        defaults = defaults_of(pipeline)
        self.pipeline = pipeline
        self.num_inference_steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        self.guidance_scale = defaults.guidance_scale if guidance_scale is None else guidance_scale

    @property
    def max_sequence_length(self) -> int | None:
        """The `max_sequence_length` of the pipeline's calls; None where it has no such argument.

        >>> wb.load("menagerie-dit").max_sequence_length, model.max_sequence_length
        (4, None)
        """
        return self.family.length_of(self.pipeline)

    if not TYPE_CHECKING:  # a type checker is to know what there is

        def __getattr__(self, name: str):
            if hasattr(type(self), name):  # a property failed: show its own error
                return object.__getattribute__(self, name)
            raise AttributeError(named_elsewhere(self, name))

        def __call__(self, *args, **keywords):
            raise TypeError(named_elsewhere(self, "__call__"))

    @property
    def sites(self) -> Sites:
        """Every value that can be read or changed, in execution order; call it with a glob to select.

        >>> [site.name for site in model.sites("unet.mid.cross.{k,v}")]
        ['unet.mid.cross.k', 'unet.mid.cross.v']
        >>> model.sites["unet.mid.cross.probs"].axes
        ('row', 'head', 'pixel', 'token')
        >>> len(model.sites.where(kind="cross", component="unet"))
        16
        """
        return sites_of(self.pipeline)

    @checked
    def sites_at(self, height: int | None = None, width: int | None = None) -> Sites:
        """The sites of a run at this resolution in pixels, which their sizes follow; the pipeline's own when left out.

        >>> model.sites["unet.mid.cross"].grid, model.sites_at(128, 128)["unet.mid.cross"].grid
        ((2, 2), (4, 4))
        """
        return sites_of(self.pipeline, height, width)

    @checked
    def calls(self, num_inference_steps: int | None = None) -> Calls:
        """The denoiser's calls in a run of so many steps, and which step each belongs to; see `workbench.engine.calls`.

        >>> model.calls(4).step
        (0, 1, 2, 3)
        """
        return calls_in(self.pipeline, self._steps(num_inference_steps))

    @property
    def record(self) -> dict:
        """What tells this model from others, for results to carry; see `workbench.identity`.

        >>> model.record["pipeline"]
        'StableDiffusionPipeline'
        """
        return identity(self.pipeline)

    def _summary(self) -> str:
        parts = (part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module))
        size = sum(parameter.numel() for part in parts for parameter in part.parameters())
        return (
            f"{type(self.pipeline).__name__}, {size / 1e6:.1f} M parameters; num_inference_steps={self.num_inference_steps}, "
            f"guidance_scale={self.guidance_scale:g}; {len(self.sites)} sites"
        )

    def __repr__(self):
        return f"{self._summary()}:\n{self.sites!r}"

    def _repr_html_(self):
        return f"<p>{escape(self._summary())}</p>{self.sites._repr_html_()}"

    @property
    def nn(self) -> NNsight:
        """The pipeline as NNsight sees it, with the modules that it has now."""
        return wrapped(self.pipeline)

    @property
    def lock(self) -> AbstractContextManager[None]:
        """Held by runs, commits and undos: one at a time per pipeline, and per component that pipelines share."""
        return lock_of(self.pipeline)

    @named_options
    @checked(worlds=lambda worlds, argument: as_worlds(worlds), record=lambda record, argument: as_record(record))
    def run(
        self,
        worlds: Worlds,
        *,
        seeds: Seeds = (0,),
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        record: str | Fold | Sequence[str | Fold] = (),
        batch_size: int = 16,
        progress: bool = True,
        latents: torch.Tensor | None = None,
        reuse: bool = True,
        record_to: str | Path | None = None,
    ) -> Run:
        """Generate every world from every seed, with its interventions.

        Worlds of one run share each seed's noise, and read one another's values in the same forward pass; the picture of a world
        without interventions is that of `pipeline(prompt, generator=torch.Generator().manual_seed(seed))`.
        worlds: a prompt, a `World`, several of either, or a mapping of names to prompts, worlds or, for one prompt's, interventions.
        seeds: one or several. guidance_rescale: how far, from 0 to 1, guided noise is brought back to the conditional half's standard
        deviation (Lin et al. 2023, arXiv 2305.08891, section 3.4). height, width: in pixels. record: globs of sites whose values (of
        the conditional half, behind all interventions) are kept, or folds, which accumulate them. record_to: a folder, not there yet, for
        recordings that do not fit memory: each value goes to disk as it passes (zarr, the extra [disk]), and `values` are the same
        arrays, read from there whenever they are looked at, so select before computing; `xarray.open_zarr(f"{folder}/{site}")` opens one
        later. What is held then grows with the batch, and neither with images nor steps; the pictures themselves stay in memory.
        batch_size: largest number of images per pipeline call.
        progress: whether a bar counts the denoiser's calls. latents: to begin from, (seed, channel, y, x), as `pipeline(latents=...)`
        takes them; the seeds' own noise when left out. reuse: whether worlds whose interventions begin at a later step start there,
        from latents of the steps before that all worlds share which are alike until then (under DDIM and Euler schedulers, where nothing
        is recorded and it saves time); the images are those of the whole run to rounding.

        Raises KeyError for a site, ValueError for a token, step, head, channel or world that does not exist, for a scheduler that is
        not known, and for latents of another shape, MemoryError for recordings that would not fit, OSError for those that would not fit
        the disk, all before anything is computed; RuntimeError when an intervention did not fire as often as planned or a safety checker
        blacked pictures out; FloatingPointError for images that are not finite.

        >>> off = wb.World("off", "a zebra", wb.scale("unet.mid.cross", 0.0))
        >>> run = model.run(["a zebra", off], seeds=(0, 1), record="unet.mid.cross.probs")
        >>> run
        Run of worlds 'a zebra', 'off'; seeds 0, 1: pictures of 64 x 64; recorded unet.mid.cross.probs
        >>> dict(run.images.sizes)
        {'world': 2, 'seed': 2, 'y': 64, 'x': 64, 'colour': 3}
        >>> dict(run.values["unet.mid.cross.probs"].sizes)
        {'world': 2, 'seed': 2, 'step': 2, 'head': 4, 'pixel': 4, 'token': 32}
        >>> run.fired
        {('off', 0): 2}
        >>> kept = model.run(["a zebra", off], seeds=(0, 1), record="unet.mid.cross.probs", record_to="runs/probs")
        >>> kept.values["unet.mid.cross.probs"].identical(run.values["unet.mid.cross.probs"])
        True
        """
        settings = self._settings(num_inference_steps, guidance_scale, height, width, rescale=guidance_rescale)
        chosen, numbers = as_worlds(worlds), as_seeds(seeds)
        if latents is not None and self.family.decoder is None:
            raise ValueError(
                f"latents=: {type(self.pipeline).__name__} has no such argument, its noise is that of seeds=; leave latents out"
            )
        if latents is not None:
            shape = self._latent_shape(len(numbers), height, width)
            if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != shape:
                given = tuple(getattr(latents, "shape", ())) or type(latents).__name__
                raise ValueError(
                    f"latents of shape {given}: the run needs a tensor (seed, channel, y, x) = {shape}; give one for each seed"
                )
        recorded = as_record(record)
        if record_to is not None and not recorded:
            raise ValueError(f"record_to={str(record_to)!r}: nothing is recorded; name sites or folds in record=")
        self._warn_of_long(world.prompt for world in chosen)
        return run(
            self,
            chosen,
            numbers,
            settings,
            record=recorded,
            batch_size=batch_size,
            progress=progress,
            latents=latents,
            reuse=reuse,
            record_to=None if record_to is None else Path(record_to),
        )

    def _settings(
        self,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        height: int | None = None,
        width: int | None = None,
        start: Start | None = None,
        rescale: float = 0.0,
    ) -> Settings:
        guidance = self.guidance_scale if guidance_scale is None else guidance_scale
        if rescale and not guided(self.pipeline, guidance):
            raise ValueError(f"guidance_rescale={rescale}: it has no effect without guidance; {guiding(self.pipeline)}")
        if rescale and "guidance_rescale" not in signature(type(self.pipeline).__call__).parameters:
            raise ValueError(
                f"guidance_rescale={rescale}: {type(self.pipeline).__name__} has no such argument; leave it out"
            )
        self._latent_shape(1, height, width)  # refuses a size that is not drawn
        return Settings(self._steps(num_inference_steps), float(guidance), height, width, start, float(rescale))

    def _steps(self, given: int | None) -> int:
        return self.num_inference_steps if given is None else given

    @checked(
        worlds=lambda worlds, argument: as_worlds(worlds),
        record=lambda record, argument: as_record(record),
        images=instance_of("collections.abc:Mapping", fix="pictures by the worlds' names, as {'a zebra': picture}"),
        step=partial(count, least=0),
    )
    def run_once(
        self,
        worlds: Worlds,
        images: Mapping[str, Image.Image],
        *,
        step: int,
        seeds: Seeds = (0,),
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        record: str | Fold | Sequence[str | Fold] = (),
        batch_size: int = 16,
    ) -> Run:
        """One call of the denoiser on each world's image, noised to a step of the run: what the model sees in a given picture.

        images: by the worlds' names, of the model's own size. seeds: of the noise. The run's images and latents are those behind
        that step. Raises ValueError for an image that is missing or of another size, and for a step outside the run.

        >>> (picture,) = run.pil("zebra", seed=0)
        >>> probs = "unet.mid.cross.probs"
        >>> seen = model.run_once({"here": "a zebra"}, {"here": picture}, step=1, record=probs)
        >>> dict(seen.values[probs].sizes)
        {'world': 1, 'seed': 1, 'step': 1, 'head': 4, 'pixel': 4, 'token': 32}
        """
        chosen = as_worlds(worlds)
        settings = self._settings_once(chosen, images, step, num_inference_steps, guidance_scale)
        return run(
            self, chosen, as_seeds(seeds), settings, record=as_record(record), batch_size=batch_size, progress=False
        )

    def _settings_once(
        self,
        chosen: Sequence[World],
        images: Mapping[str, Image.Image],
        step: int,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
    ) -> Settings:
        """How `run_once` calls the pipeline; raises as it does."""
        steps = self._steps(num_inference_steps)
        if missing := [world.name for world in chosen if world.name not in images]:
            raise ValueError(f"run_once: no image for the worlds {missing}; images has {list(images)}")
        if not 0 <= step < steps:
            raise ValueError(
                f"run_once: step={step}, but the run has steps 0 to {steps - 1}; raise num_inference_steps or name another"
            )
        images = {world.name: as_rgb(images[world.name], f"images[{world.name!r}]") for world in chosen}
        self._check_sizes(images.values())
        return self._settings(num_inference_steps, guidance_scale, start=Start(images, step))

    @checked(images=lambda images, argument: some_pictures(images))
    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Images of the model's own size as latents, the mean of the VAE's posterior (where there is no VAE, their pixels from -1 to 1):
        (image, channel, y, x).

        >>> model.encode(run.pil("zebra")).shape
        torch.Size([2, 4, 16, 16])
        """
        self._check_sizes(images)
        pipeline, denoiser = self.pipeline, self.family.model(self.pipeline)
        if self.family.decoder is None:
            pixels = torch.stack([torch.from_numpy(np.asarray(as_rgb(image, "images"), "f4")) for image in images])
            return (pixels.permute(0, 3, 1, 2) / 127.5 - 1).to(denoiser.device, denoiser.dtype)
        vae = pipeline.vae
        with self.lock, untouched(pipeline):
            if vae.dtype == torch.float16 and vae.config.force_upcast:
                vae.to(dtype=torch.float32)
            pixels = pipeline.image_processor.preprocess(list(images)).to(vae.device, vae.dtype)
            latents = torch.cat([vae.encode(some).latent_dist.mode() for some in pixels.split(16)])
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return (latents.to(denoiser.dtype) - shift) * vae.config.scaling_factor

    def _check_sizes(self, images: Iterable[Image.Image]):
        height, width = self.family.size(self.pipeline)
        if wrong := sorted({image.size for image in images} - {(width, height)}):
            raise ValueError(
                f"images of {wrong[0][0]} x {wrong[0][1]} pixels: the model draws {width} x {height}; resize them"
            )

    def _latent_shape(self, count: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        own = self.family.size(self.pipeline)
        return (count, *self.family.latents(self.pipeline, height or own[0], width or own[1]))

    @checked(seeds=partial(as_seeds, once=False))  # the same seed may stand in several rows
    def latents(self, seeds: Seeds, *, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """Starting noise, one row per seed, as the pipeline itself draws it: (row, channel, y, x), on the CPU, of the model's dtype.

        >>> model.latents(range(3)).shape
        torch.Size([3, 4, 16, 16])
        >>> torch.equal(model.latents(1)[0], model.latents((0, 1))[1])
        True
        """
        shape = self._latent_shape(1, height, width)
        dtype = self.family.model(self.pipeline).dtype
        rows = [torch.Generator().manual_seed(seed) for seed in as_seeds(seeds, once=False)]
        return torch.cat([torch.randn(shape, generator=generator, dtype=dtype) for generator in rows])

    @named_options
    @checked(prompt=strings, negative_prompt=strings, seeds=partial(as_seeds, once=False))
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seeds: Seeds = 0,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 16,
    ) -> list[Image.Image]:
        """Images of one or several prompts, row i from prompt i and seed i; a single prompt or seed serves all rows.

        A seed gives the same noise in any row, batch and process: the picture of
        `pipeline(prompt, generator=torch.Generator().manual_seed(seed))`. Raises ValueError when the numbers of prompts
        and seeds differ, RuntimeError and FloatingPointError as `run` does; warns of prompts that are longer than the text
        encoder reads.

        >>> pictures = model.generate("a photo of a zebra", seeds=(0, 1))
        >>> [picture.size for picture in pictures]
        [(64, 64), (64, 64)]
        >>> pictures = model.generate(["a zebra", "a lion"], seeds=0, negative_prompt="snow")
        """
        prompts = list(strings(prompt, "prompt"))
        numbers = list(as_seeds(seeds, once=len(prompts) == 1))  # one seed may stand in several rows
        negatives = [None] if negative_prompt is None else list(strings(negative_prompt, "negative_prompt"))
        rows = max(map(len, (prompts, numbers, negatives)))
        columns: list[list[Any]] = [
            values * rows if len(values) == 1 else values for values in (prompts, negatives, numbers)
        ]
        if any(len(values) != rows for values in columns):
            raise ValueError(
                f"generate: {len(prompts)} prompts, {len(negatives)} negative prompts and {len(numbers)} seeds; give one of each, or "
                "equally many"
            )
        self._warn_of_long(prompts)
        check_switches(self.pipeline)
        settings = self._settings(num_inference_steps, guidance_scale, height, width, rescale=guidance_rescale)
        calls_in(self.pipeline, settings.num_inference_steps, height, width)  # refuses a scheduler that is not known
        images: list[Image.Image] = []
        bar = Bar(rows, "images", shown=rows > batch_size)
        with self.lock, untouched(self.pipeline), bar:
            for at in range(0, rows, batch_size):
                some = [values[at : at + batch_size] for values in columns]
                call = arguments(
                    self.pipeline,
                    *some,
                    num_inference_steps=settings.num_inference_steps,
                    guidance_scale=settings.guidance_scale,
                    guidance_rescale=settings.guidance_rescale,
                    height=height,
                    width=width,
                )
                output = self.pipeline(**call, output_type="pt")
                drawn = pictures_of(self.pipeline, output, some[0])
                if not torch.isfinite(drawn).all():
                    raise FloatingPointError(
                        f"pictures of {some[0][:3]} are not finite: the weights hold NaN, or float16 overflows; load the model in float32"
                    )
                images += self.pipeline.numpy_to_pil(drawn.float().cpu().permute(0, 2, 3, 1).numpy())
                bar.update(len(some[0]))
        return images

    @property
    def edits(self) -> tuple[Commit, ...]:
        """The log of what is committed to the pipeline: what, where, when, and the hash of each weight before and after.

        >>> with model.applied(edit):
        ...     [(entry.what["editor"], len(entry.where)) for entry in model.edits]
        [('locoedit', 6)]
        """
        return commits_of(self.pipeline).log

    @checked(site=site_name)
    def hashes(self, site: str) -> list[str]:
        """SHA-256 of a site's weight as it is, then as it was before each commit: an edit may be based on any of them.

        >>> before = model.hashes("unet.up.2.0.cross.k")
        >>> with model.applied(edit):
        ...     model.hashes("unet.up.2.0.cross.k")[1:] == before
        True
        """
        now = weight_hash(weight_of(self.pipeline, self.sites[site]))
        return [now, *commits_of(self.pipeline).earlier(site)]

    @checked
    def commit(self, edit: "Edit", *, base: bool = True):
        """Add an edit to the weights; `undo` takes it back.

        Weights as they were are kept until then (a copy for each commit, on their device), with the pipeline: Models that wrap the
        same pipeline share its edits. base: refuse an edit that was made for other weights. Warns of an edit that is committed
        already, and of one that the weights' dtype is too coarse for. Raises ValueError, with nothing changed, for an edit that
        does not fit, and for layers with adapters that are not fused.

        >>> model.commit(edit)
        >>> [commit.what["editor"] for commit in model.edits]
        ['locoedit']
        >>> model.undo()
        """
        commits_of(self.pipeline).commit(self, edit, base)

    @checked
    def undo(self, *, check: bool = True):
        """Take the latest commit back, bit-exact, from the saved copy.

        check: refuse where the weights are not what the commit left, changed by hand or by a LoRA that was fused; False puts the
        copy back all the same. Raises ValueError, with nothing changed, for that, and when there is nothing to undo.

        >>> model.commit(edit)
        >>> model.undo()
        >>> model.edits
        ()
        """
        commits_of(self.pipeline).undo(check)

    @checked
    @contextmanager
    def applied(self, edit: "Edit", *, base: bool = True) -> Iterator["Model"]:
        """The model with an edit committed for as long as the block lasts, whatever happens in it.

        What the block commits on top goes too. Other threads that run or change this pipeline wait for the whole block.

        >>> with model.applied(edit * 0.5):
        ...     pictures = model.generate("a photo of a zebra", seeds=range(2))
        >>> model.edits
        ()
        """
        with commits_of(self.pipeline).applied(self, edit, base):
            yield self

    def __deepcopy__(self, memo: dict) -> "Model":
        """A second model with its own weights and the same edits, committed and to be undone by themselves."""
        with self.lock:
            settings = self.num_inference_steps, self.guidance_scale, self.max_sequence_length
            copy = Model(deepcopy(self.pipeline, memo), *settings)
            commits_of(self.pipeline).copied_to(copy.pipeline)
        return copy

    @checked(folder=user_path)
    def save_pretrained(self, folder: str | Path):
        """Write the model as it now is as a diffusers folder, with its defaults, the log of its edits and SHA-256 sums.

        `load` brings all of it back. Raises ValueError for a folder that holds files, and for a pipeline whose adapters are not
        fused, which a folder cannot hold.

        >>> with model.applied(edit):
        ...     model.save_pretrained("edited")
        >>> [commit.what["editor"] for commit in wb.load("edited").edits]
        ['locoedit']
        """
        folder = user_path(folder, "folder")
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"save_pretrained(folder={str(folder)!r}): the folder holds files; name an empty or a new one"
            )
        with self.lock:
            check_savable(self.pipeline)
            self.pipeline.save_pretrained(folder)
            log = commits_of(self.pipeline).to_json()
        defaults = {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale}
        if self.max_sequence_length is not None:
            defaults["max_sequence_length"] = self.max_sequence_length
        (folder / DEFAULTS).write_text(json.dumps(defaults) + "\n")
        (folder / EDITS).write_text(log)
        write_manifest(folder)

    def _warn_of_long(self, prompts: Iterable[str]):
        for prompt in dict.fromkeys(prompts):
            for name in dict.fromkeys(encoder.tokenizer for encoder in self.family.present(self.pipeline)):
                tokenizer = getattr(self.pipeline, name)
                with holding(tokenizer):
                    ids = tokenizer(caption(self.pipeline, prompt), verbose=False)["input_ids"]
                most = length_read(self.pipeline, name) or tokenizer.model_max_length
                if len(ids) > most:
                    lost = tokenizer.decode(ids[most - 1 : -1])
                    warn(
                        f"prompt of {len(ids)} tokens, the text encoder reads {most}: "
                        f"{lost!r} is cut off {prompt!r}; shorten the prompt"
                    )
                    break


def as_worlds(worlds: Worlds) -> tuple[World, ...]:
    """Worlds from whatever names them: a prompt, a world, several, or a mapping of names.

    A prompt becomes a world of its own name. In a mapping, interventions need a prompt, so that a value is a prompt or a world,
    which then takes the key as its name.

    >>> [world.name for world in as_worlds({"plain": "a zebra", "other": "a lion"})]
    ['plain', 'other']
    """
    example = "'a zebra', World('edited', 'a zebra', [...]), a list of these, or {'edited': World(...)}"
    if isinstance(worlds, (str, World)):
        worlds = (worlds,)
    if isinstance(worlds, Mapping):
        named = []
        for name, each in worlds.items():
            if not isinstance(name, str) or not isinstance(each, (str, World)):
                raise ValueError(
                    f"worlds={shown(dict(worlds))}: give names and a prompt or a World for each: {example}"
                )
            prompt = each if isinstance(each, World) else World(name, each)
            named.append(World(name, prompt.prompt, prompt.interventions, prompt.subject, prompt.negative_prompt))
        return tuple(named)
    if not isinstance(worlds, Iterable) or isinstance(worlds, (bytes, set, frozenset)):
        raise ValueError(f"worlds={shown(worlds)}: give {example}")
    given = list(worlds)
    if wrong := [each for each in given if not isinstance(each, (str, World))]:
        raise ValueError(f"worlds holds {shown(wrong[0])}: give {example}")
    if not given:
        raise ValueError(f"worlds={shown(worlds)}: give at least one, as {example}")
    return tuple(World(each, each) if isinstance(each, str) else each for each in given)


def as_record(record: str | Fold | Sequence[str | Fold]) -> tuple[str | Fold, ...]:
    """Globs and folds: one or several."""
    given = (record,) if isinstance(record, (str, Fold)) else record
    several = isinstance(given, (list, tuple, Sites))
    if not several or not all(isinstance(each, (str, Fold, Site)) and each != "" for each in given):
        raise ValueError(f"record={shown(record)}: give globs of sites, such as 'unet.*.cross', or wb.Fold(...)s")
    return tuple(each.name if isinstance(each, Site) else each for each in given)


def some_pictures(images) -> list[Image.Image]:
    """Pictures, at least one; see `as_pil`."""
    if not (found := as_pil(images)):
        raise ValueError("images holds none; give at least one")
    return found


@checked(revision=text, variant=text, safety_checker=flag, config=user_path)
def load(
    source: str | Path | DiffusionPipeline | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
    safety_checker: bool | None = None,
    config: str | Path | None = None,
    max_sequence_length: int | None = None,
    verify: bool = True,
) -> Model:
    """Load a model to study.

    source: None for the embedded menagerie, or another embedded model's name; a folder, a checkpoint's single file or a hub id that
    diffusers loads, with the log of its edits where `save_pretrained` wrote one; or a live pipeline, which is taken as it is (device
    and dtype stay its own). dtype: torch's, or "float16". variant: of the files, such as "fp16". safety_checker: False leaves it out
    (black pictures are refused otherwise). config: for a single file, a local folder with its parts' configurations, where there is
    no hub. max_sequence_length: with which the pipeline is called, where it has such an argument (Stable Diffusion 3: of T5's
    tokens, or of the zeros in their place); the model's own, or diffusers', when left out. verify: check a folder's files against its
    SHA256SUMS, where it has one.

    Raises FileNotFoundError for a missing and ValueError for an altered file, with both hashes, and for a pipeline or checkpoint that
    no family knows, saying what was found and what is supported.

    >>> model = wb.load()
    >>> type(model.pipeline).__name__
    'StableDiffusionPipeline'
    >>> wb.load(model.pipeline).sites == model.sites  # a live pipeline
    True
    """
    if isinstance(source, DiffusionPipeline):
        return Model(source, max_sequence_length=max_sequence_length)
    pipeline, defaults = find_pipeline(
        source,
        device=device,
        dtype=dtype,
        revision=revision,
        variant=variant,
        safety_checker=safety_checker,
        config=config,
        verify=verify,
    )
    length = defaults.max_sequence_length if max_sequence_length is None else max_sequence_length
    model = Model(pipeline, defaults.num_inference_steps, defaults.guidance_scale, length)
    files = dict(
        revision=revision, variant=variant, safety_checker=safety_checker, config=_anywhere(config), verify=verify
    )
    model.source = dict(source=_anywhere(source), dtype=dtype, **files)
    return model


def _anywhere(source: str | Path | None) -> str | Path | None:
    """A path as every process of this machine finds it; names that are none as they are."""
    path = None if source is None else Path(source).expanduser()
    return path.absolute() if path is not None and path.exists() else source
