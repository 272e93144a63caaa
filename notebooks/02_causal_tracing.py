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
# # Causal tracing
# Which state of the model carries a concept? Corrupt the words that name it, so that the picture loses it; then give
# back one state of the clean run at a time and see which brings it back (Meng et al. 2022; for diffusion models Basu et
# al. 2023).
#
# This notebook is a small trace, of two and a half minutes on one core. The large one is `python -m
# workbench.studies.survey`: six attributes, twelve prompts each ([what it found](../figures/causal_trace/README.md)).

# %%
import workbench as wb
from workbench.localize.causal_trace import noise_sigmas

model, grader = wb.load(), wb.Scorer()

# %% tags=["parameters"]
PROMPTS, SEEDS, STEPS = 3, (0, 1), 8

# %%
prompts = wb.prompt_set("object")[:PROMPTS]
prompts.table()[["prompt", "subject", "value"]]

# %% [markdown]
# ## Is there anything to trace?
# Before asking where, ask whether: the total effect of the corruption is the clean probability of the attribute minus
# the corrupted one. Noise of 3 standard deviations is the published default. A text encoder that was trained on few
# words can shrug it off.

# %%
for multiple in (3.0, 6.0):
    spec = wb.TraceSpec(
        sites=("text_encoder.embedding",), noise_multiple=multiple, draws=2, seeds=SEEDS, num_inference_steps=STEPS
    )
    effects = wb.effects(wb.causal_trace(model, prompts, spec, scorer=grader), "probability")
    print(f"{multiple:g} standard deviations: total effect {wb.with_interval(effects, 'total_effect')}")

# %% [markdown]
# What that looks like: the zebra's embedding gets noise, then one state of the clean run is put back, in the first or
# the last layer.

# %%
prompt, ((embedding, sigma),) = prompts[0], noise_sigmas(model, prompts, 6.0).items()
noise = wb.add_noise(embedding, sigma, seed=1, tokens="subject")
worlds = [wb.World("clean", prompt.prompt), wb.World("corrupted", prompt.prompt, [noise], prompt.subject)]
for layer in (0, 11):
    back = wb.restore(f"text_encoder.{layer}.attention", "clean", tokens="subject_last")
    worlds.append(wb.World(f"attention of layer\n{layer} restored", prompt.prompt, [noise, back], prompt.subject))
_ = wb.plot.image_grid(model.run(worlds, seeds=range(4), num_inference_steps=STEPS), title=prompt.prompt)

# %% [markdown]
# ## Text encoder: layer and component
# At the last token of the subject; intervals are over prompts. A dot would mark an effect of at least 0.05 whose interval,
# over six prompts or more, leaves out zero: three prompts are too few for any, and their `p` cannot be below 0.25.

# %%
spec = wb.TraceSpec(noise_multiple=6.0, draws=1, seeds=SEEDS, num_inference_steps=STEPS)
text = wb.effects(wb.causal_trace(model, prompts, spec, scorer=grader), "probability")
_ = wb.plot.heatmap(text, "kind", "layer", title="last subject token")

# %%
shown = ["site", "indirect_effect", "indirect_effect_low", "indirect_effect_high", "p", "recovery"]
wb.strongest(text).head(6)[shown].round(2)

# %% [markdown]
# A token's hidden state brings the concept back whatever the layer: it holds all that was written to that token before.
# What is telling is which *component* suffices alone, and that is layer 0: its attention or its mlp. From layer 1 on
# neither does.
#
# ## Text encoder: layer and token
# For one prompt, every position. Before the subject nothing was corrupted, for the encoder is causal: exactly zero, a
# check of the method.

# %%
spec = wb.TraceSpec(
    sites=("text_encoder.{0,2,4,6,8,10,11}.hidden",),
    tokens=("each",),
    noise_multiple=6.0,
    draws=1,
    seeds=SEEDS,
    num_inference_steps=STEPS,
)
tokens = wb.effects(wb.causal_trace(model, prompts[:1], spec, scorer=grader), "probability")
_ = wb.plot.heatmap(tokens, "token", "layer", title=prompts[0].prompt)

# %% [markdown]
# The zebra is brought back from its own token, and as well from "in" and "the" right behind it, by the last layers even
# better: the encoder has copied it there, early. Further on it thins out, and the end token has little, in early layers
# only.
#
# ## UNet: modules
# Each module's output is restored at every step. Mind what a module's output *is*: a resnet's holds the whole stream at
# that depth, so that late ones hand over the finished picture. Attention outputs are what one layer adds.

# %%
spec = wb.TraceSpec(
    sites=("unet.*.{resnet,cross}",), noise_multiple=6.0, draws=1, seeds=SEEDS, num_inference_steps=STEPS
)
unet = wb.effects(wb.causal_trace(model, prompts[:2], spec, scorer=grader), "probability")
_ = wb.plot.profile(unet, title="UNet, one module restored")

# %% [markdown]
# Two prompts give wide intervals. Of the cross-attention layers only `up.2.0` leaves out zero; the middle of the UNet,
# at 2 x 2 pixels, brings nothing back.
#
# ## What was found, and what would show it wrong
# In the large trace ([figures](../figures/causal_trace/README.md), 12 prompts x 2 seeds), for **object**, **style** and
# **action** the attention or the mlp of layer 0, at the last subject token alone, brings nearly all of the total effect
# back, and no attention or mlp from layer 1 on brings much. Published for SD 1.4 is the same state, the attention of
# layer 0. For **colour** and **season** the last subject token is not where it is kept; **position** has no effect to
# trace, for this model does not obey the word.
#
# In the UNet single cross-attention layers do carry attributes (season: `down.1.1`, object: `up.2.0`), others for each
# attribute; published for SD 1.4 is that cross-attention layers are not causal states.
#
# It would be wrong if: another corruption (`corruption="replace"`, which stays on the manifold) moved the strong cells;
# positions before the subject showed any effect; other draws of noise or seeds left the intervals; or the grader, which
# reads small differences in style, were fooled by pictures unlike any it was trained on. The first three are one
# argument of `TraceSpec` each.
