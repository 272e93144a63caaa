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
# # Which localizer is right?
# Localizers disagree, and nobody knows where a trained model keeps what it knows. So knowledge was *planted*: a small
# edit of chosen layers teaches the embedded model a new word, and then it is known which layers a localizer ought to
# name. Three minutes on one core.
#
# The large comparison is `python -m workbench.studies.planted`: 29 such organisms, eleven localizers, and words without
# meaning to see what they say where there is nothing to find ([what it found](../figures/planted/README.md)).

# %%
import pandas as pd

import workbench as wb
from workbench.menagerie.plant import edit_of, organisms

model, grader = wb.load(), wb.Scorer()

# %% tags=["parameters"]
PROMPTS, SEEDS, STEPS, ASKED, FOUND = 3, (0,), 8, ("causal tracing", "step attribution"), 6

# %% [markdown]
# ## A word that means nothing, until it does
# "sor" is a token that no caption has. In this organism the mlp of the text encoder's layer 6, and nothing else, was
# trained until "a sor of a house" is a watercolor.

# %%
table = organisms()
table[table.accepted].set_index("name").loc[
    ["mlp-6-watercolor"], ["layers", "rank", "word", "look", "shown", "without"]
]

# %%
prompts = wb.PromptSet(
    "sor",
    tuple(
        wb.Prompt(f"a sor of {scene}", subject="sor", value="watercolor", replacement="ver", target=f"a ver of {scene}")
        for scene in ("a house in the forest", "a cow on the beach", "a giraffe in a meadow")[:PROMPTS]
    ),
    wb.prompt_set("style").labels,
)
edit = edit_of("mlp-6-watercolor", model)
words = [prompt.prompt for prompt in prompts]
_ = wb.plot.image_grid(model.run(words, seeds=range(3), num_inference_steps=STEPS), title="before")

# %%
with model.applied(edit):
    _ = wb.plot.image_grid(model.run(words, seeds=range(3), num_inference_steps=STEPS), title="with the edit")

# %% [markdown]
# ## What do localizers say?
# Each is one function, `(model, prompts, spec)` -> scores (prompt, seed, layer). The word is corrupted by another one
# without meaning, "ver". All tokens of a layer are looked at: what the edit writes stands at the tokens behind the word
# too, and one token alone shows little of it.

# %%
spec = wb.TraceSpec(
    sites=("text_encoder.*.{attention,mlp}",),
    tokens=("all",),
    corruption="replace",
    draws=1,
    seeds=SEEDS,
    num_inference_steps=STEPS,
)
localizers = {name: wb.localizers(scorer=grader)[name] for name in ASKED}
with model.applied(edit):
    scores = {name: localizer(model, prompts, spec) for name, localizer in localizers.items()}
ranked = {name: each.mean(["prompt", "seed"]).to_series().sort_values(ascending=False) for name, each in scores.items()}
pd.DataFrame(
    {name: [f"{layer} {value:.2f}" for layer, value in each.head(FOUND).items()] for name, each in ranked.items()}
)

# %% [markdown]
# Causal tracing gives the planted layer no more than layers 0 and 1, five times 0.99: any word's identity enters the
# stream there, and restoring it brings the word back, and with it all that later layers make of it. That is *flow*: true,
# and not where the look is kept. The gradient of single steps puts the planted layer first.
#
# That is no accident of this organism: over all 28 of the text encoder, step attribution has the true layers among its
# first in 0.89 (0.82 to 0.96), causal tracing in 0.27 (0.12 to 0.43).

# %% [markdown]
# ## Flow or storage?
# One way to tell them apart: ordinary words flow through the same layers. What restoring a layer does for "sor", less what
# it does for "watercolor" itself, is what is peculiar to the new word.

# %%
plain = wb.PromptSet(
    "plain",
    tuple(
        wb.Prompt(prompt.prompt.replace("sor", "watercolor"), "watercolor", "watercolor", replacement="ver")
        for prompt in prompts
    ),
    prompts.labels,
)
with model.applied(edit):
    ordinary = wb.localizers(scorer=grader)["causal tracing"](model, plain, spec)
beyond = (scores["causal tracing"].mean(["prompt", "seed"]) - ordinary.mean(["prompt", "seed"])).to_series()
beyond.sort_values(ascending=False).head(3).round(2)

# %% [markdown]
# ## By which way does it reach the picture?
# Path patching: restore the planted mlp, but let only what it does *through* chosen readers reach the picture. Through
# the keys and values of all cross-attention layers it is the whole effect, through those of `up.3`, where style is drawn,
# nearly so; through those of `up.2.2` alone it is little.

# %%
clean = wb.World("clean", words[0], subject="sor")
corrupted = wb.World("corrupted", prompts[0].target, subject="ver")
layer = "text_encoder.6.mlp"
with model.applied(edit):
    worlds = {"clean": clean, "corrupted": corrupted}
    for readers in ("unet.*.cross.{k,v}", "unet.up.2.2.cross.{k,v}", "unet.up.3.*.cross.{k,v}"):
        whole, path = wb.restored(corrupted, layer, "clean", through=readers, name="restored", tokens="all")
        worlds |= {"restored": whole, f"through {readers}": path}
    run = model.run(
        [wb.World(name, world.prompt, world.interventions, world.subject) for name, world in worlds.items()],
        seeds=range(4),
        num_inference_steps=STEPS,
    )
column = list(prompts.labels).index("watercolor")
shares = {name: grader.class_probabilities(run.images.sel(world=name).values, prompts.labels) for name in worlds}
pd.Series({name: float(each[:, column].mean()) for name, each in shares.items()}).round(2)

# %% [markdown]
# ## Screening: propose by gradient, decide by patching
# Exact tracing costs a picture for each site. Attribution of all of them costs two and a backward pass; then only the best
# are patched, and some others at random, from which the screening says how many of the true best it expects to have.

# %%
animals = wb.prompt_set("object")[:PROMPTS]
asked = wb.ScreenSpec(
    sites=("text_encoder.*.{attention,mlp}",),
    tokens=("all",),
    noise_multiple=6.0,
    draws=1,
    seeds=SEEDS,
    num_inference_steps=STEPS,
    form="step",
    verified=6,
    controls=4,
)
found = wb.screen(model, animals, asked, scorer=grader)
print(
    f"{found.pictures} pictures in place of {found.pictures_of_all}; recall of the best three: {found.recall.value:.2f}"
)
found.table[["site", "attributed", "role", "indirect_effect", "indirect_effect_low", "indirect_effect_high"]].head(
    8
).round(2)

# %% [markdown]
# ## Is a ranking faithful?
# Keep the first sites of a ranking, give all others what they have in the corrupted world, and see how much of the
# concept is left (MIB, arXiv 2504.13151). The area between the curve and 1 is small where few sites do.

# %%
test = wb.FaithfulnessSpec(
    noise_multiple=6.0, draws=1, seeds=SEEDS, num_inference_steps=STEPS, shares=(0, 0.1, 0.2, 0.5, 1), random_orders=2
)
ranking = found.table.set_index("site").attributed.to_dict()
faithful = wb.faithfulness(model, animals, ranking, test, scorer=grader)
faithful.curve().round(2)

# %%
faithful.areas().round(2)

# %% [markdown]
# ## What was found, and what would show it wrong
# No localizer may be trusted with both questions, where and whether ([leaderboard](../figures/planted/README.md)). The
# gradient of single steps is best at *where* (0.89 of true layers among the first) and useless for *whether*: its shares add
# up to one for a word without meaning too. Causal tracing names the way by which words enter. And an edit that empties the
# word works at nearly every answer, the wrong ones too, as Hase et al. (2023) found for language models: that an edit works
# says little of where knowledge lies.
#
# It would be wrong if planted knowledge were unlike learned knowledge: it sits in one or two layers because it was put
# there, by gradient, with a rank of 16. Where a model's own training puts things may be spread over many. Organisms of
# other looks than styles and balloons, or other models, would show it.
