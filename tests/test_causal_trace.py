"""Causal tracing: its laws on random pipelines, its promises on disk, its meaning on the menagerie."""

import json

import conftest
import numpy as np
import pytest
import xarray as xr
from scipy import stats

import workbench as wb
from workbench import Prompt, PromptSet, TraceSpec, causal_trace, effects
from workbench.localize import causal_trace as module

LABELS = {"zebra": ("a zebra",), "lion": ("a lion",), "flamingo": ("a flamingo",)}
ZEBRA = Prompt("a zebra in the savanna", "zebra", "zebra", "lion")
FLAMINGO = Prompt("a flamingo in the savanna", "flamingo", "flamingo", "lion")
PROMPTS = PromptSet("three", (ZEBRA, Prompt("a photo of a lion", "lion", "lion", "zebra"), FLAMINGO), LABELS)
QUICK = dict(num_inference_steps=2, guidance_scale=3.0, seeds=(0, 1))


def trace(model, scorer, prompts=PROMPTS, folder=None, **spec):
    return causal_trace(model, prompts, TraceSpec(**QUICK | spec), scorer=scorer, folder=folder)


def close(a, b, tolerance=1e-5) -> bool:
    """Whether labelled arrays agree wherever both are."""
    return float(abs(a - b).max()) <= tolerance


def test_restoring_what_was_corrupted_is_clean(model, scorer):
    found = trace(model, scorer, sites=("text_encoder*.embedding",), window=2, tokens=("subject", "eos"), draws=2)
    if not hasattr(model.pipeline, "text_encoder_2"):  # there, the other encoder stays corrupted
        restored = found.restored.sel(token="subject", steps="0-1").squeeze("site")
        assert close(restored, found.clean)
        assert close(effects(found, "ssim").recovery.sel(token="subject"), 1, 1e-3)
    # the end token's embedding was not corrupted: restoring it restores nothing
    assert close(found.restored.sel(token="eos"), found.corrupted)
    assert float(np.abs(found.corrupted.sel(metric="pixel_distance")).min()) > 0


def test_restoring_the_last_layer_at_all_tokens_is_clean(menagerie, scorer):
    """On the menagerie, whose text enters through nothing else."""
    found = trace(menagerie, scorer, PROMPTS[:1], sites=("text_encoder.11.hidden",), tokens=("all", "each"), draws=1)
    assert close(found.restored.sel(token="all"), found.clean, 1e-4)
    assert close(found.restored.sel(token="1:a"), found.corrupted, 1e-4)  # a causal encoder knows nothing of what comes


def test_without_noise_there_is_nothing_to_recover(model, scorer):
    found = trace(model, scorer, sites=("text_encoder.0.mlp", "unet.mid.0.resnet"), noise_multiple=0.0, draws=1)
    assert close(found.corrupted, found.clean)
    measured = effects(found, "similarity")
    assert np.allclose(measured.total_effect, 0, atol=1e-5) and measured.recovery.isnull().all()


@pytest.mark.parametrize("corruption", ["zero", "replace"])
def test_other_corruptions(model, scorer, corruption):
    two = PromptSet("two", PROMPTS.prompts[:2], LABELS)
    found = trace(
        model,
        scorer,
        two,
        sites=("text_encoder.1.hidden", "unet.mid*.cross"),
        tokens=("subject", "all"),
        corruption=corruption,
        draws=1,
    )
    if corruption == "replace":  # the corrupted world is the other word's
        other = model.run([wb.World("w", "a lion in the savanna")], **QUICK)
        assert np.allclose(
            found.corrupted.sel(metric="similarity", prompt=0, draw=0),
            scorer.similarity(wb.as_pil(other.images.sel(world="w")), ZEBRA.prompt),
            atol=1e-3,
        )
    assert found.restored.sel(site="text_encoder.1.hidden").notnull().all()
    cross = found.restored.sel(site=[name for name in found.site.values if name.startswith("unet")])
    assert cross.sel(token="all").notnull().all() and cross.sel(token="subject").isnull().all()


def test_windows_restore_neighbours_of_one_kind(model):
    sites = model.sites("text_encoder.*.{attention,mlp}")
    windows = {centre.name: [site.name for site in found] for centre, found in module._windows(sites, 2)}
    assert windows["text_encoder.0.mlp"] == ["text_encoder.0.mlp", "text_encoder.1.mlp"]
    last = sites[-2].name
    assert windows[last] == [last] and last.endswith(".attention")  # cut at the end
    assert [site.name for site in dict(module._windows(sites, 3))[sites[0]]] == [
        "text_encoder.0.attention",
        "text_encoder.1.attention",
    ]


def test_a_token_that_a_prompt_lacks_is_missing_not_zero(model, scorer):
    found = trace(model, scorer, sites=("text_encoder.0.mlp",), tokens=("after_subject",), draws=1)
    assert found.restored.isnull().any(["metric", "draw", "seed", "site", "token", "steps"]).values.tolist() == [
        False,
        True,
        False,
    ]
    assert effects(found, "similarity").prompts.item() == 2


def test_a_trace_that_was_stopped_goes_on(scorer, tmp_path, monkeypatch):
    model = wb.load(conftest.sd1())
    spec = dict(sites=("text_encoder.0.mlp", "unet.mid.0.resnet"), draws=2)
    whole = trace(model, scorer, **spec)
    calls, measure = [], module.Tracing.measure

    def stopped(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return measure(*args)

    monkeypatch.setattr(module.Tracing, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        trace(model, scorer, folder=tmp_path / "t", **spec)
    assert len(list((tmp_path / "t").glob("*.parquet"))) == 2
    part = wb.open_results(tmp_path / "t")
    assert part.sizes["prompt"] == 1 and part.sizes["draw"] == 2
    monkeypatch.setattr(module.Tracing, "measure", lambda *args: calls.append(1) or measure(*args))
    resumed = trace(model, scorer, folder=tmp_path / "t", **spec)
    assert len(calls) == 6  # 3 prompts x 2 draws: nothing twice
    xr.testing.assert_allclose(resumed, whole, atol=1e-6)
    monkeypatch.setattr(module.Tracing, "measure", lambda *args: pytest.fail("computed again"))
    xr.testing.assert_identical(trace(model, scorer, folder=tmp_path / "t", **spec), wb.open_results(tmp_path / "t"))
    asked = json.loads(resumed.attrs["spec"])
    assert asked["scorer"]["model"] == "the menagerie's grader" and len(asked["scorer"]["weights"]) == 64
    assert asked["model"]["scheduler"]["class"] == "DDIMScheduler" and asked["sigmas"]["text_encoder.embedding"] > 0
    assert json.loads(resumed.attrs["versions"])["nnsight"].startswith("0.8")


def test_a_folder_of_another_trace_is_refused(model, scorer, tmp_path):
    spec = dict(sites=("text_encoder.0.mlp",), draws=1)
    trace(model, scorer, PROMPTS[:1], folder=tmp_path / "t", **spec)
    with pytest.raises(
        ValueError,
        match=r"holds the results of another specification; .*\n  noise_multiple: the folder has 3.0, asked 5.0",
    ):
        trace(model, scorer, PROMPTS[:1], folder=tmp_path / "t", **spec, noise_multiple=5.0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(
        ValueError,
        match=r"holds files but no spec.json that says of which experiment: thesis.tex; name an empty",
    ):
        trace(model, scorer, PROMPTS[:1], folder=tmp_path / "other", **spec)
    with pytest.raises(
        FileNotFoundError, match=r"no spec.json with finished parts there \(it holds \['thesis.tex'\]\)"
    ):
        wb.open_results(tmp_path / "other")


@pytest.mark.parametrize(
    ("error", "text", "prompts", "spec"),
    [
        (KeyError, "no site matches 'text_encoder.99.mlp'", PROMPTS, dict(sites=("text_encoder.99.mlp",))),
        (
            ValueError,
            "'giraffe' is not in the prompt 'a lion'",
            PromptSet("x", (Prompt("a lion", "giraffe", "lion"),), LABELS),
            {},
        ),
        (ValueError, "'savanna' is not in the prompt 'a photo of a lion'", PROMPTS, dict(tokens=("savanna",))),
        (
            ValueError,
            "windows are shares of the run, from 0.0 to 1.0",
            PROMPTS,
            dict(sites=("unet.mid.0.resnet",), steps=((0.5, 2.0),)),
        ),
        (
            ValueError,
            "'flamingo' and 'lion' have different numbers of tokens",
            PROMPTS[2:],
            dict(corruption="replace", draws=1),
        ),
        (
            ValueError,
            "has no replacement for 'lion'",
            PromptSet("x", (Prompt("a lion", "lion", "lion"),), LABELS),
            dict(corruption="replace", draws=1),
        ),
        (
            ValueError,
            'tokens="each": positions mean different things in different prompts',
            PROMPTS,
            dict(tokens=("each",)),
        ),
        (
            ValueError,
            "corruption='zero' has nothing random, but draws=3; give draws=1",
            PROMPTS,
            dict(corruption="zero"),
        ),
        (ValueError, "corruption='blur': may be 'noise', 'replace', 'zero'", PROMPTS, dict(corruption="blur")),
        (ValueError, "seeds=() holds no seed", PROMPTS, dict(seeds=())),
    ],
)
def test_bad_input_is_told_before_anything_runs(menagerie, scorer, monkeypatch, error, text, prompts, spec):
    monkeypatch.setattr(type(menagerie.pipeline), "__call__", lambda *a, **k: pytest.fail("the pipeline ran"))
    with pytest.raises(error) as raised:
        trace(menagerie, scorer, prompts, **spec)
    assert text in str(raised.value)


def made(clean, corrupted, restored) -> xr.Dataset:
    """A trace with the given scores: (prompt, seed), (prompt, draw, seed), (prompt, draw, seed, site)."""
    data = xr.Dataset(
        {
            "clean": (("metric", "prompt", "seed"), clean[None]),
            "corrupted": (("metric", "prompt", "draw", "seed"), corrupted[None]),
            "restored": (("metric", "prompt", "draw", "seed", "site"), restored[None]),
        }
    )
    return data.assign_coords(metric=["probability"])


def test_effects_are_signed_means_with_intervals():
    rng = np.random.default_rng(0)
    clean, corrupted = np.full((12, 4), 0.9), rng.normal(0.6, 0.02, (12, 3, 4))
    restored = np.stack([corrupted + 0.25, corrupted - 0.45, corrupted + rng.normal(0, 0.05, (12, 3, 4))], -1)
    restored[0, ..., 1] = np.nan
    found = effects(made(clean, corrupted, restored), "probability")
    assert np.isclose(found.total_effect, (clean[:, None] - corrupted).mean())
    assert np.allclose(found.indirect_effect[:2], [0.25, -0.45]) and found.significant.values.tolist() == [
        True,
        True,
        False,
    ]
    assert np.isclose(found.recovery[0], 0.25 / found.total_effect) and found.prompts.values.tolist() == [12, 11, 12]
    assert (found.indirect_effect_low <= found.indirect_effect + 1e-9).all() and (
        found.indirect_effect <= found.indirect_effect_high + 1e-9
    ).all()
    one = effects(made(clean, corrupted, restored), "probability", over=("draw", "seed"))
    assert one.indirect_effect.dims == ("prompt", "site") and np.isnan(one.indirect_effect[0, 1])
    with pytest.raises(KeyError, match="metric='clip' was not measured; the trace has probability"):
        effects(made(clean, corrupted, restored), "clip")


def test_the_interval_covers_prompts_not_images():
    """200 experiments of known mean, whose spread is between prompts: a bootstrap over images alone would cover half as often."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        effect = rng.normal(0.2, 0.1, (12, 1, 1, 1)) + rng.normal(0, 0.02, (12, 2, 4, 1))
        found = effects(made(np.ones((12, 4)), np.zeros((12, 2, 4)), effect), "probability", resamples=300)
        covered += bool(found.indirect_effect_low[0] <= 0.2 <= found.indirect_effect_high[0])
    assert 0.85 <= covered / 200 <= 0.99


def test_the_prompt_sets_fit_their_model(menagerie):
    from workbench.menagerie.prompts import WORDS, labels, prompt_set
    from workbench.prompts import attributes
    from workbench.text import tokenize

    assert attributes() == sorted(WORDS) == ["action", "colour", "fact", "object", "position", "season", "style"]
    tokenizer = menagerie.pipeline.tokenizer
    for name in attributes():
        found = wb.prompt_set(name)
        assert len(found) >= 12 and len({prompt.prompt for prompt in found}) == len(found)
        for prompt in found:
            assert tokenize(tokenizer, prompt.prompt).of(prompt.subject) and prompt.value in found.labels
            if prompt.replacement:
                module.replaced(menagerie, prompt)
        assert [(p.prompt, p.target) for p in found] == [
            tuple(row) for row in prompt_set(name, tokenizer)[["prompt", "target"]].values
        ]
        assert all(prompt.target and prompt.value != prompt.target_value for prompt in found)
        assert sum(map(len, found.labels.values())) == len(labels(name))


def test_the_command_line_traces(tmp_path, monkeypatch, capsys):
    from workbench import cli

    arguments = "workbench trace --prompts object --first 2 --draws 1 --seeds 0 --num-inference-steps 2"
    arguments += " --sites text_encoder.{0,11}.attention"
    monkeypatch.setattr(
        "sys.argv", [*arguments.split(), "--folder", str(tmp_path / "t"), "--out", str(tmp_path / "object")]
    )
    cli.main()
    assert "total effect" in capsys.readouterr().out
    assert (tmp_path / "object.png").exists() and "text_encoder.11.attention" in (tmp_path / "object.csv").read_text()
    assert wb.open_results(tmp_path / "t").sizes["prompt"] == 2
    monkeypatch.setattr("sys.argv", ["workbench", "sites", "unet.mid.cross"])
    cli.main()
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2" in capsys.readouterr().out


def test_the_command_line_tells_errors_and_stops_in_one_line(tmp_path, monkeypatch):
    from workbench import cli

    monkeypatch.setattr("sys.argv", "workbench trace --corruption zero".split())
    with pytest.raises(
        SystemExit, match=r"^workbench: corruption='zero' has nothing random, but draws=3; give draws=1$"
    ):
        cli.main()
    monkeypatch.setattr("sys.argv", "workbench sites unet.middle".split())
    count = len(wb.load().sites)
    with pytest.raises(
        SystemExit, match=rf"^workbench: no site matches 'unet.middle'; of {count} sites the nearest are "
    ):
        cli.main()

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Tracing, "measure", stopped)
    monkeypatch.setattr("sys.argv", ["workbench", "trace", "--first", "1", "--folder", str(tmp_path / "t")])
    with pytest.raises(SystemExit, match=r"stopped: finished parts are kept in .*t .*; the same call goes on"):
        cli.main()
    monkeypatch.setattr("workbench.studies.winter.Winter", stopped)
    monkeypatch.setattr("sys.argv", "workbench benchmark winter".split())
    with pytest.raises(SystemExit, match=r"stopped"):
        cli.main()


def test_effects_near_one_reach_as_far_as_few_prompts_cannot_see():
    axes = {"metric": ["probability", "similarity"], "prompt": range(6), "seed": range(2)}
    clean = xr.DataArray(np.full((2, 6, 2), 0.995), axes, list(axes))
    corrupted = 0.005 * clean.expand_dims(draw=[0])
    restored = xr.concat([clean, 0.5 + 0 * clean], "site").assign_coords(site=["a", "b"]).expand_dims(draw=[0])
    trace = xr.Dataset({"clean": clean, "corrupted": corrupted, "restored": restored})
    found, plain = (effects(trace, metric, resamples=4000) for metric in ("probability", "similarity"))
    unseen = stats.beta.ppf(
        0.975, 0.5, 6
    )  # the share that Jeffreys' interval leaves for what none of six prompts showed
    corrupted = 0.005 * 0.995  # on average: where an unseen prompt's effect can fall to, below 0
    assert float(found.total_effect_low) == pytest.approx(0.99 - unseen * (0.99 + corrupted), abs=0.02)
    assert float(found.indirect_effect_low.sel(site="a")) == pytest.approx(float(found.total_effect_low))
    b = found.sel(site="b")
    assert float(b.indirect_effect_low) == pytest.approx(0.495 - unseen * (0.495 + corrupted), abs=0.02)
    assert float(b.indirect_effect_high) == pytest.approx(0.495 + unseen * (1 - corrupted - 0.495), abs=0.02)
    assert float(b.recovery_low) == pytest.approx(float(b.indirect_effect_low) / 0.99, abs=1e-3)
    assert float(plain.total_effect_low) == pytest.approx(0.99, abs=1e-3)  # no probability
    assert found.p.dims == ("site",) and found.p.min() == 2 / 2**6
