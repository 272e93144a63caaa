"""What experiments are asked, as frozen values: the fields that all share. The command line reads them before torch is imported."""

from dataclasses import dataclass

from workbench.arguments import Check, fit


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every experiment is asked."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Of the starting noise, shared by everything that is compared."""
    num_inference_steps: int | None = None
    """The model's own when left out."""
    guidance_scale: float | None = None
    """The model's own when left out."""

    def __post_init__(self):
        fit(self, **self.checks())

    def checks(self) -> dict[str, Check]:
        """What each field may be, by name; the ones that `workbench.arguments` knows besides."""
        return {}
