"""What the tests of edits share: words, weights and pictures of a model, the product of an edit's factors."""

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
