"""Commands that change what a model does: `workbench steer`, `p2p`, `edit`.

What they need is imported when they run, so that their help and mistyped options are answered at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import workbench as wb
from workbench.cli.common import Common, beside
from workbench.inputs import count


@dataclass
class SteerConcept(Common):
    """Steer prompts towards a concept; write the direction, and images and measures of each strength."""

    pairs: str = "winter"
    """Prompts with the concept and without: winter, night, watercolor, or a CSV file with the columns positive and negative."""
    sites: tuple[str, ...] = ("text_encoder.*.mlp",)
    """Globs, of the text encoder or the UNet."""
    pool: Literal["own", "eos", "positions"] = "positions"
    """Of the text encoder: which positions a direction is taken from."""
    prompts: tuple[str, ...] = ("a photo of a zebra in the savanna", "a lion on a sunny day")
    """To be steered."""
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    raw: bool = False
    """Strengths multiply the direction as it is, not one as long as each site's activations are on average."""
    keep_norm: bool = False
    """Every activation keeps its norm."""
    text: str | None = None
    """What images are compared with; the name of the pairs when left out. Of a value that a prompt set has labels for, such as
    night, the probability among these too."""
    seeds: int = 2
    scorer: str | None = None
    """An open_clip model; the embedded grader when left out."""
    pretrained: str | None = None
    """Its weights."""
    out: Path = Path("runs/steer")
    """OUT.safetensors, OUT.png and OUT.csv."""

    def run(self):
        import pandas as pd
        import xarray as xr

        from workbench.cli.pictures import save_grid
        from workbench.experiments.statistics import mean
        from workbench.metrics import pixel_distance
        from workbench.prompts import labels_of

        seeds = range(count(self.seeds, "--seeds"))
        model, text = self.load(), self.text or Path(self.pairs).stem
        concept = wb.Concept(text, labels=labels_of(text), value=text)
        scorer = wb.Scorer(self.scorer, pretrained=self.pretrained, device=self.device)
        found = wb.direction(model, *wb.prompt_pairs(self.pairs), self.sites, pool=self.pool)
        print(found)
        found.save(beside(self.out, ".safetensors"))
        columns, rows = {"unsteered": ()}, []
        columns |= {f"{s:g}": found.steer(s, unit=not self.raw, keep_norm=self.keep_norm) for s in self.strengths}
        strips = {}
        for prompt in self.prompts:
            images = model.run(
                [wb.World(name, prompt, what) for name, what in columns.items()],
                seeds=seeds,
            ).images
            for name in columns:
                mine = images.sel(world=name)
                seen = scorer.image_embeddings(mine)
                values = concept.measured(scorer, seen)
                values["similarity"] = scorer.similarity(embeddings=seen, texts=prompt)
                values["pixel_distance"] = pixel_distance(mine, images.sel(world="unsteered"))
                for measure, each in values.items():
                    value, low, high = mean(each)
                    rows.append(
                        dict(
                            prompt=prompt,
                            strength=name,
                            measure=measure,
                            value=value,
                            low=low,
                            high=high,
                            images=self.seeds,
                        )
                    )
            strips |= {f"{prompt}\nseed {seed}": images.sel(seed=seed) for seed in images.seed.values}
        table = pd.DataFrame(rows)
        table.round(4).to_csv(beside(self.out, ".csv"), index=False)
        print(
            table.pivot_table(index=["prompt", "strength"], columns="measure", values="value", sort=False)
            .round(3)
            .to_string()
        )
        grid = (
            xr.concat(strips.values(), pd.Index(strips, name="image"))
            .rename(world="strength")
            .transpose("image", "strength", ...)
        )
        save_grid(grid, f"Steered towards {text} at {', '.join(self.sites)}", self.out)
        print(f"wrote {self.out}.safetensors, {self.out}.png and {self.out}.csv")


@dataclass
class P2P(Common):
    """Prompt-to-Prompt: draw prompts with the attention of a source, or of a real picture; print what was aligned, write OUT.png."""

    source: str = "a zebra in the savanna"
    target: tuple[str, ...] = ()
    """One prompt or several; none to reweight the source."""
    kind: Literal["replace", "refine", "reweight"] = "replace"
    cross: float = 0.8
    """Share of the steps that take the source's cross-attention."""
    word_steps: tuple[str, ...] = ()
    """Other shares for single words, as giraffe=0.4."""
    self_attention: float = 0.4
    """Share of the steps that take the source's self-attention."""
    self_resolution: float = 0.25
    """Side of the largest self-attention that is taken, as a share of the latents'."""
    reweight: tuple[str, ...] = ()
    """Factors of words, as winter=2."""
    blend: tuple[str, ...] = ()
    """Words outside whose regions the source stays."""
    subtract: tuple[str, ...] = ()
    """Words whose regions are taken away from those again."""
    blend_resolution: float = 0.25
    """Side of the maps that blend reads, as a share of the latents'."""
    threshold: float = 0.3
    """Of blend's regions."""
    image: Path | None = None
    """A picture of the model's size to edit; it is inverted first."""
    seeds: int = 4
    """Pictures of each prompt; with an image always one."""
    out: Path = Path("runs/p2p")
    """OUT.png."""

    def run(self):
        import numpy as np
        import xarray as xr
        from PIL import Image

        from workbench.cli.pictures import save_grid
        from workbench.p2p.edit import DEFAULT
        from workbench.pictures import as_rgb

        seeds = range(count(self.seeds, "--seeds"))
        model, blend = self.load(), None
        if self.blend:
            blend = wb.LocalBlend(self.blend, self.subtract, threshold=self.threshold, resolution=self.blend_resolution)
        edit = wb.prompt_to_prompt(
            model,
            self.source,
            self.target[0] if len(self.target) == 1 else self.target or None,
            self.kind,
            cross_replace_steps={DEFAULT: self.cross} | _numbers("word-steps", self.word_steps),
            blend=blend,
            self_replace_steps=self.self_attention,
            self_resolution=self.self_resolution,
            reweight=_numbers("reweight", self.reweight) or None,
        )
        print(edit)
        if self.image is None:
            images = model.run(edit, seeds=seeds).images
        else:
            picture = as_rgb(Image.open(self.image))
            (photo,) = wb.invert(model, [picture], [self.source])
            drawn = photo.run(model, edit).images
            images = xr.concat(
                [drawn[:1].copy(data=np.asarray(picture)[None, None] / 255).assign_coords(world=["image"]), drawn],
                "world",
            )
        title = f"{self.source}\n-> {', '.join(self.target) or ', '.join(self.reweight)}"
        save_grid(images, title, self.out)
        print(f"wrote {self.out}.png")


@dataclass
class EditConcept(Common):
    """Make words act as others by changing weights; write the edit, its LoRA where it can be one, and pictures before and after."""

    old: str = "a zebra"
    """Words whose meaning is changed."""
    new: str = "a giraffe"
    """Words that they shall act as."""
    editor: Literal["locoedit", "diff_quickfix", "time_edit", "uce", "swap"] = "locoedit"
    sites: tuple[str, ...] = ()
    """Globs or layers that a localizer chose; the editor's own when left out (locoedit: all cross-attention layers)."""
    tokens: tuple[str, ...] = ()
    """Which positions are keys; the editor's own when left out."""
    lam: float | None = None
    """The editor's own when left out."""
    preserve: str | None = None
    """A prompt set whose prompts keep their meaning, as swap/preserve."""
    prompts: tuple[str, ...] = ()
    """For the pictures; old and new when left out."""
    seeds: int = 4
    out: Path = Path("runs/edit")
    """OUT.safetensors, OUT.png and OUT_lora.safetensors."""

    def run(self):
        import numpy as np
        import xarray as xr

        from workbench.cli.pictures import save_grid

        seeds = range(count(self.seeds, "--seeds"))
        model = self.load()
        settings: dict[str, Any] = {}
        if self.sites or self.editor == "locoedit":
            settings["sites"] = self.sites or ("unet.*.cross",)
        settings |= ({"tokens": self.tokens} if self.tokens else {}) | ({} if self.lam is None else {"lam": self.lam})
        if self.preserve:
            settings |= dict(
                preserve=[wb.Prompt("", ""), *(wb.Prompt(p.prompt, "") for p in wb.prompt_set(self.preserve))],
                preserve_tokens="all",
            )
        concepts = (self.old, self.new) if self.editor == "swap" else ({self.old: self.new},)
        edit = getattr(wb.edit, self.editor)(model, *concepts, **settings)
        print(edit)
        edit.save(beside(self.out, ".safetensors"))
        edit.to_lora(beside(self.out, "_lora.safetensors"))
        prompts = self.prompts or (self.old, self.new)
        texts, every = [prompt for prompt in prompts for _ in seeds], [*seeds] * len(prompts)
        before = model.generate(texts, seeds=every)
        with model.applied(edit):
            after = model.generate(texts, seeds=every)
        rows = {
            f"{prompt}\n{when}": np.stack(some[i * self.seeds : (i + 1) * self.seeds]) / 255
            for i, prompt in enumerate(prompts)
            for when, some in (("before", before), ("after", after))
        }
        images = xr.DataArray(
            np.stack(list(rows.values())),
            dims=("world", "seed", "y", "x", "colour"),
            coords={"world": list(rows), "seed": range(self.seeds)},
        )
        save_grid(images, f"{self.editor}: {self.old} -> {self.new}", self.out)
        print(f"wrote {self.out}.safetensors, {self.out}.png and {self.out}_lora.safetensors")


def _numbers(option: str, given: tuple[str, ...]) -> dict[str, float]:
    """{"winter": 2.0} of "winter=2"."""
    try:
        return {word: float(number) for word, number in (each.rsplit("=", 1) for each in given)}
    except ValueError:
        raise ValueError(f"--{option} {' '.join(given)}: give word=number, as winter=2") from None
