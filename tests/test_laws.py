"""Laws of the engine (numbered as its design does), on every kind of pipeline, scheduler, adapter, negative prompt, size and dtype.

"Plain" is a pipeline that the workbench never touched, drawing by itself. `make laws` runs every law on every pipeline with every
scheduler, and every triple of levels of all factors; `make test` every pair. See `cases.py`.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import FACTORS, Case, cases, equal, hooked, load_lora, state_of, steps_of_calls

import workbench as wb
from workbench.edit.low_rank import Edit, update_of
from workbench.engine import calls
from workbench.identity import identity
from workbench.studies import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning"),  # diffusers' own call
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # two adapters are meant
    pytest.mark.filterwarnings("ignore:to_lora. the edit was made for bfloat16:UserWarning"),
    pytest.mark.filterwarnings("ignore:the edit of .* is too small:UserWarning"),  # for half precision, as it says
    pytest.mark.filterwarnings(
        "ignore:negative_prompt= has no effect:UserWarning"
    ),  # of a UNet that takes guidance as input
]


@pytest.fixture
def case(request, record_property):
    """A case, whose largest deviation stands in the report."""
    yield request.param
    record_property("deviation", max(request.param.largest, default=0.0))


def law(name: str):
    """Run a test on the cases of a law."""
    return pytest.mark.parametrize("case", cases(name), ids=str, indirect=True)


@law("plain")
def test_1_without_interventions_it_is_the_plain_pipeline(case: Case):
    """Images and latents are bitwise the plain pipeline's, and attention is computed by the same path."""
    model, plain = case.pair()
    worlds, seeds = [case.world("zebra"), case.world("lion", case.lion)], (0, 5)
    run = case.run(model, worlds, seeds)
    assert equal(run.images, case.draw(plain, worlds, seeds))
    assert equal(run.latents, case.draw(plain, worlds, seeds, output_type="latent"))
    paths = [{name: type(p) for name, p in each.unet.attn_processors.items()} for each in (model.pipeline, plain)]
    assert paths[0] == paths[1]


@law("seed")
def test_1_the_picture_of_a_seed(case: Case):
    """It is bitwise that of `pipeline(prompt, generator=torch.Generator().manual_seed(seed))`, and in any batch the same to rounding."""
    model, plain = case.pair()
    zebra, lion = case.world("zebra"), case.world("lion", case.lion)
    negative = {} if zebra.negative_prompt is None else {"negative_prompt": zebra.negative_prompt}
    draw = dict(generator=torch.Generator().manual_seed(5), output_type="np")
    alone = plain(zebra.prompt, **case.settings, **negative, **draw).images[0]
    assert equal(case.run(model, [zebra], [5]).images[0, 0], alone)
    assert equal(model.generate(zebra.prompt, seeds=5, **case.settings, **negative)[0], np.round(alone * 255))
    together = case.run(model, [lion, zebra], [3, 5])
    assert case.close(together["zebra"].sel(seed=5), alone)
    assert case.apart(together["zebra"].sel(seed=3), alone) and case.apart(together["lion"].sel(seed=5), alone)
    pictures = model.generate([lion.prompt, zebra.prompt], seeds=[3, 5], **case.settings, **negative)
    assert case.close(np.asarray(pictures[1], "f8") / 255, np.round(alone * 255) / 255) or case.largest[-1] < 1.01 / 255


@law("identity")
def test_2_identity_interventions_change_nothing(case: Case):
    """What changes nothing gives the plain pipeline's image, bitwise; what copies equal values, to rounding. Twins are equal."""
    model, plain = case.pair()
    width = model.sites["text_encoder.1.mlp"].axis("channel")
    cross = model.sites("unet.*.cross.k")[0]
    context = model.sites("unet.*.cross.context")[0].axis("channel")
    exact = {
        "steer": wb.steer("text_encoder.1.mlp", np.ones(width), 0.0),
        "scale": wb.scale(["text_encoder.0.attention", "unet.*.cross", "unet.*.resnet", "unet.noise", "latents"], 1.0),
        "vae": wb.scale("vae.latents", 1.0),
        "noise": wb.add_noise("text_encoder*.embedding", 0.0, tokens="subject"),
        "map": wb.map_input(cross.name, np.ones((cross.axis("channel"), 1)), np.zeros((1, context)), rows="both"),
        "apply": wb.apply(["unet.*.ff", "unet.noise"], lambda value: value.clone()),
    }
    rounded = {
        "twin": (),
        "restore": [wb.restore(["text_encoder*.hidden", "unet.*.resnet", "unet.noise"], "clean")],
        "replace": [wb.replace_prompt(["unet.*.cross.context", "unet.*.cross.{k,v}", *pooled(model)], case.zebra)],
        "mix": [wb.mix_attention("unet.*.probs", "clean")],
    }
    worlds = [case.world("clean"), *(case.world(name, None, [each]) for name, each in exact.items())]
    run = case.run(model, worlds)
    assert equal(run.images, case.draw(plain, worlds))
    assert equal(run.images, case.run(model, worlds).images)
    worlds = [case.world("clean"), *(case.world(name, None, each) for name, each in rounded.items())]
    run, expected = case.run(model, worlds), case.draw(plain, worlds)
    for world, image in zip(worlds, expected):
        assert case.close(run[world.name], image), world.name
        assert case.close(run[world.name], run["clean"]), world.name


@law("everything")
def test_3_restoring_or_replacing_everything(case: Case):
    """Everything restored gives the clean image; every layer (and pooled vector) given another prompt gives that prompt's image."""
    model, plain = case.pair()
    noise = wb.add_noise("text_encoder*.embedding", 1.0, seed=1, tokens="subject")
    restored = {
        "embeddings": "text_encoder*.embedding",
        "states": ["text_encoder*.hidden", *pooled(model)],
        "noise": "unet.noise",
        "latents": "latents",
    }
    replaced = {"context": "unet.*.cross.context", "keys and values": "unet.*.cross.{k,v}"}
    worlds = [case.world("clean"), case.world("corrupted", None, [noise])]
    worlds += [case.world(name, None, [noise, wb.restore(sites, "clean")]) for name, sites in restored.items()]
    run, seeds = case.run(model, worlds, (0, 5)), (0, 5)
    clean = case.draw(plain, [case.world("clean")], seeds)[0]
    assert case.apart(run["corrupted"], clean)
    for name in restored:
        assert case.close(run[name], clean), name
    zebra = case.world("zebra")
    target = wb.World("lion", case.lion, negative_prompt=zebra.negative_prompt)
    worlds = [
        zebra,
        *(
            case.world(name, None, [wb.replace_prompt([site, *pooled(model)], case.lion)])
            for name, site in replaced.items()
        ),
    ]
    run, lion = case.run(model, worlds, seeds), case.draw(plain, [target], seeds)[0]
    assert case.apart(run["zebra"], lion)
    for name in replaced:
        assert case.close(run[name], lion), name


def pooled(model) -> list[str]:
    """The pooled vectors that the denoiser reads."""
    return [site.name for site in model.sites.where(kind="pooled", read=True)]


@law("calls")
def test_4_every_call_belongs_to_a_step(case: Case):
    """Interventions fire at every call of their steps, which hooks count, and at no other; what cannot be raises before a call."""
    model, plain = case.pair()
    steps = steps_of_calls(case.scheduler, case.steps)
    second = [call for call, step in enumerate(steps) if step == 1]
    worlds = [
        case.world("clean"),
        case.world("second", None, [wb.scale("unet.noise", 1.5, steps=1)]),
        case.world("all", None, [wb.scale("unet.noise", 1.0), wb.scale(["unet.*.resnet", "text_encoder.1.mlp"], 1.0)]),
    ]
    run = case.run(model, worlds, record=["unet.noise", "text_encoder.1.mlp"])
    with hooked(plain.text_encoder.get_submodule(inner(model, "text_encoder.1.mlp"))) as texts:
        with hooked(plain.unet.conv_out, second, 1.5, row=1, of=2) as calls_:
            clean, image = case.draw(plain, worlds[:2])
    assert len(calls_) == len(steps)
    assert case.close(run["second"], image) and case.close(run["clean"], clean) and case.apart(image, clean)
    resnets = len(model.sites("unet.*.resnet"))
    assert run.fired == {("second", 0): len(second), ("all", 0): len(steps), ("all", 1): resnets * len(steps) + 1}
    recorded = run.values["unet.noise"]
    assert tuple(recorded.step.values) == steps
    assert tuple(recorded.timestep.values) == tuple(float(t) for t in plain.scheduler.timesteps)
    assert case.close(recorded.sel(world="second")[0], torch.stack([call[-1] for call in calls_]))
    assert case.close(run.values["text_encoder.1.mlp"].sel(world="clean")[0], texts[0][0])
    wrong = {
        "no site matches": wb.scale("unet.nowhere", 2.0),
        f"steps=[{case.steps}]: the run has steps 0 to {case.steps - 1}": wb.scale("unet.noise", 2.0, steps=case.steps),
        "'giraffe' is not in the prompt": wb.scale("text_encoder.0.mlp", 2.0, tokens="giraffe"),
    }
    with hooked(model.pipeline.unet.conv_out) as drawn, hooked(model.pipeline.text_encoder) as read:
        for message, intervention in wrong.items():
            with pytest.raises((KeyError, ValueError)) as raised:
                case.run(model, [case.world("wrong", None, [intervention])])
            assert message in str(raised.value)
    assert drawn == read == []


def inner(model, site: str) -> str:
    """Path of a site's module inside its component."""
    return model.sites[site].module.partition(".")[2]


@law("exception")
def test_5_an_exception_leaves_the_model_as_it_was(case: Case):
    """Wherever it is raised: no weight, module, hook, attention processor or state of the scheduler changes, and neither do pictures."""
    model, plain = case.pair()
    worlds = [case.world("zebra"), case.world("lion", case.lion)]
    assert equal(case.run(model, worlds).images, case.draw(plain, worlds))
    before = state_of(model.pipeline)
    assert np.sum(before["hooks"]) == np.sum(state_of(plain)["hooks"])  # transformers' own, of layers that ran
    broken = {
        "text_encoder.1.mlp": {},
        "unet.*.cross.probs": dict(steps=1),
        "latents": dict(steps=1),
        "vae.latents": {},
    }
    for site, places in broken.items():
        with pytest.raises(ZeroDivisionError):
            case.run(model, [case.world("broken", None, [wb.apply(site, lambda value: 1 / 0, **places)])])
        after = state_of(model.pipeline)
        for name in before:
            assert before[name] == after[name], (site, name)
    assert equal(case.run(model, worlds).images, case.draw(plain, worlds))


@law("rows")
def test_6_a_row_is_its_own(case: Case):
    """Interventions in one world leave every other bitwise as it is; a world alone, or in split batches, is the world in a batch."""
    model, plain = case.pair()
    strong = [
        wb.scale("unet.*.resnet", 1.5, steps=[0, 2]),
        wb.ablate("unet.*.cross", "mean", over="pixel"),
        wb.add_noise("text_encoder*.embedding", 1.0, tokens="subject"),
        wb.scale("text_encoder.0.attention", 2.0),
    ]
    worlds = [case.world("clean"), case.world("hit", None, strong), case.world("lion", case.lion)]
    worlds += [case.world("restored", None, [*strong, wb.restore("unet.*.cross", "clean")])]
    seeds = (0, 5)
    run, expected = case.run(model, worlds, seeds, record="text_encoder.embedding"), case.draw(plain, worlds, seeds)
    assert equal(run["clean"], expected[0]) and equal(run["lion"], expected[2])
    assert case.apart(run["hit"], expected[1]) and case.apart(run["restored"], run["hit"])
    alone = case.run(model, [worlds[1]], [5])
    assert case.close(alone["hit"].sel(seed=5), run["hit"].sel(seed=5))
    assert case.close(case.run(model, worlds, seeds, batch_size=4).images, run.images)
    embeddings = run.values["text_encoder.embedding"]
    changed = np.abs(embeddings.sel(world="hit") - embeddings.sel(world="clean")).max("channel")
    position = tokens_of(model.pipeline, case.zebra).index("zebra</w>")
    assert [np.flatnonzero(row).tolist() for row in changed] == [[position]] * len(seeds)


def tokens_of(pipeline, prompt: str) -> list[str]:
    """Tokens of a prompt as the pipeline hands them to its first encoder."""
    read = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
    return pipeline.tokenizer.convert_ids_to_tokens(pipeline.tokenizer(read)["input_ids"])


@law("preview")
def test_7_preview_is_commit_and_undo_is_exact(case: Case):
    """A previewed edit draws what the committed one does and what changed weights do; 50 commits, undone, leave not a bit changed."""
    model, plain = case.pair(own=True)
    if case.adapter.startswith("lora") and case.adapter != "lora fused":
        with pytest.raises(ValueError, match=r"carries the adapters .* not fused.*pipeline.fuse_lora"):
            edit_of(model, [model.sites("unet.*.cross.v")[0].name])
    edit = edit_of(model)
    assert max(torch.linalg.matrix_rank(update.b @ update.a).item() for update in edit.updates) <= 2
    clean, edited = case.world("clean"), case.world("edited", None, edit.preview())
    preview = case.run(model, [clean, edited])
    before = state_of(model.pipeline)  # transformers hooks its own layers when they run first
    expected = case.draw(plain, [clean])[0]
    with model.applied(edit):
        committed = case.run(model, [clean])
    for update in edit.updates:
        component, _, path = update.module.partition(".")
        weight = getattr(plain, component).get_submodule(path).weight
        weight.data = (weight.float() + (update.b @ update.a).to(weight.device)).to(weight.dtype)
    changed = case.draw(plain, [clean])[0]
    assert case.close(committed["clean"], changed) and case.close(preview["edited"], changed)
    assert case.close(preview["clean"], expected) and case.apart(changed, expected)
    for i in range(50):
        part = edit if i % 2 else edit.at(edit.sites[i // 2 % len(edit.sites)])
        model.commit(0.98**i * part, base=False)
        if i % 7 == 0:
            model.undo()
    while model.edits:
        model.undo()
    assert state_of(model.pipeline) == before


def edit_of(model, sites=None, size: float = 1.0) -> Edit:
    """A random edit of rank 2, as large as the weights, of a layer of every text encoder and one of cross-attention."""
    if sites is None:
        sites = [model.sites("unet.*.cross.k")[-1].name, *(site.name for site in model.sites("text_encoder*.0.fc2"))]
    generator, updates = torch.Generator().manual_seed(0), []
    for name in sites:
        component, _, path = model.sites[name].module.partition(".")
        module = getattr(model.pipeline, component).get_submodule(path)
        rows, columns = module.out_features, module.in_features
        b, a = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
        norm = getattr(module, "base_layer", module).weight.float().norm().cpu()
        updates.append(update_of(model, name, b * size * norm / (b @ a).norm(), a))
    return Edit(updates)


@law("lora")
def test_8_an_exported_lora_gives_the_commits_images(case: Case, tmp_path: Path):
    """In a plain pipeline, beside the adapters that it had."""
    model, plain = case.pair(own=True)
    clean = case.world("clean")
    every = [model.sites("unet.*.cross.k")[-1].name, *(site.name for site in model.sites("text_encoder*.0.fc2"))]
    before = case.draw(plain, [clean])[0]
    held = {name for names in plain.get_list_adapters().values() for name in names}
    edit = edit_of(model, every if case.size != "wide" else every[1:])  # also of a text encoder alone
    plain.load_lora_weights(edit.to_lora(tmp_path / "edit.safetensors"), adapter_name="edit")
    plain.set_adapters([*sorted(held), "edit"])
    with model.applied(edit):
        committed = case.run(model, [clean])["clean"]
    loaded = case.draw(plain, [clean])[0]
    assert case.close(committed, loaded) and case.apart(loaded, before)


@law("behind")
def test_11_changes_behind_the_models_back_are_followed(case: Case):
    """Scheduler, modules, adapters and switches changed after runs: it draws, records and intervenes as the plain pipeline does."""
    model, plain = case.pair(own=True)
    worlds = [case.world("zebra"), case.world("scaled", None, [wb.scale("unet.noise", 1.5)])]
    site = model.sites("text_encoder.1.mlp")[0]
    changes = [[swap_scheduler, swap_layers, replace_unet]]
    changes += [[load_another_lora], [scale_lora]] if "lora" not in case.adapter else []
    changes += [[delete_lora, fuse_projections]]
    for together in changes:
        for pipeline in (model.pipeline, plain):
            for change in together:
                change(pipeline)
        run = case.run(model, worlds, record=[site.name])
        calls_ = range(len(steps_of_calls(name_of(plain.scheduler), case.steps)))
        with hooked(plain.text_encoder.get_submodule(inner(model, site.name))) as texts:
            with hooked(plain.unet.conv_out, calls_, 1.5, row=1, of=2):
                expected = case.draw(plain, worlds)
        assert equal(run["zebra"], expected[0]), together
        assert case.close(run["scaled"], expected[1]) and case.apart(*expected), together
        assert equal(run.values[site.name][:, 0], texts[0]), together
    with pytest.raises(ValueError, match=r"the projections are fused .* call pipeline.unfuse_qkv_projections\(\)"):
        case.run(model, [case.world("fused", None, [wb.scale("unet.*.cross.k", 2.0)])])


def name_of(scheduler) -> str:
    """Its name in the table."""
    prk = scheduler.config.get("skip_prk_steps")
    kinds = tiny.SCHEDULERS.items()
    return next(n for n, (kind, given) in kinds if type(scheduler) is kind and given.get("skip_prk_steps") == prk)


def swap_scheduler(pipeline):
    now = name_of(pipeline.scheduler)
    pipeline.scheduler = tiny.scheduler("heun" if now == "euler ancestral" else "euler ancestral")


def swap_layers(pipeline):
    encoder = pipeline.text_encoder
    layers = getattr(encoder, "text_model", encoder).encoder.layers
    layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp


def replace_unet(pipeline):
    with torch.random.fork_rng():
        torch.manual_seed(9)
        made = type(pipeline.unet).from_config(pipeline.unet.config)
    pipeline.unet = made.to(pipeline.unet.device, pipeline.unet.dtype)


def load_another_lora(pipeline):
    load_lora(pipeline, seed=3)


def scale_lora(pipeline):
    pipeline.set_adapters(["lora 3"], [0.3])


def delete_lora(pipeline):
    pipeline.unload_lora_weights()


def fuse_projections(pipeline):
    pipeline.fuse_qkv_projections()


@pytest.mark.parametrize("dtype", FACTORS["dtype"])
@pytest.mark.parametrize("pipeline", FACTORS["pipeline"])
def test_10_other_inputs_have_another_identity(pipeline: str, dtype: str):
    """Equal pipelines are equal in it; each change of anything that pictures depend on is another."""
    case = Case("identity", pipeline, "ddim", dtype=dtype)
    one, other = case.plain(), case.plain()
    found = {"as it was": identity(one)}
    assert found["as it was"] == identity(other) == json.loads(json.dumps(identity(one)))
    with torch.no_grad():
        weight = other.unet.conv_out.weight
        weight[0, 0, 0, 0], weight[0, 0, 0, 1] = weight[0, 0, 0, 1].clone(), weight[0, 0, 0, 0].clone()
        found["two weights swapped"] = identity(other)
        weight.view(-1)[0] *= 2
        found["a weight doubled"] = identity(other)
    for name, more in {"spacing": dict(timestep_spacing="trailing"), "type": dict(prediction_type="sample")}.items():
        one.scheduler = type(one.scheduler).from_config(one.scheduler.config, **more)
        found[name] = identity(one)
    for change in (swap_scheduler, load_another_lora, scale_lora):
        change(one)
        found[change.__name__] = identity(one)
    one.fuse_lora()
    found["fused LoRA"] = identity(one)
    tiny.add_word(one)
    found["word"] = identity(one)
    one.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    found["FreeU"] = identity(one)
    written = {name: json.dumps(each, sort_keys=True) for name, each in found.items()}
    assert len(set(written.values())) == len(written)


ELSEWHERE = """
import sys
import torch
from cases import Case
torch.set_num_threads(1)
for pipeline in sys.argv[1:]:
    case = Case("process", pipeline, "euler ancestral", adapter="lora before")
    model, _ = case.pair()
    run = case.run(model, case.mixed(), (0, 5), record=["unet.*.cross.probs"])
    print(*run.images.values.ravel().tolist(), *(each.values.sum(dtype="f4") for each in run.values.values()))
"""


def test_10_another_process_gives_the_same_images():
    """Bitwise, with noise of a stochastic scheduler, an adapter, interventions and reads: no hidden state anywhere."""
    names = FACTORS["pipeline"]
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, *names]
    there = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout
    for name, line in zip(names, there.splitlines(), strict=True):
        case = Case("process", name, "euler ancestral", adapter="lora before")
        run = case.run(case.pair()[0], case.mixed(), (0, 5), record=["unet.*.cross.probs"])
        here = [*run.images.values.ravel(), *(each.values.sum(dtype="f4") for each in run.values.values())]
        assert equal(np.array(here), np.array(line.split(), "f4")), name


def test_the_laws_know_every_scheduler_that_the_engine_knows():
    """What is in its table is under the laws."""
    assert {kind.__name__ for kind, _ in tiny.SCHEDULERS.values()} == set(calls.SCHEDULERS)
