"""Getting a pipeline: the embedded ones by name, folders, single files, hub ids; refused early where no family knows it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from safetensors import SafetensorError, safe_open

from workbench.commits import commits_of
from workbench.families import Family, check_class, family_of
from workbench.identity import MANIFEST, verify_files
from workbench.inputs import shown, user_path

_PACKAGE = Path(__file__).resolve().parent
DATA = next(
    folder for folder in (_PACKAGE / "data", _PACKAGE.parent / "data") if folder.exists()
)  # in a wheel, in a clone
MENAGERIE = DATA / "menagerie-sd"
GRADER = DATA / "menagerie-clip"
DEFAULTS = "defaults.json"
EDITS = "edits.json"  # the log of what was committed before a model was saved
INDEX = "model_index.json"  # of a folder that diffusers wrote
SINGLE_FILE = (".safetensors", ".ckpt", ".pt", ".bin")
SINGLE_FILES = {"v1": StableDiffusionPipeline, "v2": StableDiffusionPipeline, "xl_base": StableDiffusionXLPipeline}


# names of files of weights, with their variant and number of shard
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[^.-]+))?(?P<shard>-\d{5}-of-\d{5})?\.(?:safetensors|bin)$"
)
SHARDS = re.compile(r".+\.index(?:\.[^.]+)?\.json$")


@dataclass(frozen=True)
class Defaults:
    """What a pipeline runs with when not told."""

    num_inference_steps: int
    guidance_scale: float
    max_sequence_length: int | None = None


def embedded() -> list[str]:
    """Names of the models that come with the workbench."""
    return sorted(folder.parent.name for folder in DATA.glob(f"*/{INDEX}"))


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
    dtype, device = as_dtype(dtype), as_device(device)
    if source is None:
        source = MENAGERIE
    if isinstance(source, str) and source in embedded():
        source = DATA / source
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise ValueError(
            f"wb.load({shown(source)}): give nothing for the embedded model, a name of {embedded()}, a folder, a checkpoint's file, a hub "
            "id, or a diffusers pipeline"
        )
    path = Path(source).expanduser()
    more = {"safety_checker": None, "requires_safety_checker": False} if safety_checker is False else {}
    if path.is_file():
        pipeline = _single_file(path, dtype, config, more)
        return pipeline.to(device), defaults_of(pipeline)
    if config is not None:
        raise ValueError(
            f"config={shown(config)}: it is for a checkpoint's single file, which {str(source)!r} is not; leave it out"
        )
    if _is_path(source) and not path.exists():
        raise FileNotFoundError(
            f"wb.load({str(source)!r}): there is no such folder or file; embedded models are {', '.join(embedded())}"
        )
    if path.exists() and not (path / INDEX).exists():
        held = sorted(each.name for each in path.iterdir())[:5]
        raise FileNotFoundError(f"wb.load({str(source)!r}): the folder has no {INDEX}; it holds {held}")
    if verify and (path / MANIFEST).exists():
        verify_files(path)
    index = _index(path, str(source), revision)
    family = check_class(index["_class_name"])
    if "safety_checker" not in index:  # SDXL pipelines take no such argument
        more = {}
    for encoder in family.encoders:  # diffusers wants to be told of what is left out
        if encoder.optional and not any(index.get(encoder.component) or ()):
            more |= {encoder.component: None, encoder.tokenizer: None}
    if path.exists():
        check_folder(path, {name: entry for name, entry in index.items() if name not in more}, variant)
    named = str(path) if path.exists() else str(source)
    try:
        pipeline = DiffusionPipeline.from_pretrained(named, revision=revision, variant=variant, dtype=dtype, **more)
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(f"wb.load({str(source)!r}): its weights cannot be loaded: {_first(error)}") from error
    if path.exists():
        check_whole(path, pipeline)
    family.check(pipeline)
    pipeline = pipeline.to(device)
    if (path / EDITS).exists():
        commits_of(pipeline).restore((path / EDITS).read_text(), str(path / EDITS))
    return pipeline, _defaults(path, pipeline)


def _index(path: Path, source: str, revision: str | None) -> dict:
    """A pipeline's model_index.json; ValueError where there is none to be had, or it names no pipeline."""
    try:
        file = path / INDEX if path.exists() else hf_hub_download(source, INDEX, revision=revision)
        index = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        if path.exists():
            raise ValueError(f"wb.load({source!r}): its {INDEX} cannot be read: {_first(error)}") from error
        reached = "is offline (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else "does not give it"
        raise FileNotFoundError(
            f"wb.load({source!r}): there is no such folder here, no embedded model of that name ({', '.join(embedded())}), nothing in "
            f"the local cache, and the hub {reached}: {_first(error)}"
        ) from error
    if not isinstance(index.get("_class_name"), str):
        raise ValueError(
            f"wb.load({source!r}): its {INDEX} names {shown(index.get('_class_name'))} as its pipeline's class, which is none of "
            "diffusers' own"
        )
    return index


def check_folder(path: Path, index: dict, variant: str | None):
    """Raise FileNotFoundError for a folder that lacks a part of its pipeline, or whose weights are of other variants than asked.

    Looks at names of files alone: a download that broke off is told before anything is read.
    """
    parts = {
        name: entry for name, entry in index.items() if isinstance(entry, (list, tuple)) and any(entry)
    }  # (library, class); a part that is left out has neither
    if missing := [name for name in parts if not (path / name).is_dir()]:
        raise FileNotFoundError(
            f"wb.load({str(path)!r}): the folder lacks {', '.join(f'{name}/' for name in missing)}, which its {INDEX} names: is "
            "its download complete?"
        )
    found = {name: _variants(path / name) for name in parts if _has_weights(path / name)}
    if missing := [name for name, variants in found.items() if not variants]:
        raise FileNotFoundError(
            f"wb.load({str(path)!r}): no weights in {', '.join(f'{name}/' for name in missing)}, or not all that its index names: is its "
            "download complete?"
        )
    named = sorted({each for variants in found.values() for each in variants if each is not None})
    if variant is not None and variant not in named:
        raise FileNotFoundError(
            f"wb.load({str(path)!r}, variant={variant!r}): the folder has weights of the variants {named or 'none'}; "
            f"{'name one of these' if named else 'leave variant out'}"
        )
    if variant is None and (only := [name for name, variants in found.items() if None not in variants]):
        raise FileNotFoundError(
            f"wb.load({str(path)!r}): {', '.join(f'{name}/' for name in only)} has weights of the variants {named} only; give "
            f"variant={named[0]!r}"
        )


def _has_weights(folder: Path) -> bool:
    """Whether a part is one with weights: a scheduler, tokenizer or feature extractor has another configuration."""
    return (folder / "config.json").exists() or any(WEIGHTS.match(each.name) for each in folder.iterdir())


def _variants(folder: Path) -> set[str | None]:
    """Variants of the weights in a part's folder whose files are all there; None for those of no variant."""
    names = {each.name for each in folder.iterdir()}
    found: set[str | None] = set()
    for name in names:
        if not (match := WEIGHTS.match(name)):
            continue
        index = next((folder / each for each in names if SHARDS.match(each)), None) if match["shard"] else None
        if index is None or set(json.loads(index.read_text())["weight_map"].values()) <= names:
            found.add(match["variant"])
    return found


def check_whole(path: Path, pipeline: DiffusionPipeline):
    """Raise ValueError for files that lack tensors: diffusers leaves these without values, transformers fills in random numbers."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and (
            empty := [key for key, each in part.named_parameters() if each.is_meta]
        ):
            raise ValueError(
                f"wb.load({str(path)!r}): {name}/ lacks {len(empty)} of its model's tensors, such as {empty[0]}: it is of another "
                "configuration than its weights, or its download is not complete"
            )
    for encoder in family_of(pipeline).present(pipeline):
        files = list((path / encoder.component).glob("*.safetensors"))
        held = {_without_nesting(key) for file in files for key in safe_open(file, "pt").keys()}
        wanted = {_without_nesting(key) for key, _ in getattr(pipeline, encoder.component).named_parameters()}
        if files and (missing := sorted(wanted - held)):
            raise ValueError(
                f"wb.load({str(path)!r}): {encoder.component}/ lacks {len(missing)} of the {len(wanted)} tensors of its model, such as "
                f"{missing[0]}: it would be filled with random numbers"
            )


def _without_nesting(key: str) -> str:
    """A tensor's name in every version of transformers, some of which nest a text encoder in a `text_model`."""
    return key.removeprefix("text_model.")


def _defaults(path: Path, pipeline: DiffusionPipeline) -> Defaults:
    held = path / DEFAULTS
    if not held.exists():
        return defaults_of(pipeline)
    try:
        return Defaults(**json.loads(held.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"wb.load({str(path)!r}): its {DEFAULTS} does not hold num_inference_steps and guidance_scale alone, nor "
            f"max_sequence_length with them ({error})"
        ) from None


def _first(error: Exception) -> str:
    """The first sentence of an error, in one line."""
    return shown(" ".join(str(error).split()).split(". ")[0], 300).strip("'\"")


def as_device(device: str | torch.device) -> torch.device:
    """A device by its name; ValueError for one that is not there."""
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"device={shown(device)}: give a device as torch names it, such as 'cpu' or 'cuda'") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch finds no CUDA device here; give device='cpu'")
    return chosen


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype by its name; ValueError for one that no model is loaded in."""
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    names |= {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    chosen = names.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or chosen not in names.values():
        raise ValueError(f"dtype={shown(dtype)}: may be float32, float16 or bfloat16, as a name or torch's")
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
    if getattr(family.model(pipeline).config, "guidance_embeds", None) is False:  # FLUX schnell
        return Defaults(4, 0.0)
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
    local = {} if config is None else {"config": str(user_path(config, "config")), "local_files_only": True}
    try:
        return loader.from_single_file(str(path), dtype=dtype, **local, **more)
    except (OSError, ValueError, RuntimeError) as error:
        fix = (
            "its parts' configurations are had from the hub: give config=, a local folder that holds them (any Stable Diffusion folder of "
            "diffusers of the same architecture)"
            if config is None
            else "does config= hold the configurations of this architecture, the tokenizer's among them?"
        )
        raise ValueError(
            f"wb.load({str(path)!r}): the checkpoint cannot be put together ({_first(error)}); {fix}"
        ) from error


def _is_path(source: str | Path) -> bool:
    """Whether a text names a place on disk, not a hub id ("owner/name")."""
    text = str(source)
    return (
        isinstance(source, Path)
        or text.startswith(("/", ".", "~"))
        or text.count("/") > 1
        or "\\" in text
        or text.endswith(SINGLE_FILE)
    )
