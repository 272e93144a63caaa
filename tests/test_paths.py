"""Path patching: what a site does through all that reads it is what it does, and through nothing, nothing."""

import numpy as np
import pytest

import workbench as wb

PROMPT, SITE = "a photo of a zebra", "text_encoder.0.attention"


def pictures(model, through, site=SITE, **places):
    """Of the clean world, the corrupted one, the site restored, and the site through others; a batch of three rows at most."""
    noise = wb.add_noise("text_encoder*.embedding", 2.0, tokens="subject")
    clean, corrupted = wb.World("clean", PROMPT), wb.World("corrupted", PROMPT, noise, "zebra")
    whole, path = wb.restored(corrupted, site, "clean", through=through, **places)
    run = model.run([clean, corrupted, whole, path], num_inference_steps=2, batch_size=3, progress=False)
    return run.images.values[:, 0]


def test_through_every_reader_it_is_the_whole_effect(model):
    readers = ["unet.*.cross.context", *(site.name for site in model.sites if site.kind == "pooled" and site.read)]
    _, corrupted, whole, path = pictures(model, readers)
    assert np.abs(whole - corrupted).max() > 1e-4 and np.abs(whole - path).max() < 1e-5


def test_through_itself_it_is_the_whole_effect(model):
    site = "unet.mid*.cross"
    _, _, whole, path = pictures(model, site, site=site, steps=[0])
    assert np.abs(whole - path).max() < 1e-5


def test_through_what_stands_before_it_there_is_no_way(model):
    _, corrupted, whole, path = pictures(model, "text_encoder.0.attention", site="text_encoder.1.mlp")
    assert np.abs(corrupted - path).max() < 1e-5 < np.abs(whole - corrupted).max()


def test_through_some_readers_it_is_a_part(menagerie):
    _, corrupted, whole, path = pictures(menagerie, "unet.up.*.cross.v", tokens="subject")
    assert np.abs(path - corrupted).max() > 1e-3 and np.abs(path - whole).max() > 1e-3


def test_names_and_refusals(menagerie):
    world = wb.World("corrupted", PROMPT, subject="zebra")
    whole, path = wb.restored(world, SITE, "clean", through="unet.mid.cross", name="A")
    assert (whole.name, path.name, path.subject) == ("A", "A, through", "zebra")
    assert wb.World.from_json(path.to_json()) == path
    with pytest.raises(ValueError, match="'A' reads world 'clean', which the run lacks"):
        menagerie.run([whole, path])
    with pytest.raises(TypeError, match=r"token=: there is no such argument; did you mean tokens=\?"):
        wb.restored(world, SITE, "clean", through="unet.mid.cross", token="subject")
    with pytest.raises(KeyError, match=r"no site matches 'unet\.qux'"):
        menagerie.run([wb.World("clean", PROMPT), *wb.restored(world, SITE, "clean", through="unet.qux")])
