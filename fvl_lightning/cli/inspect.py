"""`fvl list`, `fvl describe` and `fvl show`: what there is, what it takes, and what an experiment comes to."""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.component_sources.components import summaries
from fvl_lightning.core.config.field_docs import field_meanings
from fvl_lightning.core.config.field_types import PathsText, PathText
from fvl_lightning.core.config.known_keys import meant_key
from fvl_lightning.core.config.loading import as_plain, load_config
from fvl_lightning.core.config.yaml_text import write_yaml
from fvl_lightning.core.errors import unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.registry import SLOT_PACKAGES
from fvl_lightning.core.terminal import terminal

TASK = "task"
"""Stands for benchmarks, where other words stand for a slot or a section of an experiment."""
OwnComponents = Annotated[
    list[str] | None, typer.Option("--plugins", help="File or module with components of your own; repeat for several.")
]


def list_components(
    slot: Annotated[str | None, typer.Argument(help="Only this slot, such as fusion.")] = None,
    plugins: OwnComponents = None,
) -> None:
    """List the components that can fill each slot, or the benchmarks that `fvl evaluate --tasks` knows.

    Example: `fvl list fusion`
    Example: `fvl list task`
    """
    if slot == TASK:
        _list_tasks()
        return
    table = Table("slot", "name", "what it is")
    for name in [slot] if slot else SLOT_PACKAGES:
        for component in summaries(name, plugins or ()).values():
            table.add_row(name, component.name, component.docstring.split("\n", 1)[0])
    terminal().print(table)


def describe(
    slot: Annotated[
        str | None, typer.Argument(help="A slot, such as fusion, or a section of an experiment, such as trainer.")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="A component of the slot, such as gated, or a key of the section.")
    ] = None,
    plugins: OwnComponents = None,
) -> None:
    """Describe a component or a section of an experiment: every key, its type, default and meaning.

    Without a name, a slot is described by its components; without arguments, an experiment by its keys. `comparison`
    describes the keys of a comparison file, `task` those of a task file, and `task.data` those of its section.

    Example: `fvl describe fusion gated`
    Example: `fvl describe task textvqa`
    """
    section, _, key = (slot or "").partition(".")
    wanted = name or key or None
    if section == TASK:
        _describe_task(wanted)
        return
    if section in SLOT_PACKAGES:
        if wanted is None:
            list_components(section, plugins)
        else:
            _describe_component(section, wanted, plugins or ())
        return
    _describe_section(section, wanted)


def _list_tasks() -> None:
    from fvl_lightning.evaluation.tasks.lookup import find_task, task_names

    table = Table("task", "title", "metric", "source")
    for name in task_names():
        task = find_task(name)
        table.add_row(name, task.title, as_plain(task.metric)["name"], task.source)
    terminal().print(table)


def _describe_task(name: str | None) -> None:
    """Prints a task of the catalog as it would be written, or the keys of a task file or of a section of it."""
    from fvl_lightning.evaluation.tasks.config import TaskConfig
    from fvl_lightning.evaluation.tasks.lookup import find_task, task_names

    sections = {key: kind for key, kind in get_type_hints(TaskConfig).items() if dataclasses.is_dataclass(kind)}
    if name is None or name in sections:
        terminal().print(_fields(sections[name] if name else TaskConfig, within=f"{TASK}."))
        return
    if name not in task_names():
        raise unknown_name("task or section", name, {*task_names(), *sections}, TASK)
    terminal().print(Syntax(write_yaml(as_plain(find_task(name))), "yaml", background_color="default"))


def _describe_component(slot: str, name: str, plugins: Sequence[str]) -> None:
    components = summaries(slot, plugins)
    if name not in components:
        raise unknown_name(slot, name, components, slot)
    component, console = components[name], terminal()
    heading = Text.assemble((f"{slot} {name}", "bold"), f"  ({component.qualified_name})")
    console.print(heading, soft_wrap=True)
    console.print(component.docstring)
    if dataclasses.fields(component.config):
        console.print(_fields(component.config))
    else:
        console.print(f"\nNothing to set: `{slot}: {name}`")


def _describe_section(section: str, key: str | None) -> None:
    """Prints the keys of an experiment, of a comparison, or of one of their sections; or a single key."""
    schemas: dict[str, Any] = {"": ExperimentConfig, "experiment": ExperimentConfig, "comparison": ComparisonConfig}
    if section not in schemas:
        types = get_type_hints(ExperimentConfig)
        if section not in types:
            raise unknown_name("slot or section", section, {*SLOT_PACKAGES, *types, "comparison", TASK}, "describe")
        inner = next(
            (one for one in (types[section], *get_args(types[section])) if dataclasses.is_dataclass(one)), None
        )
        if inner is None:
            terminal().print(_fields(ExperimentConfig, section))
            return
        schemas[section] = inner
    schema = schemas[section]
    known = [field.name for field in dataclasses.fields(schema)]
    if key is not None and key not in known:
        raise unknown_name("key", key, known, section, meant_key(key, known, schema, {}))
    if key is None:
        terminal().print(Text.assemble((section or "experiment", "bold")), inspect.getdoc(schema) or "")
    terminal().print(_fields(schema, key))


def _fields(config: Any, key: str | None = None, within: str = "") -> Table:
    """Returns a table of the fields of a dataclass, or of one of them; `within` begins the names of its sections."""
    table = Table(
        Column("field", no_wrap=True), *(Column(name, overflow="fold") for name in ("type", "default", "meaning"))
    )
    meanings = field_meanings(config)
    for field in dataclasses.fields(config):
        if key not in (None, field.name):
            continue
        default = field.default if field.default is not dataclasses.MISSING else "(needed)"
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        allowed, meaning = str(field.metadata.get("range") or ""), meanings.get(field.name, "")
        typed = f"{_type_name(field.type)}, {allowed}" if allowed else _type_name(field.type)
        if "slot" in field.metadata or dataclasses.is_dataclass(default):
            default, typed = "", "component" if "slot" in field.metadata else "section"
            listed = "components" if typed == "component" else "keys"
            meaning = meaning or f"`fvl describe {within}{field.name}` lists its {listed}."
        table.add_row(field.name, typed, str(default), meaning)
    return table


def show(
    experiment: Annotated[Path, typer.Argument(help="Experiment file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value overrides, such as fusion=attention.")
    ] = None,
) -> None:
    """Show the resolved configuration of an experiment, its batch, and the parameters of each component.

    Example: `fvl show experiments/demo/finetune.yaml fusion=attention`
    """
    config = load_config(ExperimentConfig, experiment, overrides or ())
    console = terminal()
    parts = _parts(config) if config.stage else ""  # what cannot be built is said without all that was written
    console.print(Syntax(write_yaml(as_plain(config)), "yaml", background_color="default"))
    console.print(parts)
    console.print(f"batch: {config.trainer.batch_in_words()}", soft_wrap=True)


def _parts(config: ExperimentConfig) -> Table:
    """Parameters of each component, and how it learns."""
    from fvl_lightning.runs.setup import build_stage
    from fvl_lightning.training.components import count_parameters

    assert config.stage is not None
    if config.data is not None:
        config.data.component(config.data.config).prepare_tokenizer()
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
    text = re.sub(r"\b(?:\w+\.)+(\w+Config)\b", r"\1", text)
    return re.sub(r"Optional\[(.*)\]$", r"\1 | None", text.replace("typing.", ""))
