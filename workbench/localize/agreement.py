"""Which layers carry which attribute, by four localizers? `python -m workbench.localize.agreement` measures and draws it.

`locogen.png`: direct effect of each window, for six attributes; `locogen_images.png`: one image for each window;
`localizers.png`: where the localizers agree; `locogen.csv`, `localizers.csv` and `agreement.csv`: every number with its
interval. Finished parts are kept in `runs/agreement`: what was stopped goes on with the same command.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from workbench.localize.causal_trace import TraceSpec
from workbench.localize.compare import Comparison, compare_localizers
from workbench.localize.locogen import LocoGenSpec
from workbench.metrics import Scorer
from workbench.models import load
from workbench.prompts import prompt_set

ATTRIBUTES = ("object", "style", "colour", "season", "action", "fact")


@dataclass
class AgreementOptions:
    attributes: tuple[str, ...] = ATTRIBUTES
    prompts: int = 12
    seeds: int = 2
    noise_multiple: float = 6.0
    num_inference_steps: int = 12
    widths: tuple[int, ...] = (1, 2)
    batch_size: int = 32
    runs: Path = Path("runs/agreement")
    out: Path = Path("figures")


def main(options: AgreementOptions):
    model, scorer = load(), Scorer()
    found: dict[str, Comparison] = {}
    for attribute in options.attributes:
        trace = TraceSpec(noise_multiple=options.noise_multiple, draws=1, seeds=tuple(range(options.seeds)),
                          num_inference_steps=options.num_inference_steps)  # fmt: skip
        prompts = prompt_set(attribute)[: options.prompts]
        found[attribute] = compare_localizers(model, prompts, trace=trace, generate=LocoGenSpec(widths=options.widths), scorer=scorer,
                                              folder=options.runs / attribute, batch_size=options.batch_size)  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(AgreementOptions))
