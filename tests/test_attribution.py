"""Attribution: what one backward pass says of a site is what restoring it does, to first order."""

import numpy as np
import pytest
import torch
from conftest import sd1
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler

import workbench as wb
from workbench.engine.gradients import Attribution
from workbench.interventions import World, add_noise, restore
from workbench.progress import Bar
from workbench.studies.tiny import sharpen

STEPS = 3
ZEBRA, LION = "a zebra in the savanna", "a lion in the savanna"


def brightness(images):
    """Linear in the picture, and not the same for all of it."""
    weights = torch.linspace(-1, 1, images[0].numel(), device=images.device).view(images.shape[1:])
    return (images * weights).mean((1, 2, 3))


def attributed(model, corrupted, interventions, metric=brightness, seeds=(0, 1), guidance=2.0, **how):
    worlds = [corrupted] if isinstance(corrupted, World) else corrupted
    settings = model._settings(STEPS, guidance)
    work = Attribution(model, World("clean", ZEBRA, subject="zebra"), worlds, interventions, settings, metric, **how)
    return work.of(list(seeds), Bar(1, "attribution", shown=False))


def exact(model, corrupted, interventions, seeds=(0, 1), guidance=2.0):
    """What restoring does: (intervention, seed), of `brightness`."""
    worlds = [World("clean", ZEBRA, subject="zebra"), corrupted]
    worlds += [
        World(str(i), corrupted.prompt, [*corrupted.interventions, each], corrupted.subject)
        for i, each in enumerate(interventions)
    ]
    run = model.run(worlds, seeds=seeds, num_inference_steps=STEPS, guidance_scale=guidance, progress=False)
    values = [brightness(torch.tensor(run[world.name].values).permute(0, 3, 1, 2)) for world in worlds]
    return torch.stack(values[2:]) - values[1]


def noisy(sigma=1.0, prompt=ZEBRA):
    return World("corrupted", prompt, [add_noise("text_encoder*.embedding", sigma, tokens="subject")], "zebra")


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, HeunDiscreteScheduler, EulerAncestralDiscreteScheduler], ids=lambda s: s.__name__
)
def test_of_a_small_corruption_it_is_what_restoring_does(model, scheduler, monkeypatch):
    monkeypatch.setattr(model.pipeline, "scheduler", scheduler.from_config(model.pipeline.scheduler.config))
    scale = model.pipeline.text_encoder.get_input_embeddings().weight.std().item()
    sites = [
        "text_encoder.0.attention",
        "text_encoder.1.mlp",
        "text_encoder.0.z",
        "unet.up.1*.cross",
        "unet.down.1*.cross.{k,v}",
    ]
    interventions = [
        restore(sites[0], "clean"),
        restore(sites[1], "clean", tokens="subject"),
        restore(sites[2], "clean", heads=[0]),
    ]
    interventions += [restore(sites[3], "clean", steps=[1]), restore(sites[4], "clean")]
    world = noisy(1e-2 * scale)
    found, patched = torch.stack(attributed(model, world, interventions).effects), exact(model, world, interventions)
    largest = patched.abs().max(1, keepdim=True).values
    assert (largest > 0).all() and ((found - patched).abs() <= 0.05 * largest + 2e-7).all(), (found, patched)


def test_it_leaves_everything_as_it_was(model):
    weight = next(model.pipeline.unet.parameters())
    before, wanted = model.generate(ZEBRA, num_inference_steps=2), weight.requires_grad
    attributed(model, noisy(), [restore("text_encoder.0.mlp", "clean"), restore("unet.up.1*.cross.probs", "clean")])
    after = model.generate(ZEBRA, num_inference_steps=2)
    assert np.array_equal(np.asarray(before[0]), np.asarray(after[0]))
    assert weight.requires_grad == wanted and weight.grad is None and not model.pipeline.unet.is_gradient_checkpointing


class Anything(Attribution):
    """Of streams too."""

    def _check(self, action):
        pass


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_of_a_linear_metric_it_is_exact(model, guidance):
    """The metric of single steps is linear in the predicted noise, whose attribution is therefore the total effect, 1."""
    clean = World("clean", ZEBRA, subject="zebra")
    work = Anything(
        model, clean, [noisy()], [restore("unet.noise", "clean", rows="cond")], model._settings(STEPS, guidance)
    )
    found = work.of([0, 1], Bar(1, "attribution", shown=False))
    assert torch.allclose(found.clean - found.corrupted, torch.ones(2), atol=1e-5)
    assert torch.allclose(found.effects[0], torch.ones(2), atol=1e-5)


def test_heads_add_up_to_the_attention(model):
    """The output projection is linear, so that what its heads carry is what the attention carries."""
    for z, whole in (("text_encoder.0.z", "text_encoder.0.attention"), ("unet.up.1*.cross.z", "unet.up.1*.cross")):
        apart = attributed(model, noisy(), [restore(z, "clean")], over="head").effects[0]
        together = attributed(model, noisy(), [restore(whole, "clean")]).effects[0]
        assert apart.shape[1] == next(iter(model.sites(z))).heads
        assert torch.allclose(apart.sum(1), together, rtol=1e-3, atol=1e-7), (apart.sum(1), together)


def test_all_heads_restored_are_the_attention_restored(model):
    for z, whole in (("text_encoder.0.z", "text_encoder.0.attention"), ("unet.up.1*.cross.z", "unet.up.1*.cross")):
        worlds = [World("clean", ZEBRA)] + [
            World(name, LION, [restore(site, "clean", heads=heads)])
            for name, site, heads in (("heads", z, range(next(iter(model.sites(z))).heads)), ("attention", whole, None))
        ]
        run = model.run(worlds, num_inference_steps=STEPS, progress=False)
        assert np.abs(run["heads"].values - run["attention"].values).max() < 1e-5
        assert np.abs(run["heads"].values - run["clean"].values).max() > 1e-4


def test_probabilities_of_the_text_sum_to_one_and_do_not_look_ahead(model):
    run = model.run(ZEBRA, num_inference_steps=1, record="text_encoder.1.probs", progress=False)
    probs = run.values["text_encoder.1.probs"]
    assert probs.dims == ("world", "seed", "head", "token", "key")
    assert abs(probs.sum("key") - 1).max() < 1e-5 and np.triu(probs.values, 1).max() == 0
    with pytest.raises(ValueError, match=r"heads=.*the attention has heads 0 to"):
        model.run([World("a", ZEBRA, [wb.scale("text_encoder.1.z", 0.0, heads=99)])])


def test_recomputing_in_the_backward_pass_changes_nothing_and_saves_memory(menagerie):
    interventions = [
        restore("text_encoder.0.mlp", "clean"),
        restore("unet.mid.cross", "clean"),
        restore("unet.up.2.0.cross.probs", "clean"),
    ]
    kept, again = (attributed(menagerie, noisy(), interventions, checkpointing=how) for how in (False, True))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-9) for a, b in zip(kept.effects, again.effects))
    clean, settings = World("clean", ZEBRA, subject="zebra"), menagerie._settings(STEPS, 2.0)
    sizes = [
        Attribution(
            menagerie, clean, [noisy()], interventions[:1], settings, brightness, checkpointing=how
        ).bytes_per_image()
        for how in (False, True)
    ]
    assert 3 * sizes[1] < sizes[0]


def test_of_the_embedding_along_the_way_it_adds_up_to_the_total_effect():
    """Completeness of integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365, proposition 1)."""
    torch.manual_seed(0)
    model, points = wb.load(sharpen(sd1())), 50
    sigma = 4 * model.pipeline.text_encoder.get_input_embeddings().weight.std().item()
    worlds = [
        World(
            f"{k}",
            ZEBRA,
            [add_noise("text_encoder.embedding", (1 - (k + 0.5) / points) * sigma, tokens="subject")],
            "zebra",
        )
        for k in range(points)
    ]
    settings = model._settings(1, 3.0)
    clean, whole = World("clean", ZEBRA, subject="zebra"), restore("text_encoder.embedding", "clean")
    # differences are those of the first world given: the corrupted one stands there, counted apart
    work = Attribution(model, clean, [noisy(sigma), *worlds], [whole], settings, brightness)
    only = Attribution(model, clean, [noisy(sigma)], [whole], settings, brightness)
    bar = Bar(1, "attribution", shown=False)
    found, first = work.of([0], bar), only.of([0], bar)
    along = ((points + 1) * found.effects[0] - first.effects[0]) / points
    total = found.clean - found.corrupted
    assert total.abs() > 1e-6 and (along - total).abs() < 0.02 * total.abs(), (along, total)


SPEC = dict(seeds=(0,), draws=1, num_inference_steps=2)


def test_its_effects_are_labelled_as_a_traces(menagerie, tmp_path):
    spec = wb.AttributionSpec(
        sites=("text_encoder.{0,1}.mlp", "unet.mid.cross.v"), tokens=("subject_last", "all"), **SPEC
    )
    prompts = wb.prompt_set("object")[:2]
    found = wb.attribute(menagerie, prompts, spec, folder=tmp_path)
    assert found.attributed.dims == ("metric", "prompt", "draw", "seed", "site", "token", "steps")
    assert list(found.site.values) == ["text_encoder.0.mlp", "text_encoder.1.mlp", "unet.mid.cross.v"]
    assert list(found.layer.values) == ["text_encoder.0", "text_encoder.1", "unet.mid"]
    effects = wb.effects(found, "log_odds")
    assert effects.attrs["unit"] == "log-odds (nats)" and effects.indirect_effect.shape == (3, 2, 1)
    assert wb.open_results(tmp_path).equals(found)
    probability = wb.causal_trace(menagerie, prompts, wb.TraceSpec(sites=("text_encoder.0.mlp",), **SPEC))
    odds = np.log(probability.clean.sel(metric="probability") / (1 - probability.clean.sel(metric="probability")))
    assert np.abs(odds.values - found.clean.sel(metric="log_odds").values).max() < 0.2  # pictures of 8 bits there


def test_single_steps_and_heads_apart(menagerie):
    spec = wb.AttributionSpec(sites=("unet.mid.cross.z",), form="step", over="head", **SPEC)
    found = wb.attribute(menagerie, ZEBRA, spec, subject="zebra")
    assert found.attributed.sizes["head"] == menagerie.sites["unet.mid.cross.z"].heads
    assert np.allclose((found.clean - found.corrupted).values, 1, atol=1e-5)


def test_between_the_worlds_of_every_corruption(menagerie):
    prompt = wb.Prompt(ZEBRA, subject="zebra", value="zebra", replacement="lion")
    prompts = wb.PromptSet("one", (prompt,), wb.prompt_set("object").labels)
    for corruption in ("noise", "zero", "replace"):
        spec = wb.AttributionSpec(sites=("text_encoder.0.mlp",), corruption=corruption, points=2, **SPEC)
        assert np.isfinite(wb.attribute(menagerie, prompts, spec).attributed).all()


@pytest.mark.parametrize(
    "spec, said",
    [
        (dict(sites=("text_encoder.0.hidden",)), "text_encoder.0.hidden is a stream"),
        (dict(sites=("unet.mid.0.resnet",)), "unet.mid.0.resnet is a stream"),
        (dict(over="head"), 'over="head" asks for sites whose heads stand apart'),
        (dict(sites=("unet.mid.cross.probs",), over="channel"), 'over="channel", but its axes are'),
    ],
)
def test_what_cannot_be_attributed_is_refused(menagerie, spec, said):
    with pytest.raises(ValueError, match=said):
        wb.attribute(menagerie, wb.prompt_set("object")[:1], wb.AttributionSpec(**SPEC | spec))


def test_refusals_say_what_to_do(menagerie, monkeypatch):
    prompts = wb.prompt_set("object")[:1]
    with pytest.raises(ValueError, match="nothing to attribute; raise noise_multiple"):
        wb.attribute(menagerie, prompts, wb.AttributionSpec(noise_multiple=0.0, **SPEC))
    bright = wb.Metric("brightness", lambda images: images.mean((1, 2, 3)))
    with pytest.raises(ValueError, match=r'must be a wb.Scorer.*or form="step"'):
        wb.attribute(menagerie, prompts, wb.AttributionSpec(**SPEC), scorer=bright)
    with pytest.raises(ValueError, match="window=3: attributions of neighbours add up"):
        wb.AttributionSpec(window=3)
    with pytest.raises(ValueError, match="points=0: give a whole number"):
        wb.AttributionSpec(points=0)
    monkeypatch.setattr("workbench.localize.attribution.free_bytes", lambda device: 2**20)
    with pytest.raises(MemoryError, match=r"the graph of one image would take .* give checkpointing=True, fewer"):
        wb.attribute(menagerie, prompts, wb.AttributionSpec(**SPEC))
