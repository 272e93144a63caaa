"""First calls of people who know TransformerLens, diffusers or NNsight: what they see names the call that does it here."""

import pytest

import workbench as wb

STEPS = dict(num_inference_steps=1, guidance_scale=7)


@pytest.fixture(scope="module")
def run(menagerie) -> wb.Run:
    return menagerie.run("a zebra", progress=False, **STEPS)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda model, run: model("a zebra"), TypeError, "model.generate(prompt, seeds=0) gives PIL pictures"),
        (
            lambda model, run: model.run_with_cache("a zebra"),
            AttributeError,
            "record='unet.*.cross').values holds the values",
        ),
        (
            lambda model, run: model.run_with_hooks("a zebra"),
            AttributeError,
            "changes are values of a world: model.run(wb.World(",
        ),
        (lambda model, run: model.hooks, AttributeError, "wb.scale('unet.mid.cross', 0.0)"),
        (lambda model, run: model.cfg, AttributeError, "print(model) shows it"),
        (
            lambda model, run: model.to("cuda"),
            AttributeError,
            "model.pipeline.to('cuda'), or loaded there: wb.load(..., device=",
        ),
        (lambda model, run: model.pipe, AttributeError, "the pipeline itself is model.pipeline"),
        (lambda model, run: model.unet, AttributeError, "the pipeline itself is model.pipeline, with its parts"),
        (lambda model, run: model.site, AttributeError, "did you mean .sites?"),
        (lambda model, run: run.show(), AttributeError, "run.pil()[0].save('x.png') writes one"),
        (lambda model, run: run.cache, AttributeError, "run.values holds what record= named"),
        (lambda model, run: wb.load(model.pipeline.unet), ValueError, "or a diffusers pipeline"),
        (
            lambda model, run: wb.load("runwayml/stable-diffusion-v1-5"),
            FileNotFoundError,
            "the hub is offline (HF_HUB_OFFLINE)",
        ),
        (
            lambda model, run: wb.load(torch_dtype="float16"),
            TypeError,
            "there is no such argument; did you mean dtype=?",
        ),
        (lambda model, run: model.run(prompt="a zebra"), TypeError, "give it first, run('a zebra')"),
        (lambda model, run: model.run("a zebra", seed=3), TypeError, "it is called seeds=, one or several"),
        (lambda model, run: model.run("a zebra", steps=20), TypeError, "did you mean num_inference_steps=?"),
        (
            lambda model, run: model.run(),
            TypeError,
            "worlds= is missing; it is called as Model.run(worlds, *, seeds=(0,)",
        ),
        (lambda model, run: model.generate("a zebra", generator=1), TypeError, "noise is drawn from seeds="),
        (lambda model, run: wb.scale("unet.mid.cross", 2.0, token="zebra"), TypeError, "did you mean tokens=?"),
        (
            lambda model, run: wb.scale("unet.mid.cross"),
            TypeError,
            "scale: factor= is missing; it is called as scale(sites, factor",
        ),
        (lambda model, run: wb.window(0.0, 0.5, 1.0), TypeError, "window() takes 2 positional arguments"),
    ],
)
def test_calls_of_other_tools_are_answered_with_ours(menagerie, run, call, error, text):
    with pytest.raises(error) as raised:
        call(menagerie, run)
    assert text in str(raised.value) and "\n" not in str(raised.value)


def test_calls_that_are_the_same_here(menagerie):
    """As diffusers has them."""
    (picture,) = menagerie.generate("a zebra", **STEPS)
    assert picture.size == (64, 64) and menagerie.run("a zebra", **STEPS).pil()[0].tobytes() == picture.tobytes()


def test_what_fails_inside_a_property_is_not_hidden(menagerie, monkeypatch):
    broken = property(lambda self: self.pipeline.no_such_part)
    monkeypatch.setattr(wb.Model, "record", broken)
    with pytest.raises(AttributeError, match="no_such_part"):
        _ = menagerie.record
    assert not hasattr(menagerie, "_ipython_display_") and not hasattr(menagerie, "__array__")
