"""The training loop's laws, and a smoke run of every training script."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import tyro
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torchvision.transforms.functional import pil_to_tensor
from transformers import CLIPTextModel

from workbench.identity import verify_files
from workbench.loading import DATA
from workbench.menagerie import (
    assemble,
    train_clip,
    train_dit,
    train_grader,
    train_tokenizer,
    train_unet,
    train_vae,
    train_xl,
)
from workbench.menagerie.denoisers import DenoiserOptions, TwoEncoders, batches
from workbench.menagerie.sampling import Sampler
from workbench.menagerie.train_clip import tokenize
from workbench.menagerie.training import Options, batch_rng, fit, kept
from workbench.metrics import Scorer
from workbench.models import load


def straight_line(options, steps_before_crash=None):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)

    def loss(step):
        if step == steps_before_crash:
            raise RuntimeError("killed")
        x = torch.from_numpy(batch_rng(options, step).standard_normal((8, 3), "float32"))
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    return fit("line", model, loss, options)[0]


def options(folder, **more):
    return Options(
        **dict(steps=30, device="cpu", runs=folder, ema=0.9, learning_rate=0.05, checkpoint_minutes=0) | more
    )


def test_a_killed_and_resumed_run_is_the_run_that_was_never_killed(tmp_path):
    whole = straight_line(options(tmp_path / "a"))
    with pytest.raises(RuntimeError, match="killed"):
        straight_line(options(tmp_path / "b"), steps_before_crash=17)
    resumed = straight_line(options(tmp_path / "b", resume=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_loop_learns_and_tells_a_diverging_loss(tmp_path):
    model = straight_line(options(tmp_path, steps=400))
    assert torch.allclose(model.weight, torch.ones(1, 3), atol=0.05)
    with pytest.raises(FloatingPointError, match=r"line: loss is nan at step 0; lower --learning-rate"):
        fit("line", model, lambda step: {"loss": model.weight.sum() * float("nan")}, options(tmp_path / "nan"))


def test_options_that_make_no_run(tmp_path):
    with pytest.raises(ValueError, match="give --steps or --minutes, one of them; found steps=None, minutes=None"):
        Options()
    with pytest.raises(
        FileNotFoundError, match=r"--resume: no checkpoint .*; leave --resume out to start, or set --runs"
    ):
        straight_line(options(tmp_path / "none", resume=True))


def test_interrupting_keeps_the_run(tmp_path):
    def loss(step):
        if step == 5:
            raise KeyboardInterrupt
        return {"loss": model.weight.square().sum()}

    model = torch.nn.Linear(1, 1)
    with pytest.raises(SystemExit, match=r"line: stopped at step 5, kept in .*; go on with --resume"):
        fit("line", model, loss, options(tmp_path, checkpoint_minutes=60))
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 5


def test_a_script_killed_outright_goes_on_with_resume(tmp_path):
    script = [
        sys.executable,
        "-m",
        "workbench.menagerie.train_vae",
        "--device",
        "cpu",
        "--scenes",
        "20",
        "--batch-size",
        "2",
    ]
    script += ["--runs", str(tmp_path), "--out", str(tmp_path), "--checkpoint-minutes", "0"]
    checkpoint = tmp_path / "vae.pt"
    run = subprocess.Popen([*script, "--steps", "100000"], stderr=subprocess.DEVNULL)
    while not checkpoint.exists():
        assert run.poll() is None, "the script ended before its first checkpoint"
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    reached = torch.load(checkpoint, weights_only=True)["step"]
    assert 1 <= reached < 100000
    common = dict(device="cpu", scenes=20, batch_size=2, runs=tmp_path, out=tmp_path, checkpoint_minutes=0)
    train_vae.main(train_vae.VAEOptions(**common, steps=reached + 2, resume=True))
    assert torch.load(checkpoint, weights_only=True)["step"] == reached + 2
    assert (tmp_path / "menagerie-sd" / "vae" / "diffusion_pytorch_model.safetensors").exists()


def test_every_script_makes_its_files_and_the_parts_make_a_pipeline(tmp_path):
    """Two steps of each script in the recipe's order, from nothing, then loading what they wrote."""
    out, runs = tmp_path / "data", tmp_path / "runs"
    common = dict(steps=2, scenes=20, batch_size=2, out=out, runs=runs, device="cpu")
    train_tokenizer.main(train_tokenizer.TokenizerOptions(captions=3000, out=out))
    train_vae.main(train_vae.VAEOptions(**common))
    train_clip.main(train_clip.CLIPOptions(**common))
    train_unet.main(train_unet.UNetOptions(**common))
    train_unet.main(train_unet.UNetOptions(**common | {"steps": 3, "resume": True}))
    train_unet.main(train_unet.UNetOptions(**common | {"seed": 5, "continued": True}))
    trained = json.loads((out / "menagerie-sd" / "unet" / "training.json").read_text())
    assert trained["steps"] == 2 and trained["seed"] == 5 and trained["before"].startswith("3 steps of 2 in ")
    train_clip.main(train_clip.CLIPOptions(**common, encoder=2))
    train_xl.main(train_xl.XLOptions(**common))
    train_dit.main(train_dit.DiTOptions(**common))
    train_grader.main(train_grader.GraderOptions(**common))
    assemble.main(assemble.AssembleOptions(out=out, runs=runs, captions=2, guidances=(1.0, 2.0)))
    assert set(path.suffix for path in out.rglob("*") if path.is_file()) == {".json", ".safetensors", ".txt", ".md", ""}
    texts = [path for path in out.rglob("*") if path.suffix in (".json", ".md")]
    assert not [path for path in texts if str(tmp_path) in path.read_text()], "a file names a path of this machine"
    for name in ("menagerie-clip", "menagerie-sd", "menagerie-xl", "menagerie-dit"):
        verify_files(out / name)
    for name, kind in (("menagerie-xl", StableDiffusionXLPipeline), ("menagerie-dit", StableDiffusion3Pipeline)):
        sampler = Sampler.of(out / name)
        assert isinstance(sampler.pipeline, kind)
        assert sampler(["a zebra"], [0], num_inference_steps=1)[0].size == (64, 64)
    text_states_are_the_pipelines(out)
    assert isinstance(load(out / "menagerie-sd").pipeline, StableDiffusionPipeline)
    assert Scorer(f"local-dir:{out / 'menagerie-clip'}").text_embeddings(["a zebra"]).shape == (1, 64)


def text_states_are_the_pipelines(out):
    captions = ["", "a zebra", "a red hydrant next to a yellow house in the forest at night"]
    text = TwoEncoders(out)(captions)
    states, pooled = text["states"], torch.cat([text["pooled_1"], text["pooled_2"]], dim=-1)
    xl, _, xl_pooled, _ = assemble.stable_diffusion_xl(out).encode_prompt(captions)
    assert torch.equal(states, xl) and torch.equal(text["pooled_2"], xl_pooled)
    pipeline = assemble.stable_diffusion_3(out)
    zeros = train_dit.ZERO_TOKENS
    dit, _, dit_pooled, _ = pipeline.encode_prompt(captions, captions, captions, max_sequence_length=zeros)
    assert torch.equal(torch.nn.functional.pad(states, (0, 0, 0, zeros)), dit) and torch.equal(pooled, dit_pooled)


@pytest.mark.parametrize("name", ["menagerie-xl", "menagerie-dit"])
def test_plain_diffusers_loads_the_embedded_models_in_single_precision(name):
    verify_files(DATA / name)
    absent = {"text_encoder_3": None, "tokenizer_3": None} if name == "menagerie-dit" else {}
    pipeline = DiffusionPipeline.from_pretrained(DATA / name, **absent)
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {value.dtype for part in parts for value in part.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["menagerie-xl", "menagerie-dit"])
def test_half_precision_on_disk_is_within_1_of_255(name):
    """The first model's parts are kept in single precision too: the same pictures with those."""
    sampler, whole = Sampler.of(DATA / name), Sampler.of(DATA / name)
    folder = DATA / "menagerie-sd"
    whole.pipeline.vae.load_state_dict(AutoencoderKL.from_pretrained(folder / "vae").state_dict())
    text_encoder = assemble.with_identity_projection(CLIPTextModel.from_pretrained(folder / "text_encoder"))
    inner = getattr(whole.pipeline.text_encoder, "text_model", whole.pipeline.text_encoder)
    inner.load_state_dict(text_encoder.text_model.state_dict())
    prompts = ["a zebra on the beach in the snow", "a watercolor of a red car"]
    half, single = (
        torch.stack([pil_to_tensor(image) for image in made(prompts, range(2))]) for made in (sampler, whole)
    )
    assert (half.int() - single.int()).abs().max() <= 1


def test_pictures_are_the_same_in_any_batch_and_those_of_the_plain_pipeline():
    sampler = Sampler.of(DATA / "menagerie-dit")
    both = sampler(["a lion", "a red house at night"], [3, 4], num_inference_steps=2)
    alone = sampler.pipeline(
        "a red house at night",
        generator=torch.Generator().manual_seed(4),
        **sampler.defaults | {"num_inference_steps": 2},
    ).images[0]
    apart = pil_to_tensor(both[1]).int() - pil_to_tensor(alone).int()
    assert apart.abs().max() <= 1


def test_all_embedded_weights_take_at_most_90_megabytes():
    assert sum(path.stat().st_size for path in DATA.glob("menagerie-*/**/*") if path.is_file()) <= 90e6


def test_a_result_is_kept_until_what_it_depends_on_changes(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": torch.ones(1)}

    for seed in (0, 0, 1):
        assert kept(tmp_path / "a" / "x.pt", {"seed": seed}, make)["x"] == 1
    assert len(made) == 2 and [path.name for path in tmp_path.rglob("*.*")] == ["x.pt"]


def test_dropped_captions_are_one_of_the_rows_before_the_pictures():
    options = DenoiserOptions(steps=1, device="cpu", batch_size=64, captions=2, unconditional=0.5)
    clean, text = torch.arange(5.0)[:, None, None, None].expand(5, 4, 2, 2), {"states": torch.arange(12)[:, None] - 2}
    batch = batches(options, clean, text)(3)
    rows, picture = batch.text["states"][:, 0], batch.clean[:, 0, 0, 0]
    assert {-2, -1} <= set(rows.tolist()) and 0.3 < (rows < 0).float().mean() < 0.7
    assert torch.equal((rows[rows >= 0] // 2), picture[rows >= 0])
    assert torch.equal((batch.level * 64).long().sort().values, torch.arange(64))


def test_scripts_explain_themselves(capsys):
    for name in (
        "train_tokenizer",
        "train_vae",
        "train_clip",
        "train_unet",
        "train_xl",
        "train_dit",
        "train_grader",
        "assemble",
        "evaluate",
        "prompts",
        "steer_prompts",
    ):
        assert (Path(train_vae.__file__).parent / f"{name}.py").exists()
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(train_vae.VAEOptions, args=["--help"])
    shown = capsys.readouterr().out
    for option in ("--device", "--minutes", "--steps", "--resume", "--ema"):
        assert option in shown


def test_a_training_caption_that_is_too_long_is_an_error():
    tokenizer = load().pipeline.tokenizer
    with pytest.raises(ValueError, match=r"training caption of 4\d tokens, the tokenizer's limit is 32: 'zebra zebra"):
        tokenize(tokenizer, ["a zebra", " ".join(["zebra"] * 40)])
