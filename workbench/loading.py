"""Getting a pipeline: the embedded ones by name, folders, single files, hub ids; refused early where no family knows it."""

import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint
from safetensors import SafetensorError

from workbench.commits import commits_of
from workbench.families import Family, check_class, family_of
from workbench.identity import MANIFEST, verify_files
from workbench.inputs import shown

_PACKAGE = Path(__file__).resolve().parent
DATA = next(
    folder for folder in (_PACKAGE / "data", _PACKAGE.parent / "data") if folder.exists()
)  # in a wheel, in a clone
MENAGERIE = DATA / "menagerie-sd"
GRADER = DATA / "menagerie-clip"
DEFAULTS = "defaults.json"
EDITS = "edits.json"  # the log of what was committed before a model was saved
SINGLE_FILE = (".safetensors", ".ckpt", ".pt", ".bin")
SINGLE_FILES = {"v1": StableDiffusionPipeline, "v2": StableDiffusionPipeline, "xl_base": StableDiffusionXLPipeline}


@dataclass(frozen=True)
class Defaults:
    """What a pipeline runs with when not told."""

    num_inference_steps: int
    guidance_scale: float


def embedded() -> list[str]:
    """Names of the models that come with the workbench."""
    return sorted(folder.parent.name for folder in DATA.glob("*/model_index.json"))


def find_pipeline(
    source: str | Path | None,
    *,
    device: str | torch.device,
    dtype: torch.dtype | str,
    revision: str | None,
    variant: str | None,
    safety_checker: bool | None,
    config: str | Path | None,
    verify: bool,
) -> tuple[DiffusionPipeline, Defaults]:
    """A pipeline from disk or hub, with its defaults; see `workbench.load`."""
    dtype = as_dtype(dtype)
    if source is None:
        source = MENAGERIE
    if isinstance(source, str) and source in embedded():
        source = DATA / source
    if not isinstance(source, (str, Path)):
        raise ValueError(
            f"wb.load({shown(source)}): give nothing for the embedded model, a name of {embedded()}, a folder, a checkpoint's file, a hub "
            "id, or a diffusers pipeline"
        )
    path = Path(source).expanduser()
    more = {"safety_checker": None, "requires_safety_checker": False} if safety_checker is False else {}
    if path.is_file():
        pipeline = _single_file(path, dtype, config, more)
        return pipeline.to(device), defaults_of(pipeline)
    if _is_path(source) and not path.exists():
        raise FileNotFoundError(
            f"wb.load({str(source)!r}): there is no such folder or file; embedded models are {', '.join(embedded())}"
        )
    if path.exists() and not (path / "model_index.json").exists():
        held = sorted(each.name for each in path.iterdir())[:5]
        raise FileNotFoundError(f"wb.load({str(source)!r}): the folder has no model_index.json; it holds {held}")
    if verify and (path / MANIFEST).exists():
        verify_files(path)
    named = str(path) if path.exists() else str(source)
    index = DiffusionPipeline.load_config(named, revision=revision)
    family = check_class(index["_class_name"])
    if "safety_checker" not in index:  # SDXL pipelines take no such argument
        more = {}
    pipeline = DiffusionPipeline.from_pretrained(named, revision=revision, variant=variant, dtype=dtype, **more)
    family.check(pipeline)
    pipeline = pipeline.to(device)
    if (path / EDITS).exists():
        commits_of(pipeline).restore((path / EDITS).read_text(), str(path / EDITS))
    defaults = path / DEFAULTS
    return pipeline, Defaults(**json.loads(defaults.read_text())) if defaults.exists() else defaults_of(pipeline)


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype by its name; ValueError for one that no model is loaded in."""
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    names |= {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    chosen = names.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in names.values():
        raise ValueError(f"dtype={dtype!r}: may be float32, float16 or bfloat16, as a name or torch's")
    return chosen


def defaults_of(pipeline: DiffusionPipeline) -> Defaults:
    """Steps and guidance for a pipeline that brings none: its family's, but for few-step models, which their scheduler tells.

    LCM's scheduler: 4 steps; guidance an input of the UNet (8.5, as diffusers' own pipeline) or, for a LoRA, none. Ancestral Euler
    with trailing timesteps, as SD and SDXL Turbo come: 1 step without guidance.
    """
    family: Family = family_of(pipeline)
    scheduler = pipeline.scheduler
    if type(scheduler).__name__ in ("LCMScheduler", "TCDScheduler"):
        embeds_guidance = getattr(family.model(pipeline).config, "time_cond_proj_dim", None) is not None
        return Defaults(4, 8.5 if embeds_guidance else 1.0)
    if (
        type(scheduler).__name__ == "EulerAncestralDiscreteScheduler"
        and scheduler.config.get("timestep_spacing") == "trailing"
    ):
        return Defaults(1, 0.0)
    return Defaults(family.steps, family.guidance)


def _single_file(path: Path, dtype: torch.dtype, config: str | Path | None, more: dict) -> DiffusionPipeline:
    """A checkpoint in the original layout, through diffusers' own loader; its parts' configurations from `config` or the hub."""
    if path.suffix not in SINGLE_FILE:
        raise ValueError(
            f"wb.load({str(path)!r}): a {path.suffix or 'nameless'} file; checkpoints end in {', '.join(SINGLE_FILE)}"
        )
    try:
        checkpoint = load_single_file_checkpoint(str(path))
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(f"wb.load({str(path)!r}): the file is no checkpoint that diffusers reads ({error})") from error
    kind = infer_diffusers_model_type(checkpoint)
    loader = SINGLE_FILES.get(kind)
    if loader is None or not any(key.startswith("model.diffusion_model.") for key in checkpoint):
        found = f"of the kind {kind!r}" if loader is None else f"without a UNet, of {list(checkpoint)[:3]} and more"
        raise ValueError(
            f"wb.load({str(path)!r}): a checkpoint {found}; supported are whole Stable Diffusion 1.x, 2.x and XL checkpoints in the "
            "original layout"
        )
    local = {} if config is None else {"config": str(config), "local_files_only": True}
    return loader.from_single_file(str(path), dtype=dtype, **local, **more)


def _is_path(source: str | Path) -> bool:
    """Whether a text names a place on disk, not a hub id ("owner/name")."""
    text = str(source)
    return isinstance(source, Path) or text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text
