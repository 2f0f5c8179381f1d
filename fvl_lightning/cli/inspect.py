"""`fvl list`, `fvl describe` and `fvl show`: what there is, what it takes, and what an experiment comes to."""

import dataclasses
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from fvl_lightning.core.component_sources.components import summaries
from fvl_lightning.core.config.field_docs import field_meanings
from fvl_lightning.core.config.field_types import PathsText, PathText
from fvl_lightning.core.config.loading import as_plain, load_config
from fvl_lightning.core.config.yaml_text import write_yaml
from fvl_lightning.core.errors import DataError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.registry import SLOT_PACKAGES
from fvl_lightning.core.terminal import terminal


def list_components(
    slot: Annotated[str | None, typer.Argument(help="Only this slot, such as fusion.")] = None,
) -> None:
    """List the components that can fill each slot.

    Example: `fvl list fusion`
    """
    table = Table("slot", "name", "what it is")
    for name in [slot] if slot else SLOT_PACKAGES:
        for component in summaries(name).values():
            table.add_row(name, component.name, component.docstring.split("\n", 1)[0])
    terminal().print(table)


def describe(
    slot: Annotated[str, typer.Argument(help="A slot, such as fusion.")],
    name: Annotated[str, typer.Argument(help="A registered name, such as gated.")],
) -> None:
    """Describe a component and every field of its configuration.

    Example: `fvl describe fusion gated`
    """
    components = summaries(slot)
    if name not in components:
        raise unknown_name(slot, name, components, slot)
    component, console = components[name], terminal()
    heading = Text.assemble((f"{slot} {name}", "bold"), f"  ({component.qualified_name})")
    console.print(heading, soft_wrap=True)
    console.print(component.docstring)
    fields = dataclasses.fields(component.config)
    if not fields:
        console.print(f"\nNothing to set: `{slot}: {name}`")
        return
    table = Table(
        Column("field", no_wrap=True), *(Column(name, overflow="fold") for name in ("type", "default", "meaning"))
    )
    meanings = field_meanings(component.config)
    for field in fields:
        default = field.default if field.default is not dataclasses.MISSING else "(needed)"
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        allowed = str(field.metadata.get("range") or "")
        typed = f"{_type_name(field.type)}, {allowed}" if allowed else _type_name(field.type)
        table.add_row(field.name, typed, str(default), meanings.get(field.name, ""))
    console.print(table)


def show(
    experiment: Annotated[Path, typer.Argument(help="Experiment file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value words.")] = None,
) -> None:
    """Show an experiment: its resolved configuration, and the parameters of each component, frozen or trained.

    Example: `fvl show experiments/demo/finetune.yaml fusion=attention`
    """
    config = load_config(ExperimentConfig, experiment, overrides or ())
    console = terminal()
    parts = _parts(config) if config.stage else ""  # what cannot be built is said without all that was written
    console.print(Syntax(write_yaml(as_plain(config)), "yaml", background_color="default"))
    console.print(parts)


def _parts(config: ExperimentConfig) -> Table:
    """Parameters of each component, and how it learns."""
    from fvl_lightning.runs.setup import build_stage, prepare_data
    from fvl_lightning.training.components import count_parameters

    assert config.stage is not None
    with suppress(DataError):  # of the data only the demo's tokenizer is needed, and shards may not be here yet
        prepare_data(config)
    stage = build_stage(config, device="meta")
    stage.adapt(Path())
    table = Table("component", "parameters", "trainable", "mode", title=f"{config.name}: stage {config.stage.name}")
    for component, counts in count_parameters(stage.model).items():
        if component in stage.trainable:
            row = (f"{counts['parameters']:,}", f"{counts['trainable']:,}", stage.trainable[component])
            table.add_row(component, *row)
    return table


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    text = str(annotation).replace(str(PathText), "path").replace(str(PathsText), "path or list of paths")
    return re.sub(r"Optional\[(.*)\]$", r"\1 | None", text.replace("typing.", ""))
