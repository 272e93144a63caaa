"""`wb.check(model)`: what the workbench takes for granted, proved on a model of your own in a handful of denoiser calls.

    found = wb.check(model)
    found            # how many claims hold, and those that do not
    found.table      # every claim: site, claim, expected, seen, passed

`plain` asks the pipeline alone, through `hooks`; `laws` asks the engine; `report` is what comes out.
"""

from functools import partial

from workbench.arguments import checked, line, optional
from workbench.checks import laws, plain
from workbench.checks.report import ModelCheck
from workbench.checks.trial import Trial, changed, fewest_steps, state
from workbench.inputs import count
from workbench.models import Model
from workbench.progress import Bar

__all__ = ["ModelCheck", "check"]


@checked(prompt=line, target=optional(line), batch_size=partial(count, least=3))
def check(
    model: Model,
    *,
    every_site: bool = False,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float = 2.0,
    prompt: str = "a photo of a zebra",
    target: str | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> ModelCheck:
    """Prove on a model what the workbench takes for granted: seven short runs of Stable Diffusion, nine of SDXL (14 and 18 calls of the
    denoiser with a scheduler of one call a step).

    By plain PyTorch hooks: every site's module runs once in each call, in the table's order, with the shape and axes that are said;
    probabilities of attention sum to one and are the softmax of queries and keys; sites marked as not read change nothing; the
    denoiser's calls, timesteps and halves are those that runs are planned with. By the engine: the plain pipeline's picture comes
    out; at every site it reads what the hooks saw; twins are equal; all cross-attention layers (and the pooled vector) given
    `target` draw the target's picture; latents given back after a step give the picture back; and zeros at one site of each
    component and kind change the picture.

    every_site: put zeros at every site, not at one of each kind: a run for each 14 sites. height, width: in pixels, the pipeline's own
    when left out; small ones are quick. num_inference_steps: the fewest that the scheduler allows, from 2 on, when left out. prompt,
    target: two whose pictures differ; left out, a lion on the beach, or, where a prompt's padding is masked (PixArt), the prompt's own
    words in reverse, which are as many tokens. seed: of the noise. batch_size: largest number of pictures per call.

    What fails does not raise: it stands in the result, as does what the pipeline cannot be asked. ValueError for what is no model, and
    for settings that no run takes.

    >>> wb.check(model, height=32, width=32, progress=False).passed
    True
    """
    steps = fewest_steps(model.pipeline) if num_inference_steps is None else num_inference_steps
    model._settings(steps, guidance_scale, height, width)  # raises for settings that no run takes
    own = model.family.size(model.pipeline)
    if target is None:
        target = " ".join(reversed(prompt.split())) if model.family.masked else "a painting of a lion on the beach"
    trial = Trial(
        model,
        prompt=prompt,
        target=target,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        size=(height or own[0], width or own[1]),
        batch_size=batch_size,
    )
    parts = (
        lambda: plain.watch(trial),
        lambda: laws.plain_picture(trial),
        lambda: laws.worlds_of_laws(trial),
        lambda: laws.reading(trial),
        lambda: laws.overwriting(trial, every_site),
        lambda: plain.unread(trial, every_site),
    )
    counter = trial.denoiser.register_forward_pre_hook(trial.count)
    try:
        with model.lock:
            plain.draw(trial)
            before = state(model.pipeline)  # now: transformers leaves hooks of its own in a text encoder's first run
            with Bar(len(parts), "checking", "part", shown=progress) as bar:
                for part in parts:
                    part()
                    bar.update()
            left = changed(before, state(model.pipeline))
    finally:
        counter.remove()
    said = "hooks, processors, scheduler and dtypes are as before"
    trial.claims.say_unless("", "left behind", said, f"others: {', '.join(left)}" if left else None)
    return ModelCheck(trial.claims.table(), trial.calls, trial.about())
