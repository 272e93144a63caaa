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
# # Winter is coming
# A challenge of a summer camp at Sapienza University (2025), with Stable Diffusion 2.1-base and NNsight: thirty prompts
# are given, many of them of summer, and the seed, 17. Neither may be changed. By adding *steering vectors* to
# activations while the model reads a prompt, make it winter in the pictures.
#
# Its README reports: half the difference of the means of MLP outputs, winter prompts against summer ones, at layers 0,
# 6, 7, 8 of the text encoder's 23, with strengths 0.8, 0.5, 1.0, 2.0; winter similarity 0.23; 17 experiments; strengths
# by the words of the prompt.
#
# Here the same is done step by step on the embedded model, next to the solution's own lines; then what does better:
# three minutes on one core.

# %%
import base64
import csv
import io
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from PIL import Image

import workbench as wb

model, grader = wb.load(), wb.Scorer()

# %% tags=["parameters"]
PROMPTS, STEPS, PAIRS = 30, 12, 13  # PAIRS: of captions, for the UNet's direction

# %% [markdown]
# ## The prompts
# `prompts.csv` has two columns, `ID` and `prompt`; `wb.prompt_set("prompts.csv")` reads it as it is. The challenge's
# own speak of lemonade and barn weddings, which the embedded model has never seen, so it has thirty of its own in the
# same form, a third of them of summer.

# %%
prompts = wb.prompt_set("winter")[:PROMPTS]
prompts.table()[["prompt"]].head(6)

# %% [markdown]
# ## The steering vector
# The solution: ```python steering_vector = (positive_activations - negative_activations) / 2 ``` Here, from a hundred
# pairs of captions that differ in the season alone, at the output of every MLP and each position of the prompt. The
# denoiser does not run.

# %%
positive, negative = wb.prompt_pairs("winter")
winter = wb.direction(model, positive, negative, "text_encoder.*.mlp", pool="positions")
source = winter / 2
print(positive[0], "|", negative[0])

# %% [markdown]
# Is it what the solution computes? By hand, for the first layer, with a plain PyTorch hook:

# %%
encoder, tokenizer, caught = model.pipeline.text_encoder, model.pipeline.tokenizer, []
mlp = attrgetter(model.sites["text_encoder.0.mlp"].module)(model.pipeline)
hook = mlp.register_forward_hook(lambda layer, given, output: caught.append(output.mean(0)))
for side in (positive, negative):
    with torch.no_grad():
        encoder(tokenizer(side, padding="max_length", return_tensors="pt").input_ids)
hook.remove()
by_hand = (caught[0] - caught[1]) / 2
print(
    f"largest difference: {np.abs(by_hand.numpy() - source['text_encoder.0.mlp']).max().item():.0e} of {by_hand.abs().max():.1f}"
)

# %% [markdown]
# ## Layers and strengths, mapped
# The solution: ```python for i, layer_idx in enumerate([0, 6, 7, 8]):
#     component = model.text_encoder.text_model.encoder.layers[layer_idx].mlp
#     component.output[0][:] += [0.8, 0.5, 1.0, 2.0][i] * steering_vector[layer_idx]
# ``` There are 23 layers there and 12 here. Layer l stands at l/23 of the depth; two fall on one layer, and their
# strengths add.

# %%
published, mapped = {0: 0.8, 6: 0.5, 7: 1.0, 8: 2.0}, {}
for layer, strength in published.items():
    site = winter.sites[layer * len(winter.sites) // 23]
    mapped[site] = mapped.get(site, 0) + strength
pd.Series(mapped, name="strength")

# %% [markdown]
# ## Does it snow?
# Every prompt once as it is and once steered, from the noise of seed 17. Above the plain pictures, below the steered
# ones.


# %%
def drawn(interventions=(), texts=None):
    texts = texts or [prompt.prompt for prompt in prompts]
    worlds = [wb.World(str(number), text, interventions) for number, text in enumerate(texts, 1)]
    return model.run(worlds, seeds=[17], num_inference_steps=STEPS).images[:, 0]


def side_by_side(drawings, count=10):
    rows = [drawing[::3][:count].rename(world="ID") for drawing in drawings.values()]
    return wb.plot.image_grid(xr.concat(rows, pd.Index(list(drawings), name="world")))


drawings = {"plain": drawn(), "source's": drawn(source.steer(mapped))}
_ = side_by_side(drawings)

# %% [markdown]
# Hardly: of the ten prompts that speak of summer one, a beach (19), is half snowed in, and its sun still shines. Is the
# direction wrong, or the layers, or is it too little? The same direction at the source's layers and at layer 0 alone,
# up to six times as strong:

# %%
text, factors = "a photo of a zebra in the desert on a sunny summer day", (0, 1, 2, 3, 4, 6)
sites = {"source's layers": mapped, "layer 0 alone": {"text_encoder.0.mlp": 0.8}}
worlds = [wb.World(f"{name} {f}", text, (f * source).steer(where)) for name, where in sites.items() for f in factors]
run = model.run(worlds, seeds=[17], num_inference_steps=STEPS)
images = run.images.values.reshape(2, len(factors), *run.images.shape[2:])
coordinates = {"world": list(sites), "times the published strength": list(factors)}
sheet = xr.DataArray(images, dims=(*coordinates, "y", "x", "colour"), coords=coordinates)
_ = wb.plot.image_grid(sheet, title=text)

# %% [markdown]
# Too little. At twice the published strength it is winter, by the source's layers and by layer 0 alone alike: strengths
# do not carry over from one model to another, and the other layers add nothing here.
#
# How far does a strength of 1 go? In multiples of each layer's own mean activation norm:

# %%
lengths = source.table().set_index("site").relative_length.round(2)
pd.DataFrame({"half the difference of means": lengths, "source adds": lengths * pd.Series(mapped)}).dropna().round(2)

# %% [markdown]
# ## What does better
# Strengths as multiples of the norm (`unit=True`), so that layers compare, and layers found by a sweep on *other*
# prompts ([the winter study](../figures/winter/README.md)): the text encoder's layer 0 alone, all of its layers at half
# their norm, and one layer of the UNet, whose direction comes from generated pictures. Beside them what is not allowed,
# telling the model.

# %%
unet = wb.direction(model, positive[:PAIRS], negative[:PAIRS], "unet.down.1.1.cross", num_inference_steps=STEPS)
methods = {
    "layer 0": winter.steer({"text_encoder.0.mlp": 1.0}, unit=True),
    "all layers": winter.steer(0.5, unit=True),
    "UNet": unet.steer(4.0, unit=True, keep_norm=True),
}
drawings |= {name: drawn(interventions) for name, interventions in methods.items()}
told = [prompt.prompt.removesuffix(" on a sunny summer day") + " in winter" for prompt in prompts]
drawings["told"] = drawn(texts=told)
_ = side_by_side(drawings)

# %% [markdown]
# Scores over all thirty: the challenge's two, similarity to "winter" and to the prompt as it was given, and what the
# grader sees, by season and by subject.

# %%
seasons, subjects = (wb.prompt_set(name).labels for name in ("season", "object"))
texts = [prompt.prompt for prompt in prompts]
named = [next(subject for subject in subjects if subject in text.split()) for text in texts]


def most_likely(images, labels):
    return np.array(list(labels))[grader.class_probabilities(images, labels).argmax(-1)]


def scores(images):
    return {
        "similar to winter": float(grader.similarity(images, "winter").mean()),
        "similar to its prompt": float(grader.similarity(images, texts).mean()),
        "is winter": float((most_likely(images, seasons) == "winter").mean()),
        "right subject": float((most_likely(images, subjects) == named).mean()),
    }


table = pd.DataFrame({name: scores(images) for name, images in drawings.items()}).T
table.round(2)

# %% [markdown]
# Layer 0 alone, or all layers at half their norm, bring winter to nearly all thirty and keep the animals; the sun goes,
# the trees turn white, the place in the picture stays. It is what telling gives, from a prompt that says summer.
# Similarity to the prompt falls by as much as when told: a summer's day that is drawn in winter is no longer what was
# asked for. The UNet's layer keeps more of the prompt and misses half of the summers, in one of which night has fallen
# (13); in the study, with 25 pairs and two seeds, it is 0.63.
#
# ## Strength by the prompt?
# The solution guesses from the words how much a prompt will resist (summer: strong; outdoors: medium; else: weak). In
# the study neither that nor a strength found for each prompt by bisection does better than one strength for all (winter
# in 0.73 and 0.77 of 60 pictures against 0.93).
#
# ## The submission
# As the challenge reads it: a row for each `ID`, the picture as a PNG in base64. And the pictures as files, read back
# to be sure.

# %%
best = drawings["layer 0"]
folder = Path("submission")
folder.mkdir(exist_ok=True)
with open(folder / "submission.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["ID", "image"])
    for number, picture in enumerate(wb.as_pil(best), 1):
        picture.save(folder / f"{number}.png")
        rows.writerow([number, base64.b64encode((folder / f"{number}.png").read_bytes()).decode()])

# %%
read = pd.read_csv(folder / "submission.csv")
again = [Image.open(io.BytesIO(base64.b64decode(text))) for text in read.image]
assert all(np.array_equal(a, b) for a, b in zip(again, wb.as_pil(best)))
print(f"{len(read)} pictures of {again[0].size}, winter similarity {grader.similarity(again, 'winter').mean():.2f}")
read.assign(image=read.image.str[:40] + "...").head(3)

# %% [markdown]
# `workbench benchmark winter` does all of this with more prompts, seeds and strengths, and writes the figures of [the
# study](../figures/winter/README.md).
