"""Pipelines on which the laws must hold: random tiny ones of every family, built from configs; and the menagerie, whose answers matter."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no test asks the network

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import workbench as wb
from workbench.studies.tiny import sd
from workbench.studies.tiny import sdxl as xl


def sd1() -> StableDiffusionPipeline:
    return sd(
        dict(
            block_out_channels=(8, 8, 16, 16),
            cross_attention_dim=16,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
    )


def sd2() -> StableDiffusionPipeline:
    """As Stable Diffusion 2: linear projections, heads by block."""
    return sd(
        dict(
            block_out_channels=(8, 8, 16, 16),
            cross_attention_dim=16,
            attention_head_dim=(1, 2, 2, 4),
            use_linear_projection=True,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
    )


def sdxl() -> StableDiffusionXLPipeline:
    return xl(
        dict(
            block_out_channels=(8, 16, 16),
            cross_attention_dim=40,
            attention_head_dim=(1, 2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2, 3),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        )
    )


@pytest.fixture(scope="session", params=[sd1, sd2, sdxl], ids=lambda make: make.__name__)
def tiny(request):
    """A random tiny pipeline of each family in turn. The trained one is of the first's topology; `wb.check` asks it the same."""
    torch.manual_seed(0)
    pipeline = request.param()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def model(tiny):
    """Each of these pipelines, loaded."""
    return wb.load(tiny)


@pytest.fixture(name="menagerie", scope="module")
def the_menagerie():
    """The embedded model, where its answers matter."""
    return wb.load()


@pytest.fixture(scope="session")
def scorer():
    """The embedded grader."""
    return wb.Scorer()


@pytest.fixture(scope="session")
def wheel_python(tmp_path_factory) -> Path:
    """Python of an environment with the wheel, built as `make dist` does and installed away from the clone; libraries are borrowed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(build, cwd=Path(__file__).parents[1], check=True)
    (wheel,) = folder.glob("diffusion_workbench-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "bare"], check=True)
    python = folder / "bare" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    (site,) = (folder / "bare").glob("lib/python*/site-packages")
    # a path that a .pth names is searched, but the .pth files in it are not read: the clone's editable install stays unknown
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(borrowed) + "\n")
    return python
