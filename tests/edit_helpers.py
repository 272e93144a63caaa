"""What the tests of edits share: words, weights and pictures of a model, the product of an edit's factors, threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

STEPS = 3
ZEBRA, LION = "a zebra in the savanna", "a lion on the beach"
PAIR = {"a zebra": "a giraffe"}
BOTH = PAIR | {"a giraffe": "a zebra"}
WINDOW = "unet.mid*.cross"


def weights(model):
    return [p.detach().clone() for name in ("unet", "text_encoder") for p in getattr(model.pipeline, name).parameters()]


def images(model, *worlds):
    return model.run(worlds, seeds=(0, 1), num_inference_steps=STEPS, guidance_scale=3.0).images.values


def change(edit, name):
    """b @ a of one site, in float64."""
    update = next(update for update in edit.updates if update.site == name)
    return update.b.double() @ update.a.double()


def lock_free(model) -> bool:
    """Whether another thread gets a model's lock at once."""

    def take():
        with model.lock:
            pass

    return passes(take)


def passes(work: Callable[[], Any]) -> bool:
    """Whether another thread does something at once, and need not wait."""
    done = threading.Event()
    threading.Thread(target=lambda: (work(), done.set()), daemon=True).start()
    return done.wait(0.5)


def errors_of(*works: Callable[[], Any]) -> list[BaseException]:
    """What is raised where all of them are done at once, each in a thread of its own."""
    with ThreadPoolExecutor(len(works)) as threads:
        futures = [threads.submit(work) for work in works]
    return [error for future in futures if (error := future.exception())]
