"""What tells one model from another, for results to carry: weights, scheduler, tokenizers, adapters, the path of attention.

Weights are hashed once for a model: a checksum of all their bits, an order of magnitude cheaper, notices when they changed.
"""

import hashlib
import json
import math
import weakref
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from workbench.families import family_of

MANIFEST = "SHA256SUMS"
# of a text encoder's configuration
TEXT_FACTS = (
    *("hidden_act", "layer_norm_eps", "num_attention_heads", "eos_token_id", "_attn_implementation"),  # CLIP
    *("feed_forward_proj", "layer_norm_epsilon", "num_heads", "d_kv"),  # T5
    *("relative_attention_num_buckets", "relative_attention_max_distance"),
)
_HASHED: "weakref.WeakKeyDictionary[torch.nn.Module, tuple[str, str]]" = weakref.WeakKeyDictionary()


def identity(pipeline: DiffusionPipeline) -> dict:
    """All of a pipeline that its pictures depend on, as JSON holds it."""
    family = family_of(pipeline)
    denoiser = getattr(pipeline, family.denoiser)
    parts = {
        name: part
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
        and name != "safety_checker"  # it draws nothing: what it blacks out is an error
    }
    config = {  # DPM-Solver's has an infinity, which JSON does not hold
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in pipeline.scheduler.config.items()
        if not key.startswith("_")
    }
    processors = {type(processor).__name__ for processor in denoiser.attn_processors.values()}
    return {
        "pipeline": type(pipeline).__name__,
        "scheduler": {"class": type(pipeline.scheduler).__name__} | json.loads(json.dumps(config, default=str)),
        "weights": {name: fingerprint(part) for name, part in parts.items()},
        "configurations": {name: _configuration(part) for name, part in parts.items()},
        "tokenizers": {
            encoder.tokenizer: _tokenizer(getattr(pipeline, encoder.tokenizer)) for encoder in family.present(pipeline)
        },
        "adapters": {name: found for name, part in parts.items() if (found := _adapters(part))},
        "attention": sorted(processors),
        "switches": _switches(pipeline, denoiser),
    } | family.keywords(pipeline)


def fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers, in hexadecimal; computed once, and again when any of their bits changed."""
    key = _checksum(module)
    held = _HASHED.get(module)
    if held is None or held[0] != key:
        held = _HASHED[module] = (key, _sha256(module))
    return held[1]


def _sha256(module: torch.nn.Module) -> str:
    state = hashlib.sha256()
    for name, value in module.state_dict().items():
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def _checksum(module: torch.nn.Module) -> str:
    """A digest of the sums of all bits, along rows and along columns of a table of them: moved values change it as new ones do."""
    state = hashlib.sha256()
    for name, value in module.state_dict().items():
        bits = value.detach().contiguous().flatten().view(torch.uint8)
        whole = len(bits) // 8192 * 8192
        table = bits[:whole].view(torch.int64).reshape(-1, 1024)
        state.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        for part in (table.sum(0), table.sum(1), bits[whole:]):
            state.update(part.cpu().numpy().tobytes())
    return state.hexdigest()


def _configuration(module: torch.nn.Module) -> str:
    """SHA-256 of what a component's configuration says of its arithmetic, which its weights do not: activations, heads, scales."""
    config = getattr(module, "config", {})
    if hasattr(config, "to_dict"):  # transformers writes much else there, other things in each version
        held = {name: getattr(config, name, None) for name in TEXT_FACTS}
    else:
        held = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    own = {name: value for name, value in held.items() if value is not None}
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()


def _tokenizer(tokenizer) -> str:
    """SHA-256 of what a tokenizer does: its rules, or at least its words, and its length.

    Padding and truncation are left out: they are what the latest call asked for.
    """
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        kept = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
        text = json.dumps(kept, sort_keys=True)
    else:
        text = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{tokenizer.model_max_length} {text}".encode()).hexdigest()


def _adapters(module: torch.nn.Module) -> dict[str, list[str]]:
    """Which adapters act where in a module, at which scale, and whether they are fused: places by what is so there."""
    states: dict[str, list[str]] = {}
    for path, part in module.named_modules():
        if hasattr(part, "base_layer") and hasattr(part, "active_adapters"):
            scales = {name: part.scaling[name] for name in part.active_adapters if name in part.scaling}
            state = f"{sorted(scales.items())} {'fused' if part.merged else 'off' if part.disable_adapters else 'on'}"
            states.setdefault(state, []).append(path)
    return states


def _switches(pipeline, denoiser: torch.nn.Module) -> dict:
    """What diffusers can switch on without changing modules: FreeU, tiled decoding, zeros for an empty negative prompt."""
    freeu = {
        name: getattr(block, name)
        for block in getattr(denoiser, "up_blocks", [])
        for name in ("s1", "s2", "b1", "b2")
        if getattr(block, name, None) is not None
    }
    switches = {
        "freeu": freeu,
        "tiled": getattr(getattr(pipeline, "vae", None), "use_tiling", False),
        "zeros": pipeline.config.get("force_zeros_for_empty_prompt", False),
    }
    return {name: value for name, value in switches.items() if value}


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path):
    """Write SHA256SUMS for every file under a folder, in the form that `sha256sum -c` reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    (folder / MANIFEST).write_text(
        "".join(f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    )


def verify_files(folder: Path):
    """Check a folder against its SHA256SUMS."""
    for line in (folder / MANIFEST).read_text().splitlines():
        expected, name = line.split("  ", 1)
        path = folder / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: {MANIFEST} expects it with SHA-256 {expected}, found no file; restore it "
                "(git checkout, or install the package again)"
            )
        if (found := digest(path)) != expected:
            raise ValueError(
                f"{path} was altered: {MANIFEST} expects SHA-256 {expected}, found {found}; restore it "
                "(git checkout, or install the package again), or pass verify=False to load it as it is"
            )
