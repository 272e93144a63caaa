"""Path patching as two worlds: what a site does by way of others."""

from dataclasses import replace
from typing import Unpack

from workbench.arguments import checked, instance_of, optional, word
from workbench.interventions import Places, SiteNames, restore
from workbench.interventions.base import World


@checked(world=instance_of("workbench.interventions:World"), from_world=word, name=optional(word))
def restored(
    world: World,
    sites: SiteNames,
    from_world: str,
    *,
    through: SiteNames,
    name: str | None = None,
    **places: Unpack[Places],
) -> tuple[World, World]:
    """Two worlds for a run: one in which sites are restored, and one in which only what they do *through* other sites is (path
    patching, Goldowsky-Dill et al. 2023, arXiv 2304.05969, section 2).

    world: the corrupted one. sites, from_world, places: as for `wb.restore`. The first world restores these sites. The second is
    `world`, whose `through` sites have the values of the first: every way from the sites to these is open, every other way to the
    picture closed. Through all that reads the sites it is the first world. In a denoiser the ways run through earlier steps too. name:
    of the first world; the second is called "NAME, through". The run needs `world`'s sources, the first of these worlds and the second.

    >>> clean, noise = wb.World("clean", "a zebra"), wb.add_noise("text_encoder.embedding", 1.0, tokens="subject")
    >>> corrupted = wb.World("corrupted", "a zebra", noise, subject="zebra")
    >>> whole, path = wb.restored(corrupted, "text_encoder.0.mlp", "clean", through="unet.*.cross.v", tokens="subject")
    >>> path.name, path.interventions[-1].sites, path.interventions[-1].rule
    ('text_encoder.0.mlp, through', ('unet.*.cross.v',), Restore(world='text_encoder.0.mlp'))
    >>> run = model.run([clean, corrupted, whole, path])  # what the mlp does by way of the values: path against corrupted
    """
    there = restore(sites, from_world, **places)
    called = name or ", ".join(there.sites)
    whole = replace(world, name=called, interventions=(*world.interventions, there))
    path = replace(world, name=f"{called}, through", interventions=(*world.interventions, restore(through, called)))
    return whole, path
