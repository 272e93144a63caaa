"""A mechanistic-interpretability workbench for text-to-image diffusion models: `import workbench as wb`."""

from workbench.metrics import Scorer
from workbench.models import Model, load

__all__ = ["Model", "Scorer", "load"]
