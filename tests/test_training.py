"""The training loop's laws, and a smoke run of every training script."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from workbench.menagerie import assemble, train_clip, train_grader, train_tokenizer, train_unet, train_vae
from workbench.menagerie.train_clip import tokenize
from workbench.menagerie.training import Options, batch_rng, fit
from workbench.metrics import Scorer
from workbench.models import load, verify_files


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
    subprocess.run([*script, "--steps", str(reached + 2), "--resume"], check=True, capture_output=True)
    assert torch.load(checkpoint, weights_only=True)["step"] == reached + 2
    assert (tmp_path / "menagerie-sd" / "vae" / "diffusion_pytorch_model.safetensors").exists()


def test_every_script_makes_its_files_and_the_parts_make_a_pipeline(tmp_path):
    """Two steps of each script in the recipe's order, from nothing, then loading what they wrote."""
    out, runs = tmp_path / "data", tmp_path / "runs"
    common = dict(steps=2, scenes=40, batch_size=4, out=out, runs=runs, device="cpu")
    train_tokenizer.main(train_tokenizer.TokenizerOptions(captions=3000, out=out))
    train_vae.main(train_vae.VAEOptions(**common))
    train_clip.main(train_clip.CLIPOptions(**common))
    train_unet.main(train_unet.UNetOptions(**common))
    train_unet.main(train_unet.UNetOptions(**common | {"steps": 3, "resume": True}))
    train_unet.main(train_unet.UNetOptions(**common | {"seed": 5, "continued": True}))
    trained = json.loads((out / "menagerie-sd" / "unet" / "training.json").read_text())
    assert trained["steps"] == 2 and trained["seed"] == 5 and trained["before"].startswith("3 steps of 4 in ")
    train_grader.main(train_grader.GraderOptions(**common))
    assemble.main(assemble.AssembleOptions(out=out, runs=runs, captions=2, guidances=(1.0, 2.0)))
    assert set(path.suffix for path in out.rglob("*") if path.is_file()) == {".json", ".safetensors", ".txt", ".md", ""}
    verify_files(out / "menagerie-clip")
    assert isinstance(load(out / "menagerie-sd").pipeline, StableDiffusionPipeline)
    assert Scorer(f"local-dir:{out / 'menagerie-clip'}").text_embeddings(["a zebra"]).shape == (1, 64)


def test_scripts_explain_themselves():
    for name in (
        "train_tokenizer",
        "train_vae",
        "train_clip",
        "train_unet",
        "train_grader",
        "assemble",
        "evaluate",
        "prompts",
        "steer_prompts",
    ):
        assert (Path(train_vae.__file__).parent / f"{name}.py").exists()
    run = subprocess.run(
        [sys.executable, "-m", "workbench.menagerie.train_vae", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--device", "--minutes", "--steps", "--resume", "--ema"):
        assert option in run.stdout


def test_a_training_caption_that_is_too_long_is_an_error():
    tokenizer = load().pipeline.tokenizer
    with pytest.raises(ValueError, match=r"training caption of 4\d tokens, the tokenizer's limit is 32: 'zebra zebra"):
        tokenize(tokenizer, ["a zebra", " ".join(["zebra"] * 40)])
