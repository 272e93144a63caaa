"""What need not be computed: steps before a world's first intervention, rows of worlds whose text alone is read, places in a batch.

And NNsight's part in modules that nobody listens to.
"""

import copy
from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import workbench as wb
from workbench.engine import batch
from workbench.engine.batch import Batch
from workbench.engine.nn import Controller
from workbench.engine.prefix import RESUMABLE
from workbench.interventions import World
from workbench.studies import tiny, tiny_transformers

ZEBRA, LION = "a zebra in the savanna", "a lion on the beach"
STEPS = 4
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.03}
QUICK = dict(num_inference_steps=STEPS, guidance_scale=3.0, progress=False)
CASES = (
    ("sd", "ddim v zero snr", "float32"),
    ("sdxl", "euler", "float32"),
    ("sd", "euler", "bfloat16"),
    ("sd3", "flow", "float32"),
    ("flux", "flow", "bfloat16"),
)


@cache
def made(name: str, dtype: str):
    torch.manual_seed(0)
    if name in ("sd3", "flux"):
        pipeline = tiny_transformers.sharpen(tiny_transformers.TRANSFORMERS[name]())
    else:
        pipeline = tiny.sharpen(next(make for key, make in tiny.PIPELINES.items() if key.startswith(name))())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(getattr(torch, dtype))


def fresh(name: str, scheduler: str = "ddim", dtype: str = "float32") -> wb.Model:
    pipeline = made(name, dtype)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline.scheduler = flow if scheduler == "flow" else tiny.scheduler(scheduler)
    return wb.load(pipeline)


def places(model: wb.Model) -> list[str]:
    """Some sites inside the denoiser."""
    sites = model.sites.where(component=model.family.denoiser, stream=False, part="denoiser")
    return [site.name for site in sites if "probs" not in site.kind and site.read and not site.from_text][1:5]


def late(model: wb.Model, start: float = 0.5) -> list[World]:
    """A clean world, a corrupted one, and worlds that restore or change something in the second half."""
    noise, half = wb.add_noise("text_encoder*.embedding", 1.0, tokens="subject"), wb.window(start, 1.0)
    worlds = [World("clean", ZEBRA, subject="zebra"), World("corrupted", ZEBRA, noise, subject="zebra")]
    for name in places(model):
        worlds.append(World(f"restored {name}", ZEBRA, [noise, wb.restore(name, "clean", steps=half)], "zebra"))
    scaled = wb.scale(places(model)[0], 0.0, steps=range(STEPS // 2 + 1, STEPS))
    return [*worlds, World("scaled", ZEBRA, scaled), World("other", LION, [scaled])]


@pytest.fixture
def calls(monkeypatch):
    """Rows through the denoiser, a number for each of its calls."""
    counted: list[int] = []
    traced = Batch.traced

    def counting(self, *args, **keywords):
        counted.extend([self.size] * len(self.plan.calls))
        return traced(self, *args, **keywords)

    monkeypatch.setattr(Batch, "traced", counting)
    return counted


@pytest.mark.filterwarnings("ignore:negative_prompt= has no effect:UserWarning")
@pytest.mark.parametrize(("name", "scheduler", "dtype"), CASES)
def test_the_image_is_that_of_the_whole_run(calls, name, scheduler, dtype):
    model = fresh(name, scheduler, dtype)
    worlds = late(model)
    found = model.run(worlds, seeds=(0,), batch_size=6, **QUICK)
    saved = sum(calls)
    calls.clear()
    whole = model.run(worlds, seeds=(0,), batch_size=6, reuse=False, **QUICK)
    assert saved < 0.85 * sum(calls)
    assert float(abs(found.images - whole.images).max()) <= TOLERANCE[dtype]
    assert float(abs(found.latents - whole.latents).max()) <= 20 * TOLERANCE[dtype]
    assert list(found.images.world.values) == [world.name for world in worlds]
    changed = abs(whole.images - whole["corrupted"]).max(("y", "x", "colour", "seed"))
    assert (changed.sel(world=[w.name for w in worlds if w.name != "corrupted"]) > TOLERANCE[dtype]).any()
    own = {key: number for key, number in whole.fired.items() if key[0] not in ("clean", "corrupted")}
    assert {key: found.fired[key] for key in own}.keys() == own.keys()


@pytest.mark.filterwarnings("ignore:negative_prompt= has no effect:UserWarning")
@pytest.mark.parametrize(("name", "scheduler", "dtype"), CASES)
def test_a_world_whose_text_alone_is_read_has_no_row(calls, name, scheduler, dtype):
    """But where something is done to its text, or where the denoiser's values are read too."""
    model = fresh(name, scheduler, dtype)
    noise = wb.add_noise("text_encoder*.embedding", 1.0, tokens="subject")
    sites = [site.name for site in model.sites.where(part="text") if site.read and site.kind in ("mlp", "hidden")][-4:]
    clean, corrupted = World("clean", ZEBRA, subject="zebra"), World("corrupted", ZEBRA, noise, subject="zebra")
    restored = [
        World(f"restored {i}", ZEBRA, [noise, wb.restore(each, "clean")], "zebra") for i, each in enumerate(sites)
    ]
    found = model.run([clean, corrupted, *restored], batch_size=2, **QUICK)
    assert set(calls) == {2} and len(calls) == 3 * len(model.calls(STEPS))
    calls.clear()
    whole = model.run([clean, corrupted, *restored], batch_size=6, **QUICK)
    assert set(calls) == {6}
    assert float(abs(found.images - whole.images).max()) <= TOLERANCE[dtype]
    assert float(abs(whole["restored 3"] - whole["corrupted"]).max()) > 1e-3 and found.fired == whole.fired
    calls.clear()
    both = wb.restore([sites[-1], places(model)[0]], "clean")
    reading = [World(f"of text {i}", ZEBRA, wb.restore(sites[-1], "corrupted"), "zebra") for i in range(2)]
    reading.append(World("of the denoiser", ZEBRA, [noise, both], "zebra"))
    model.run([clean, corrupted, *reading], batch_size=2, reuse=False, **QUICK)
    assert calls == [2] * 4 * len(model.calls(STEPS))  # clean and corrupted, each of the three with what it reads


def test_prompts_share_batches(calls, tmp_path):
    """The numbers are those of each prompt by itself, in fewer batches, as a plan says; a kept part is not kept anew."""
    model = fresh("sd")
    model.num_inference_steps, model.guidance_scale = 1, 3.0
    animals = ("zebra", "lion", "cat", "dog", "cow", "horse", "bear", "fox")
    texts = [f"a {animal} {place}" for animal in animals for place in ("in the savanna", "on the beach")]
    prompts = wb.PromptSet("sixteen", tuple(wb.Prompt(text, target="a giraffe") for text in texts), {})
    spec = wb.LocoGenSpec(windows=((0, 1), (1, 2), (2, 2)), seeds=(0, 1))
    asked = dict(batch_size=10, scorer=wb.Metric("brightness", lambda images: images.mean((1, 2, 3))))
    planned = wb.plan(wb.locogen, model, prompts, spec, timed=False, **asked)
    wb.locogen(model, prompts, spec, **asked)
    assert (planned.calls, planned.rows, planned.images) == (len(calls), sum(calls), 160) and set(calls) == {10}
    calls.clear()
    wb.locogen(model, prompts[:15], spec, **asked)
    assert calls == [10] * 15  # too few parts to be drawn together, where processes may divide them
    asked["batch_size"] = 8
    calls.clear()
    both = wb.locogen(model, prompts, spec, folder=tmp_path / "all", **asked).data
    assert calls == [8, 8, 4] * 8  # two prompts, five worlds each: eight worlds by each seed, and two by both
    calls.clear()
    alone = [wb.locogen(model, prompts[p : p + 1], spec, **asked).data for p in (0, 1, 15)]
    assert calls == [5, 5] * 3
    for p, own in zip((0, 1, 15), alone):
        for kind in ("clean", "full", "patched"):
            assert float(abs(both[kind].isel(prompt=p, drop=True) - own[kind].isel(prompt=0, drop=True)).max()) < 1e-4
    next((tmp_path / "all").glob("*prompt0001.parquet")).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "all").iterdir()}
    assert wb.locogen(model, prompts, spec, folder=tmp_path / "all", **asked).data.equals(both)  # bit for bit
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "all").iterdir()}
    assert before.items() < after.items()


@pytest.mark.parametrize("scheduler", ("ddpm", "dpm++", "heun", "pndm"))
def test_other_schedulers_run_whole(calls, scheduler):
    model = fresh("sd", scheduler)
    assert type(model.pipeline.scheduler).__name__ not in RESUMABLE
    plain = World("plain", ZEBRA)
    worlds = [plain, *(World(str(i), ZEBRA, wb.scale(places(model)[0], 0.1 * i, steps=3)) for i in range(6))]
    found = model.run(worlds, batch_size=8, **QUICK)
    assert set(calls) == {len(worlds)} and len(calls) == len(model.calls(STEPS))
    assert np.array_equal(found.images, model.run(worlds, batch_size=8, reuse=False, **QUICK).images)


def test_what_must_be_whole_is(calls):
    """Recorded values, attention maps, and worlds that others read while something is done to them."""
    model = fresh("sd")
    site, probs = places(model)[0], model.sites("unet.*.cross.probs")[0].name
    late_worlds = [World(f"{i}", ZEBRA, wb.scale(site, 0.1 * i, steps=2)) for i in range(8)]
    model.run(late_worlds, record=site, **QUICK)
    assert set(calls) == {8}
    calls.clear()
    model.run([World(f"{i}", ZEBRA, wb.scale(probs, 0.1 * i, steps=2)) for i in range(8)], **QUICK)
    assert set(calls) == {8}
    # a world that is read from its own interventions on
    changed = World("changed", ZEBRA, wb.scale(site, 0.0, steps=[1]))
    reading = [
        World(f"reading {i}", ZEBRA, wb.restore(name, "changed", steps=3)) for i, name in enumerate(places(model))
    ]
    worlds = [changed, *reading, *late_worlds]
    found, whole = (model.run(worlds, batch_size=8, reuse=reuse, **QUICK) for reuse in (True, False))
    assert float(abs(found.images - whole.images).max()) <= 1e-4


def test_a_window_of_half_the_steps_takes_half(calls):
    """The bar on time, counted in rows that go through the denoiser."""
    model = fresh("sd")
    worlds = late(model)[:2] + [
        World(f"{i}", ZEBRA, wb.scale(places(model)[i % 4], 0.1 * i, steps=wb.window(0.5, 1.0))) for i in range(14)
    ]
    model.run(worlds[:1] + worlds[2:], seeds=(0,), batch_size=15, **QUICK)
    saved = sum(calls)
    calls.clear()
    model.run(worlds[:1] + worlds[2:], seeds=(0,), batch_size=15, reuse=False, **QUICK)
    assert saved <= 0.57 * sum(calls)


def test_the_scheduler_is_left_as_it_was():
    model = fresh("sd", "euler")
    before = copy.deepcopy(vars(model.pipeline.scheduler))
    kind = type(model.pipeline.scheduler)
    model.run(late(model), batch_size=6, **QUICK)
    assert type(model.pipeline.scheduler) is kind
    assert vars(model.pipeline.scheduler).keys() == before.keys()
    plain = model.generate(ZEBRA, seeds=0, num_inference_steps=STEPS, guidance_scale=3.0)[0]
    assert np.abs(np.asarray(plain, float) / 255 - model.run(ZEBRA, **QUICK).images.values[0, 0]).max() < 1 / 255


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case))
def test_modules_that_nobody_listens_to_run_as_they_are(case, monkeypatch):
    """Pictures and recordings are those with NNsight in every module, to the bit; in it are only the modules that are read or changed."""
    model = fresh(*case)
    worlds, record = late(model)[:4], places(model)[:2]
    entered, call = [], Controller.__call__

    def counting(self, *args, **keywords):
        entered.append(self.module_ref())
        return call(self, *args, **keywords)

    monkeypatch.setattr(Controller, "__call__", counting)
    run = lambda: model.run(worlds, seeds=(0,), record=record, batch_size=4, **QUICK)
    forwards = lambda: {id(each): vars(each).get("forward") for each in model.nn._module.modules()}
    before = forwards()
    few, own = run(), set(entered)
    assert forwards() == before and all(isinstance(forward, Controller) for forward in before.values())
    sites = [*record, *(site for world in worlds for each in world.interventions for site in each.sites)]
    listened = {model.nn.get(site.module)._module for site in model.sites(*sites)}
    assert own == listened | {model.nn._module}
    entered.clear()
    monkeypatch.setattr(batch, "listening", lambda pipeline, paths: nullcontext(model.nn))
    every = run()
    assert len(set(entered)) > 10 * len(own) and np.array_equal(few.images, every.images)
    for name in record:
        assert np.array_equal(few.values[name], every.values[name])


def test_all_modules_are_nnsights_again_after_an_error():
    model = fresh("sd")
    model.run(ZEBRA, **QUICK)
    with pytest.raises(ZeroDivisionError):
        model.run(World("a", ZEBRA, wb.apply(places(model)[0], lambda value: 1 / 0)), **QUICK)
    assert all(isinstance(vars(each)["forward"], Controller) for each in model.nn._module.modules())
