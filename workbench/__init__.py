"""A mechanistic-interpretability workbench for text-to-image diffusion models: `import workbench as wb`.

The public names stand in `__init__.pyi`, where type checkers and editors read them; each is imported when it is first asked
for, so that `import workbench` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
