"""Laws of the engine, on random tiny pipelines of every family."""

import re

import numpy as np
import pytest
import torch

from workbench import (
    World,
    ablate,
    add_noise,
    apply,
    map_input,
    mix_attention,
    replace_prompt,
    restore,
    scale,
    steer,
    window,
)
from workbench.engine import Fold
from workbench.interventions import Intervention
from workbench.models import DATA

STEPS = 3
ZEBRA, LION = "a zebra in the savanna", "a lion on the beach at night"


def run(model, *worlds, seeds=(0, 1), **more):
    return model.run(worlds, **dict(seeds=seeds, num_inference_steps=STEPS, guidance_scale=3.0) | more)


def same(run, a, b):
    return np.array_equal(run.images.sel(world=a), run.images.sel(world=b))


def far(run, a, b):
    return float(np.abs(run.images.sel(world=a) - run.images.sel(world=b)).max()) > 1e-4


def test_without_interventions_it_is_the_plain_pipeline(model):
    ours = run(model, World("a", ZEBRA), World("b", LION))
    plain = model.pipeline(
        [ZEBRA, ZEBRA, LION, LION],
        latents=model.latents([0, 1, 0, 1]),
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        output_type="np",
    ).images
    assert np.array_equal(ours.images.values.reshape(plain.shape), plain)
    assert ours.images.dims == ("world", "seed", "y", "x", "colour") and list(ours.images.world.values) == ["a", "b"]


def test_identity_interventions_change_nothing(model):
    width = model.sites("text_encoder.1.mlp")[0].sizes[-1]
    channels = model.sites("unet.mid.0.resnet")[0].sizes[0]
    out, context = model.sites("unet.mid*.cross.k")[0].sizes[-1], model.sites("unet.mid*.context")[0].sizes[-1]
    identities = {
        "restore": restore(
            ["text_encoder.*.[!p]*", "unet.*.resnet", "unet.*.{ff,z}"], "clean"
        ),  # all but probabilities
        "steer": steer("text_encoder.1.mlp", np.ones(width), 0.0),
        "steer image": steer("unet.mid.0.resnet", np.ones(channels), 0.0),
        "scale": scale(["text_encoder.0.attention", "unet.*.cross", "unet.noise", "vae.latents"], 1.0),
        "noise": add_noise("text_encoder.embedding", 0.0, tokens="zebra"),
        "map": map_input("unet.mid*.cross.{k,v}", np.ones((out, 1)), np.zeros((1, context)), rows="both"),
        "replace": replace_prompt("unet.*.cross.context", ZEBRA),
    }
    found = run(
        model,
        World("clean", ZEBRA),
        *[World(name, ZEBRA, [what]) for name, what in identities.items()],
        guidance_scale=3.0,
    )
    # row by row against the same batch without them: rows of one batch may round differently among themselves
    plain = run(model, World("clean", ZEBRA), *[World(name, ZEBRA) for name in identities], guidance_scale=3.0)
    for name in identities:
        difference = float(np.abs(found.images.sel(world=name) - plain.images.sel(world=name)).max())
        # the same prompt encoded alone and in a batch sums in another order; all else is exact
        assert difference < 1e-4 if name == "replace" else difference == 0, name


def test_restoring_everything_is_clean_and_nothing_is_corrupted(model):
    noise = add_noise("text_encoder*.embedding", 1.0, seed=1, tokens="subject")
    last = ["text_encoder_2.pooled"] if is_xl(model) else []
    worlds = [
        World("clean", ZEBRA),
        World("corrupted", ZEBRA, [noise], subject="zebra"),
        World("embedding", ZEBRA, [noise, restore("text_encoder*.embedding", "clean")], subject="zebra"),
        World("late", ZEBRA, [noise, restore(["text_encoder*.hidden", *last], "clean")], subject="zebra"),
        World("noise", ZEBRA, [noise, restore("unet.noise", "clean")], subject="zebra"),
    ]
    found = run(model, *worlds)
    assert far(found, "clean", "corrupted")
    for name in ("embedding", "late", "noise"):
        assert same(found, "clean", name), name


def is_xl(model):
    return hasattr(model.pipeline, "text_encoder_2")


def test_a_row_is_its_own(model):
    """Interventions in one world never touch another, and a world alone is the world in a batch."""
    hit = World("hit", ZEBRA, [scale("unet.mid.0.resnet", 3.0), ablate("text_encoder.0.attention")])
    together = run(model, World("clean", ZEBRA), hit, World("other", LION))
    without = run(model, World("clean", ZEBRA), World("hit", ZEBRA), World("other", LION))
    for name in ("clean", "other"):
        assert np.array_equal(together.images.sel(world=name), without.images.sel(world=name))
    assert far(together, "clean", "hit")
    alone = run(model, hit, seeds=(1,))
    assert np.allclose(alone.images.sel(world="hit", seed=1), together.images.sel(world="hit", seed=1), atol=1e-4)


def test_splitting_batches_carries_the_sources(model):
    worlds = [World("clean", ZEBRA), World("corrupted", LION)]
    worlds += [World(f"restored {i}", LION, [restore(f"text_encoder.{i}.hidden", "clean")]) for i in range(2)]
    worlds.append(World("restored", LION, [restore("unet.*.cross", "clean")]))
    whole, split = run(model, *worlds, batch_size=16), run(model, *worlds, batch_size=2)
    assert np.allclose(whole.images, split.images, atol=1e-4)
    with pytest.raises(
        ValueError,
        match=r"world 'restored' with those that it reads, \['clean', 'restored'\], is 2 rows; raise batch_size=1",
    ):
        run(model, *worlds, batch_size=1)


def test_all_layers_given_another_prompt_generate_it(model):
    whole = World("swapped", ZEBRA, [replace_prompt("unet.*.cross.context", LION)])
    parts = World("k and v", ZEBRA, [replace_prompt("unet.*.cross.{k,v}", LION)])
    found = run(model, World("zebra", ZEBRA), World("lion", LION), whole, parts)
    assert far(found, "zebra", "lion")
    for name in ("swapped", "k and v"):
        pooled = is_xl(model)  # the pooled vector stays the zebra's
        assert np.allclose(found.images.sel(world=name), found.images.sel(world="lion"), atol=1e-4) != pooled, name


def test_attention_is_mixed_from_the_source(model):
    site = "unet.mid*.cross.probs"
    length = model.pipeline.tokenizer.model_max_length
    worlds = [
        World("source", ZEBRA),
        World("target", LION),
        World("none", LION, [mix_attention(site, "source", 0.0)]),
        World("all", LION, [mix_attention(site, "source", 1.0)]),
        World("mapped", LION, [mix_attention(site, "source", 1.0, mapper=np.eye(length))]),
        World("window", LION, [mix_attention(site, "source", 1.0, steps=window(0.0, 0.4))]),
    ]
    found = run(model, *worlds, record=[site])
    name = next(iter(found.values))
    probs = found.values[name]
    assert probs.dims == ("world", "seed", "step", "head", "pixel", "token")
    assert np.allclose(probs.sum("token"), 1, atol=1e-5)
    assert same(found, "target", "none") and same(found, "all", "mapped")
    assert np.array_equal(probs.sel(world="all", step=0), probs.sel(world="source", step=0))
    assert np.array_equal(probs.sel(world="window", step=0), probs.sel(world="source", step=0))
    assert not np.array_equal(probs.sel(world="window", step=2), probs.sel(world="source", step=2))


def test_explicit_attention_is_close_to_the_fused_one(model):
    plain, read = run(model, World("a", ZEBRA)), run(model, World("a", ZEBRA), record=["unet.*.probs"])
    assert np.allclose(plain.images, read.images, atol=1e-4)
    assert not any(type(p).__name__ == "ExplicitAttention" for p in model.pipeline.unet.attn_processors.values())


def test_recorded_values_are_those_that_hooks_see(model):
    """At every step, at a site that is also read by others: no occurrence is taken for another."""
    names = ["unet.mid.0.resnet", "unet.up.0.0.resnet", "text_encoder.1.mlp", "unet.noise"]
    seen = {name: [] for name in names}
    handles = []
    for site in model.sites(*names):
        part = dict(model.nn._module.named_modules())[site.module]
        handles.append(part.register_forward_hook(lambda m, a, out, name=site.name: seen[name].append(out.clone())))
    found = run(model, World("a", ZEBRA), World("b", ZEBRA, [scale("unet.mid.0.resnet", 1.0)]), record=names)
    for handle in handles:
        handle.remove()
    for name in names[:2] + names[3:]:
        steps = torch.stack([value[4:] for value in seen[name]], 1)  # the conditional half
        assert steps.shape[1] == STEPS
        assert np.array_equal(found.values[name].values.reshape(steps.shape), steps)
    assert np.array_equal(
        found.values["text_encoder.1.mlp"].values.reshape(seen["text_encoder.1.mlp"][0].shape),
        seen["text_encoder.1.mlp"][0],
    )


def test_only_the_named_steps_rows_tokens_and_heads_change(model):
    site = "unet.mid*.cross.v"
    clean = World("clean", ZEBRA)
    changes = {"steps": dict(steps=[1]), "tokens": dict(tokens="zebra"), "heads": dict(heads=[0])}
    worlds = [World(name, ZEBRA, [ablate(site, **where)], subject="zebra") for name, where in changes.items()]
    found = run(model, clean, *worlds, record=[site])
    values = next(iter(found.values.values()))
    width = values.sizes["channel"] // model.sites(site)[0].heads
    assert (
        np.array_equal(values.sel(world="steps", step=0), values.sel(world="clean", step=0))
        and not values.sel(world="steps", step=1).any()
    )
    tokens = values.sel(world="tokens", step=0)
    assert not tokens.isel(token=2).any() and np.array_equal(
        tokens.isel(token=3), values.sel(world="clean", step=0).isel(token=3)
    )
    heads = values.sel(world="heads", step=0)
    assert not heads[..., :width].any() and np.array_equal(
        heads[..., width:], values.sel(world="clean", step=0)[..., width:]
    )


def test_rows_name_the_halves_of_a_guided_batch(model):
    """Scaling the noise prediction by a at both halves scales the guided one; at one half it does not."""
    both, cond, uncond = (
        World(rows, ZEBRA, [scale("unet.noise", 0.5, rows=rows)]) for rows in ("both", "cond", "uncond")
    )
    found = run(model, World("clean", ZEBRA), both, cond, uncond)
    assert all(
        far(found, a, b) for a in ("both", "cond", "uncond") for b in ("clean", "both", "cond", "uncond") if a < b
    )
    default = run(
        model, World("default", ZEBRA, [scale("unet.noise", 0.5)]), both, World("x", ZEBRA), World("y", ZEBRA)
    )
    assert same(default, "default", "both")


def test_fired_counts_are_reported_and_checked(model, monkeypatch):
    found = run(
        model,
        World(
            "a",
            ZEBRA,
            [scale(["unet.mid.0.resnet", "unet.mid.1.resnet"], 1.0, steps=[0, 2]), scale("text_encoder.1.mlp", 1.0)],
        ),
    )
    assert found.fired == {("a", 0): 4, ("a", 1): 1}
    from workbench.engine import Batch

    monkeypatch.setattr(Batch, "touch", lambda self, module, site, call: module.output)
    with pytest.raises(RuntimeError, match=r"interventions fired .* times, expected \{\('a', 0\): 3\}"):
        run(model, World("a", ZEBRA, [scale("unet.mid.0.resnet", 2.0)]))


@pytest.mark.parametrize(
    ("error", "text", "intervention"),
    [
        (KeyError, "no site matches 'unet.middle'", lambda: scale("unet.middle", 2.0)),
        (ValueError, "'giraffe' is not in the prompt", lambda: scale("text_encoder.0.mlp", 2.0, tokens="giraffe")),
        (ValueError, "names no subject", lambda: scale("text_encoder.0.mlp", 2.0, tokens="subject")),
        (
            ValueError,
            "steps=[3]: the run has steps 0 to 2; raise num_inference_steps",
            lambda: scale("unet.noise", 2.0, steps=[1, 3]),
        ),
        (ValueError, "shares of the run go from 0.0 to 1.0", lambda: scale("unet.noise", 2.0, steps=window(0.5, 1.5))),
        (
            ValueError,
            "window(0.1, 0.15) holds none of the run's 3 steps",
            lambda: scale("unet.noise", 2.0, steps=window(0.1, 0.15)),
        ),
        (
            ValueError,
            "whole numbers are steps; for a share of the run write steps=wb.window(0.0, 0.5)",
            lambda: scale("unet.noise", 2.0, steps=(0.0, 0.5)),
        ),
        (ValueError, "steps=-1: steps are counted from 0", lambda: scale("unet.noise", 2.0, steps=-1)),
        (ValueError, "steps='all': give whole numbers", lambda: scale("unet.noise", 2.0, steps="all")),
        (ValueError, "channels=[99999], the site has channels 0 to", lambda: scale("unet.noise", 2.0, channels=99999)),
        (ValueError, "heads=[7], the attention has heads 0 to", lambda: scale("unet.mid*.self.q", 2.0, heads=7)),
        (ValueError, 'to="mean" over which axis? The site has', lambda: ablate("unet.mid*.cross.probs", "mean")),
        (
            ValueError,
            "over='token', but the site's axes are ('channel', 'y', 'x')",
            lambda: ablate("unet.noise", "mean", over="token"),
        ),
        (
            ValueError,
            "reads world 'clear', which the run lacks; its worlds are ['a']",
            lambda: restore("unet.noise", "clear"),
        ),
        (
            ValueError,
            "the site's axes are ('row', 'channel', 'y', 'x'); leave tokens out",
            lambda: scale("unet.noise", 2.0, tokens="eos"),
        ),
        (
            ValueError,
            "the text encoder runs once, outside the steps; leave steps out",
            lambda: scale("text_encoder.0.mlp", 2.0, steps=[0]),
        ),
        (
            ValueError,
            "the negative prompt alone is not the world's",
            lambda: scale("text_encoder.0.mlp", 2.0, rows="uncond"),
        ),
        (
            ValueError,
            "b is 5 x 1 and a 1 x 2, the site's weight ",
            lambda: map_input("text_encoder.0.fc1", [[1.0]] * 5, [[1.0, 2.0]]),
        ),
        (
            ValueError,
            "unet.noise has no weight of its own, Conv2d gives it",
            lambda: map_input("unet.noise", [[1.0]], [[1.0]]),
        ),
        (
            ValueError,
            "heads are apart only at q, k, v, probs and z sites",
            lambda: scale("unet.mid.0.resnet", 2.0, heads=0),
        ),
        (ValueError, "it was made for 5 channels, the site has ", lambda: steer("text_encoder.0.mlp", [1.0] * 5)),
        (ValueError, "mix_attention works at probs sites", lambda: mix_attention("unet.noise", "a")),
        (ValueError, "replace_prompt works at cross-attention's", lambda: replace_prompt("unet.noise", LION)),
        (ValueError, "worlds read one another in a circle: a -> a", lambda: restore("unet.noise", "a")),
        (ValueError, "rows='left': may be 'cond', 'uncond', 'both'", lambda: scale("unet.noise", 2.0, rows="left")),
        (
            ValueError,
            "to='one': may be 'zero', 'mean', 'resample'",
            lambda: ablate("unet.noise", "one"),
        ),
    ],
)
def test_bad_input_is_told_before_anything_runs(model, monkeypatch, error, text, intervention):
    monkeypatch.setattr(type(model.pipeline), "__call__", lambda *a, **k: pytest.fail("the pipeline ran"))
    with pytest.raises(error) as raised:
        run(model, World("a", ZEBRA, [intervention()]))
    assert text in str(raised.value)


def test_an_exception_leaves_the_model_as_it_was(model):
    def weights_and_hooks():
        modules = [m for m in model.nn._module.modules() if isinstance(m, torch.nn.Module)]
        processors = {name: id(p) for name, p in model.pipeline.unet.attn_processors.items()}
        return [p.detach().clone() for m in modules for p in m.parameters(recurse=False)], processors

    before = run(model, World("a", ZEBRA))
    weights, processors = weights_and_hooks()
    with pytest.raises(
        FloatingPointError, match=r"images of worlds \['b'\] are not finite: weaken their interventions"
    ):
        run(model, World("a", ZEBRA), World("b", ZEBRA, [apply("unet.*.probs", lambda x: x * float("nan"))]))
    with pytest.raises(ZeroDivisionError):
        run(model, World("a", ZEBRA, [apply("unet.*.probs", lambda x: 1 / 0)]))
    weights_after, processors_after = weights_and_hooks()
    assert processors == processors_after and all(torch.equal(a, b) for a, b in zip(weights, weights_after))
    assert np.array_equal(run(model, World("a", ZEBRA)).images, before.images)


def test_interventions_are_values():
    made = [
        restore("unet.*.resnet", "clean", steps=range(0, 5)),
        add_noise("text_encoder.embedding", 0.3, seed=4, tokens="subject"),
        replace_prompt("unet.*.cross.context", "a lion", steps=window(0.2, 0.6)),
        steer("text_encoder.0.mlp", [0.5, -1.0], 2.0, tokens=[1, 2], keep_norm=True),
        ablate("unet.mid.cross", "resample", "other"),
        scale("unet.mid.cross.v", 0.0, heads=(0, 1), rows="uncond"),
        mix_attention("unet.*.probs", "source", [1.0, 0.5], [[1.0, 0.0], [0.0, 1.0]]),
        map_input("unet.*.cross.k", [[1.0], [0.5]], [[1.0, 0.0]], rows="both"),
        ablate("unet.*.cross.probs", "mean", over="head"),
        scale("unet.mid.cross.k", 0.5, channels=[3, 4], steps=2),
    ]
    for intervention in made:
        assert Intervention.from_json(intervention.to_json()) == intervention
        assert hash(intervention) == hash(Intervention.from_json(intervention.to_json()))
        assert type(intervention.rule).__name__ in repr(intervention)
    assert len(set(made)) == len(made)
    world = World("w", ZEBRA, made, subject="zebra")
    assert World.from_json(world.to_json()) == world


# What NNsight gets wrong without an error, one test each. The reference is plain PyTorch hooks.


def by_hooks(model, prompts, seeds, edits):
    """Images (row, y, x, colour) of rows of prompts, where `edits` maps a site to {step: function of its value}."""
    pipeline, counter, handles = model.pipeline, [-1], []
    handles.append(pipeline.unet.register_forward_pre_hook(lambda *_: counter.__setitem__(0, counter[0] + 1)))
    for name, changes in edits.items():
        part = model.nn._module.get_submodule(name)
        handles.append(
            part.register_forward_hook(lambda m, a, out, changes=changes: changes.get(counter[0], lambda x: x)(out))
        )
    try:
        return pipeline(
            prompts, latents=model.latents(seeds), num_inference_steps=STEPS, guidance_scale=3.0, output_type="np"
        ).images
    finally:
        for handle in handles:
            handle.remove()


def times(factor, rows):
    return lambda value: torch.cat([value[i : i + 1] * (factor if i in rows else 1) for i in range(len(value))])


def test_a_step_is_not_taken_for_the_next(model):
    """Asked for in an order that is not the execution's, at some steps only: each change lands at its own step."""
    late, early = "unet.noise", "unet.mid.0.resnet"
    changes = [
        scale(late, 1.5, steps=[1]),
        scale(early, 3.0, steps=[0, 2]),
        scale("unet.down.0.0.resnet", 0.5, steps=[1]),
    ]
    ours = run(model, World("a", ZEBRA), World("b", ZEBRA, changes), seeds=(0,)).images.sel(world="b", seed=0)
    path = {site.name: site.module for site in model.sites(late, early, "unet.down.0.0.resnet")}
    rows = (1, 3)  # of [uncond a, uncond b, cond a, cond b]
    plain = by_hooks(
        model,
        [ZEBRA, ZEBRA],
        [0, 0],
        {
            path[late]: {
                1: lambda out: (times(1.5, rows)(out[0]),) if isinstance(out, tuple) else times(1.5, rows)(out)
            },
            path[early]: {0: times(3.0, rows), 2: times(3.0, rows)},
            path["unet.down.0.0.resnet"]: {1: times(0.5, rows)},
        },
    )
    assert np.allclose(ours, plain[1], atol=1e-6)
    assert np.abs(ours - by_hooks(model, [ZEBRA, ZEBRA], [0, 0], {})[1]).max() > 1e-4


def test_edits_of_several_prompts_under_guidance_are_kept(model):
    worlds = [World("a", ZEBRA), World("b", LION, [scale("unet.mid.0.resnet", 3.0)]), World("c", "a red car")]
    ours = run(model, *worlds, seeds=(0,)).images.isel(seed=0)
    path = model.sites("unet.mid.0.resnet")[0].module
    plain = by_hooks(
        model, [ZEBRA, LION, "a red car"], [0, 0, 0], {path: {step: times(3.0, (1, 4)) for step in range(STEPS)}}
    )
    assert np.allclose(ours, plain, atol=1e-6)


def test_a_range_of_steps_keeps_its_stride(model):
    strided = run(model, World("a", ZEBRA, [scale("unet.noise", 1.5, steps=range(0, 3, 2))]))
    listed = run(model, World("a", ZEBRA, [scale("unet.noise", 1.5, steps=[0, 2])]))
    assert strided.fired == {("a", 0): 2} and np.array_equal(strided.images, listed.images)


def test_a_slicing_vae_changes_nothing_or_is_refused(model):
    worlds = [World("a", ZEBRA), World("b", LION, [scale("unet.mid.0.resnet", 3.0)])]
    whole = run(model, *worlds)
    model.pipeline.vae.enable_slicing()
    try:
        sliced = run(model, *worlds)
        assert np.allclose(sliced.images, whole.images, atol=1e-5) and np.array_equal(sliced.latents, whole.latents)
        with pytest.raises(
            ValueError, match=r"vae.latents in world 'a': the VAE decodes image by image .* call vae.disable_slicing"
        ):
            run(model, World("a", ZEBRA, [scale("vae.latents", 1.0)]))
    finally:
        model.pipeline.vae.disable_slicing()


def test_no_backward_stands_on_the_line_of_its_with():
    """After `import nnsight`, `with context(): loss.backward()` on one line never runs: nothing of ours may be so written."""
    root = DATA.parent
    files = [path for folder in ("workbench", "notebooks", "tests") for path in (root / folder).rglob("*.py")]
    assert len(files) > 20
    written = [
        (path.name, line)
        for path in files
        for line in path.read_text().splitlines()
        if re.match(r"\s*with .*:\s*\S.*backward\(", line)
    ]
    assert written == []


def test_an_empty_selection_of_tokens_is_refused(model):
    with pytest.raises(ValueError, match=r"tokens='after_subject' names no token of .*; name others"):
        run(
            model,
            World(
                "a",
                "in the savanna a zebra",
                [scale("text_encoder.0.mlp", 2.0, tokens="after_subject")],
                subject="zebra",
            ),
        )


def test_the_pipelines_own_progress_bar_is_left_as_it_was(model, capsys):
    before = dict(model.pipeline._progress_bar_config)
    run(model, World("a", ZEBRA))
    assert model.pipeline._progress_bar_config == before


def test_what_a_function_writes_in_place_stays_with_it(model):
    """Its result alone is taken, at the entries that are named; neither these nor another world's value are its own to change."""
    site = "text_encoder.1.mlp"

    def emptied(value, source=None):
        for each in (value, source):
            if each is not None:
                each.zero_()
        return value

    worlds = [
        World("clean", ZEBRA),
        World("zeros", ZEBRA, [scale(site, 0.0, tokens="zebra")]),
        World("in place", ZEBRA, [apply(site, emptied, tokens="zebra")]),
        World("both", ZEBRA, [apply(site, emptied, "clean", tokens="zebra")]),
        World("as given", ZEBRA, [apply(["unet.*.resnet", "unet.*.cross.probs", "latents"], lambda value: value)]),
    ]
    found = run(model, *worlds)
    plain = run(model, World("clean", ZEBRA), *[World(world.name, ZEBRA) for world in worlds[1:]])
    assert far(found, "clean", "zeros") and same(found, "zeros", "in place") and same(found, "zeros", "both")
    for name in ("clean", "as given"):
        assert np.allclose(found.images.sel(world=name), plain.images.sel(world=name), atol=1e-4)


def test_recordings_of_one_name_or_of_other_axes_are_refused(model):
    def mean(total, call, worlds, value):
        return value.mean((-2, -1))

    site = next(iter(model.sites(model.family.layers))).name
    fold = Fold("mean", (site,), (), mean)
    for record in ([fold, fold], [site, Fold(site, (site,), (), mean)]):
        with pytest.raises(
            ValueError, match=r"record: \[.*\] are recorded more than once; give each wb.Fold a name of its own"
        ):
            run(model, World("clean", ZEBRA), record=record)
    with pytest.raises(ValueError, match=r"Fold\('none'\): update returned None in every call"):
        run(model, World("clean", ZEBRA), record=Fold("none", (site,), (), lambda *given: None))
    with pytest.raises(
        ValueError, match=r"Fold\('mean'\): update returned \(1,\); return a tensor \(row, pixel\) of 1 rows, or name"
    ):
        run(model, World("clean", ZEBRA), seeds=(0,), record=Fold("mean", (site,), ("pixel",), mean))
