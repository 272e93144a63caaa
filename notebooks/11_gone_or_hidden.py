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
# # Gone, or only hidden?
# An edit erases the zebra, and the pictures show cows. Has the model forgotten zebras, or does it only no longer draw them
# when it is asked in these words? Here an edit is made, seen to work, and attacked. One minute on one core.
#
# The large comparison is `python -m workbench.studies.hidden`: twelve editors and seven attacks, 100 pictures a cell
# ([what it found](../figures/hidden/README.md)).

# %%
import workbench as wb

model, grader = wb.load(), wb.Scorer()

# %% tags=["parameters"]
PROMPTS, SEEDS, STEPS, REDRAWS, DISTANCES = 3, (0,), 8, 2, (0.1, 0.2)

# %% [markdown]
# ## Erase
# The zebra is drawn as what it is told to be, a cow: of what the text says, four directions are removed in which the two differ.

# %%
texts = ("a photo of a zebra in the savanna", "a zebra on the beach", "a zebra in the city at night")[:PROMPTS]
labels = wb.prompt_set("object").labels
zebras = wb.PromptSet("zebras", tuple(wb.Prompt(text, subject="zebra", value="zebra") for text in texts), labels)
edit = wb.edit.oblique(model, "a zebra", "a cow", rank=4)
_ = wb.plot.image_grid(model.run(list(texts), seeds=SEEDS, num_inference_steps=STEPS), title="before")

# %%
with model.applied(edit):
    _ = wb.plot.image_grid(model.run(list(texts), seeds=SEEDS, num_inference_steps=STEPS), title="with the edit")

# %% [markdown]
# ## Attack
# `nearest_states` looks for text states, close to the prompt's own, of which the edited layers make what the unedited ones made
# of the prompt's. `completion` lets the unedited model do the first half of the steps. Each stands beside the edit before any attack, the
# same attack asking for a lion, or for nothing, and other seeds.

# %%
asked = wb.RecoverySpec(
    attacks=("nearest_states", "completion"),
    control="lion",
    distances=DISTANCES,
    shares=(0.5,),
    redraws=REDRAWS,
    seeds=SEEDS,
    num_inference_steps=STEPS,
)
recovered = wb.recover(model, edit, zebras, asked, scorer=grader)
shown = ["attack", "setting", "unedited", "before", "redrawn", "after", "control", "random", "moved"]
recovered.table()[shown].round(2)

# %%
_ = wb.plot.recovery(recovered, title="oblique, rank 4: what the attacks bring back")

# %% [markdown]
# The zebra is back, a tenth of the way from the prompt or less (two prompts that name other animals are about 0.7 apart). It was
# hidden: the edit multiplies what all layers read by one matrix, and took away what tells a zebra from a cow at the least cost for
# other pictures, not what the layers read of it.
#
# ## Resist
# `resist=` takes the concept out of what the layers *give* instead. That is harder to go around, and costs other pictures: which
# the four below do not show, and 100 controls do.

# %%
hard = wb.edit.oblique(model, "a zebra", "a cow", rank=4, resist=1.0)
again = wb.RecoverySpec(
    attacks=("nearest_states",),
    control="lion",
    distances=DISTANCES,
    redraws=REDRAWS,
    seeds=SEEDS,
    num_inference_steps=STEPS,
)
resisted = wb.recover(model, hard, zebras, again, scorer=grader)
resisted.table()[shown].round(2)

# %%
others = ["a lion on the beach", "a red car in the city", "a giraffe in the forest", "an elephant in the desert"]
with model.applied(hard):
    _ = wb.plot.image_grid(model.run(others, seeds=SEEDS, num_inference_steps=STEPS), title="other pictures, resist=1")

# %% [markdown]
# ## What was found, and what would show it wrong
# Three prompts show how it is done; the [tables](../figures/hidden/README.md) say how often. Of 100 held-out zebras the edit
# leaves 0.02, and the nearest states within a distance of 0.2 bring back 0.94; so it is with ten editors of twelve. Those who only
# add the concept's vector to the states (Ring-A-Bell) get 0.02, and would have called it gone: one attack that fails proves nothing.
# With `resist=1` none of twelve came back within 0.2, two thirds without a bound, and 0.22 of other pictures changed.
#
# Nobody needs to care if such states can be reached by no prompt and nobody may hand states to the model. But a learned
# embedding alone, a prompt like others, brought back 0.17 to 0.54.
