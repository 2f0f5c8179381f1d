"""The registered components of the kit itself."""

from fvl_lightning.core import registry


def own_names(slot: str) -> list[str]:
    """The components of the kit, without the plugins of other tests in this process."""
    own = ("fvl_lightning.", "datamodules.")
    return [name for name in registry.names(slot) if registry.component(slot, name).__module__.startswith(own)]
