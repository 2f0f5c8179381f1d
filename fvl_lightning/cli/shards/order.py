"""`fvl shards order`: the samples of one step of a training."""

from bisect import bisect_right
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import terminal


def order(
    experiment: Annotated[Path, typer.Argument(help="Experiment file, or the config.yaml of a run.")],
    step: Annotated[int, typer.Option(min=1, help="The step, as in metrics.jsonl.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides, those of the training.")] = None,
) -> None:
    """List the samples of one step of a training, and the number that `data/step_keys` logs for them.

    If the training has several processes, `trainer.batch_size` times their number lists the samples of all.

    Example: `fvl shards order experiments/demo/finetune.yaml --step 10`
    """
    config = load_config(ExperimentConfig, experiment, overrides or ())
    from datamodules.batching.loader import BatchLoader
    from fvl_lightning.runs.setup import build_stage, data_context, prepare_data
    from fvl_lightning.stages.step_metrics import hash_keys

    data = prepare_data(config)
    if data.STREAMS:
        raise ConfigError("fvl shards order: a stream has no order that is known before it is read; use data: shards")
    stage = build_stage(config, device="meta")
    data.connect(data_context(stage.model, stage.tokenizer, config))
    loader, store = data.train_dataloader(), data.store("train")
    assert isinstance(loader, BatchLoader), "data that is no stream"
    names = [dataset.name for dataset in data.datasets("train")]
    last = step * config.trainer.accumulate
    batches = islice(loader.rows, last - config.trainer.accumulate, last)
    samples = [piece.sample for rows in batches for piece in rows.pieces]
    table = Table(*(Column(name, overflow="fold") for name in ("shard", "key", *(["data set"] if names[1:] else []))))
    for sample in samples:
        cells = [store.shard(sample), store.key(sample)]
        cells += [names[bisect_right(loader.dataset.ends, sample)]] if names[1:] else []
        table.add_row(*cells)
    console = terminal()
    console.print(table)
    number = int(hash_keys([store.key(sample) for sample in samples]))
    console.print(f"data/step_keys: {number}, if none of them is left out as bad", soft_wrap=True)
