"""A mechanistic-interpretability workbench for text-to-image diffusion models: `import workbench as wb`.

Every function below has an example, which the tests run (`tests/test_examples.py`). They are short because all of them begin with
what stands here, on the embedded model; `wb.load("a folder, a file or a hub id")` gives another.

>>> import numpy as np
>>> import torch
>>> import xarray as xr
>>> import workbench as wb
>>> model = wb.load()
>>> model.num_inference_steps = 2  # to be quick; its own are 25
>>> run = model.run({"zebra": "a photo of a zebra", "lion": "a photo of a lion"}, seeds=(0, 1))
>>> prompts = wb.prompt_set("object")[:2]
>>> once = wb.TraceSpec(seeds=(0,), draws=1)
>>> cross = wb.TraceSpec(sites=("unet.*.cross",), seeds=(0,), draws=1)
>>> trace = wb.causal_trace(model, prompts, cross)
>>> windows = wb.locogen(model, prompts, wb.LocoGenSpec(widths=(1, 2), seeds=(0,)))
>>> comparison = wb.compare_localizers(model, prompts, cross)
>>> kept = wb.FaithfulnessSpec(noise_multiple=6.0, seeds=(0,), draws=1, random_orders=1)
>>> faithful = wb.faithfulness(model, prompts, comparison.scores.sel(localizer="LocoGen"), kept)
>>> maps = wb.attention_maps(model, "a photo of a zebra")
>>> winter = wb.direction(model, *wb.prompt_pairs("winter"))
>>> weak = wb.RecoverySpec(attacks=("nearest_states", "completion"), distances=(0.2, 9.0), seeds=(0,), redraws=1)
>>> erased = wb.edit.uce(model, {"a zebra": "a cow"}, tokens="all", lam=0.01)
>>> recovered = wb.recover(model, erased, "a photo of a zebra", weak, subject="zebra")
>>> edit = wb.edit.locoedit(model, {"a zebra": "a giraffe"}, sites="unet.up.2.*.cross")

The public names stand in `__init__.pyi`, where type checkers and editors read them; each is imported when it is first asked
for, so that `import workbench` costs nothing.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
