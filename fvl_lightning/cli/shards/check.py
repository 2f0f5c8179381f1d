"""`fvl shards index` and `fvl shards check`: the files that training will read, before it does."""

from functools import partial
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from fvl_lightning.cli.shards.options import Paths, Processes
from fvl_lightning.core.terminal import counted_table, plural, progress_bar, terminal

if TYPE_CHECKING:
    from datamodules.inspection.check import Findings

FOUND = 1
"""Exit code of a check that found something wrong."""


def index(paths: Paths, processes: Processes = None) -> None:
    """Index tars made elsewhere, and say what of them cannot be used; training would do it on first use.

    Example: `fvl shards index 'shards/theirs/*.tar' --processes 4`
    """
    from datamodules.inspection.check import Findings, index_shard
    from datamodules.inspection.parallel import map_in_processes
    from datamodules.storage.index import DAMAGE
    from datamodules.storage.shard_cache import shard_cache
    from datamodules.storage.shard_files import DAMAGED
    from datamodules.storage.shard_paths import expand_shards

    shards = expand_shards(paths)
    findings = Findings()
    with progress_bar("indexing, shards", len(shards)) as progress:
        for found in map_in_processes(partial(index_shard, shard_cache()), shards, processes):
            findings.merge(found)
            progress(1)
    console = terminal()
    _show(findings, len(shards), "indexed", console)
    if any(reason in findings.counts for reason in DAMAGE):
        console.print(DAMAGED, soft_wrap=True)


def check(paths: Paths, processes: Processes = None) -> None:
    """Check shards: bytes, structure, index, every JSON, every image. Exit code 1 where something is wrong.

    Example: `fvl shards check 'shards/mine/train-{000000..000009}.tar' --processes 4`
    """
    from datamodules.inspection.check import check_samples, check_tar
    from datamodules.inspection.manifests import missing_shards, read_manifests, wrong_counts
    from datamodules.inspection.parallel import map_in_processes
    from datamodules.storage.sample_store import SampleStore
    from datamodules.storage.shard_cache import shard_cache
    from datamodules.storage.shard_paths import expand_shards

    shards = expand_shards(paths)
    manifests, cache = read_manifests(shards), shard_cache()
    findings = manifests.findings
    findings.merge(missing_shards(manifests, shards))
    usable, samples = [], dict.fromkeys(shards, 0)
    with progress_bar("bytes and structure, shards", len(shards)) as progress:
        for checked in map_in_processes(partial(check_tar, manifests.shards, cache), shards, processes):
            findings.merge(checked.findings)
            usable += [checked.shard] if checked.usable else []
            progress(1)
    if usable:
        store = SampleStore(usable, "all", cache)
        with progress_bar("texts and images, samples", len(store)) as progress:
            findings.merge(check_samples(store, processes, progress))
        samples |= zip(usable, store.samples_per_shard, strict=True)
    findings.merge(wrong_counts(manifests, samples))
    console = terminal()
    for place in manifests.others:
        console.print(f"{place} is not the manifest of a build: no sizes and checksums to compare", soft_wrap=True)
    _show(findings, len(shards), "all is well", console)
    if findings.counts:
        raise typer.Exit(FOUND)


def _show(findings: "Findings", shards: int, well: str, console: Console) -> None:
    looked = f"{plural(shards, 'shard')}, {plural(findings.samples, 'sample')}, {plural(findings.images, 'image')}"
    if findings.ignored:
        passed = ", ".join(f"{count:,} {suffix}" for suffix, count in findings.ignored.most_common(5))
        console.print(f"members that say nothing to training, passed over: {passed}", soft_wrap=True)
    if not findings.counts:
        console.print(f"{looked}: {well}", soft_wrap=True)
        return
    console.print(f"{looked}: {findings.counts.total():,} cannot be used", soft_wrap=True)
    table = counted_table(("reason", "count"))
    for reason, count in findings.counts.most_common():
        table.add_row(reason, f"{count:,}")
    console.print(table)
    examples = Table("reason", "the first of each: shard", "key", "what")
    for reason, _ in findings.counts.most_common():
        for finding in findings.examples[reason]:
            cells = (finding.shard, finding.key, finding.detail)
            examples.add_row(reason, *cells)
    console.print(examples)
