# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does it hold for another architecture?
# Three small models learned one world: a Stable Diffusion 1, an SDXL (two text encoders and a pooled vector beside them)
# and a Stable Diffusion 3 (two text encoders, a transformer with joint attention in place of the UNet). Same captions,
# same grader: what differs is the architecture. One minute on one core.
#
# The large comparison is `python -m workbench.studies.architectures`: six attributes, twelve prompts each, swaps,
# steering, erasing ([what it found](../figures/architectures/README.md)).

# %%
from pathlib import Path

import pandas as pd

import workbench as wb

models = {name: wb.load(name) for name in ("menagerie-sd", "menagerie-xl", "menagerie-dit")}
grader = wb.Scorer()

# %% tags=["parameters"]
PROMPTS, SEEDS, STEPS, TABLES = 2, (0,), 8, "../figures/architectures"

# %% [markdown]
# ## The same words, three times
# Seeds are not shared: the same starting noise is another picture in each.

# %%
asked = ["a zebra in the savanna", "a watercolor of a red car on the beach in winter"]
for name, model in models.items():
    _ = wb.plot.image_grid(model.run(asked, seeds=range(4), num_inference_steps=STEPS), title=name)

# %% [markdown]
# ## What they are made of
# Names of sites differ where the models do; calls do not. Pooled vectors are sites of their own.

# %%
text = "text_encoder*.{0,1}.{attention,mlp}"
pd.DataFrame(
    {
        name: {
            "text encoders": len({site.component for site in model.sites if site.part == "text"}),
            "layers that LocoGen replaces": len(model.sites(model.family.layers)),
            "the first of them": model.sites(model.family.layers)[0].name,
            "pooled vectors that are read": sum(
                site.part == "text" and site.kind == "pooled" and site.read for site in model.sites
            ),
        }
        for name, model in models.items()
    }
)

# %% [markdown]
# ## Is layer 0 of the text encoder the causal state?
# A small trace of each: the animal's word gets noise, then one component of layer 0 or 1 is given back what it had in the
# clean run. With two text encoders each is given back alone, and both together (`text_encoders`).

# %%
prompts = wb.prompt_set("object")[:PROMPTS]
spec = wb.TraceSpec(sites=(text,), noise_multiple=6.0, draws=1, seeds=SEEDS, num_inference_steps=STEPS)
traced = {}
for name, model in models.items():
    effects = wb.effects(wb.causal_trace(model, prompts, spec, scorer=grader), "probability")
    traced[name] = wb.strongest(effects).set_index("site").indirect_effect
pd.DataFrame(traced).round(2)

# %% [markdown]
# Two prompts say little, but the pattern is that of the large trace: layer 0, attention or mlp, brings the animal back;
# layer 1 does not. One encoder alone is worth less than both: the other still says the corrupted word.
#
# ## What the study says
# Six attributes, twelve prompts x two seeds. The share of the corruption's effect that the better component of layer 0
# brings back, which says nothing where there is little effect (the fact on `xl`); "not told": no site is told from sites
# shuffled within each prompt.

# %%
table = pd.read_csv(Path(TABLES) / "architectures.csv")


def told(finding, rows=slice(None)):
    own = table[table.finding == finding]
    return own.pivot_table(index="of", columns="model", values="said", aggfunc="first", sort=False)[["sd", "xl", "dit"]]


pd.set_option("display.max_colwidth", None)
told("layer 0 is the causal state")

# %% [markdown]
# And the window of two neighbouring layers that decides most, by LocoGen: the direct effect of replacing what these alone
# are told.

# %%
told("LocoGen, best window")

# %% [markdown]
# Where each attribute is decided in the denoiser differs in each. A rule says "yes" of the season in the transformer for
# an effect of 0.00 with p 0.04: nothing there brings the season back; that "yes" is no finding.
#
# ## Swap, steer, erase
# Swapped: held-out prompts that show the other animal, by the best editor of the denoiser's weights and by that of the text
# encoders'. Collateral: control pictures that show another thing than before.

# %%
asked = (
    "best editor, denoiser",
    "best editor, text encoder",
    "winter, text encoder",
    "winter, denoiser",
    "erased: erase",
)
pd.concat({finding: told(finding) for finding in asked})

# %% [markdown]
# ## What holds, and what would show it wrong
# Layer 0 of the text encoders, of both where there are two; the swap by the denoiser's weights alone, which on `xl` needs
# neither the second encoder nor the pooled vector; the embedding swap; erasing. Not where the denoiser decides an
# attribute, nor which localizers agree, nor steering the denoiser: the rule that picks a strength finds none for the
# transformer that brings any winter.
#
# One training of each architecture stands behind this, at 64 pixels. Others, or models at their real size, on which layer
# 0 of both encoders is not enough or the swap falls below 0.85, would show it wrong
# ([all numbers](../figures/architectures/README.md)).
