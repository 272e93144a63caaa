"""The page of costs is in step with the code that writes it."""

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.studies import cost
from workbench.studies.full_models import FULL

LAYERS = {"SD 1.5": 16, "SDXL": 70, "SD3 medium": 24, "FLUX.1 dev": 57}  # that text enters, as published
PARAMETERS = {"SD 1.5": 859_520_964, "SDXL": 2_567_463_684, "SD3 medium": 2_028_328_000, "FLUX.1 dev": 11_901_408_320}


@pytest.mark.parametrize("name", FULL)
def test_models_are_those_that_are_published_and_narrow_copies_as_deep(name):
    with torch.device("meta"):
        parts = FULL[name].parts()
    denoiser = parts.get("unet") or parts["transformer"]
    assert sum(weight.numel() for weight in denoiser.parameters()) == PARAMETERS[name]
    narrow = wb.load(FULL[name].narrow())
    assert len(narrow.sites(narrow.family.layers)) == LAYERS[name]
    for component in (each for each in parts if each.startswith("text_encoder")):
        full, copy = parts[component].config, getattr(narrow.pipeline, component).config
        assert copy.num_hidden_layers == full.num_hidden_layers


def test_the_page_says_what_the_code_counts():
    """Of the smallest model; the others' lines come from the same run."""
    page, name = cost.PAGE.read_text(), "SD 1.5"
    size, model = cost.sizes(name, FULL[name]), wb.load(FULL[name].narrow())
    size["graphs"] = size["graph"] * len(model.calls())
    assert cost.model_lines(pd.DataFrame([size])).splitlines()[-1] in page
    plans = cost.experiments(model)
    for experiment in list(plans)[1:3]:
        line = cost.experiment_lines(pd.DataFrame([cost.rows_of(name, plans[experiment](), size, experiment)]))
        assert line.splitlines()[-1] in page
    assert all(page.count(f"| {name} | {experiment} |") == 1 for name in FULL for experiment in plans)


def test_tensors_at_once_are_counted_by_their_storages():
    with torch.device("meta"):
        weight = torch.empty(10, 10)

        def call():
            first = weight.t() @ weight  # 400 bytes; the view is none of its own
            second = first.relu()  # 800 bytes at once
            del first
            return second.view(-1) + 1  # the first is gone: 800 again

        assert cost.peak(call) == 800
