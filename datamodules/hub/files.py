"""Finds the Parquet files of a dataset on the Hugging Face hub, at one commit."""

import fnmatch
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from datamodules.hub.address import PREFIX, HubAddress, HubFile
from datamodules.hub.requests import SECONDS, endpoint, explain_hub_errors, patiently
from fvl_lightning.core.errors import DataError, nearest

DEFAULT_CONFIG, DEFAULT_SPLIT = "default", "train"
CONVERTED = "refs/convert/parquet"
"""The revision with the Parquet files that the hub makes of other formats."""

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
"""{word in the name of a file: its split}."""
_LISTED = 8
"""Names that a message lists."""

Splits = Mapping[str, tuple[str, ...]]
"""{split: its files, or patterns of their names}."""


@dataclass(frozen=True)
class Listing:
    """The Parquet files of a dataset at a commit, with their sizes, and the configs that its card declares."""

    commit: str
    files: Mapping[str, int | None]
    configs: Mapping[str, Splits]


_KNOWN: dict[tuple[str, str, str], Listing] = {}
"""{(hub, dataset, commit): its listing}."""


def commit_of(address: HubAddress) -> str:
    """Returns the commit that a revision names now; for the hash of a commit the hub is not asked.

    Raises:
        DataError: the hub cannot be reached, or has no such dataset or revision.
    """
    return address.commit or _list(address).commit


def parquet_files(address: HubAddress) -> list[HubFile]:
    """Returns the Parquet files of an address, sorted by name.

    Configs and splits are those of the dataset's card. Without a card, folders are configs, and the names of files have
    the split. An address without a config means the only one, or the one named default; without a split it means train,
    or the only one.

    Raises:
        DataError: as commit_of; there are no Parquet files; no such config or split, or several to choose from.
    """
    listing = _list(address)
    address = replace(address, revision=None if address.commit else address.revision)  # as people write it
    if not listing.files:
        hint = "" if address.revision == CONVERTED else f"; {PREFIX}{address.dataset}@{CONVERTED} may have some"
        raise DataError(f"{address}: the dataset has no Parquet files{hint}")
    configs = _declared_files(listing) or _folders(listing.files)
    config = _choose("config", address.config, configs, (DEFAULT_CONFIG, "data", ""), address)
    split = _choose("split", address.split, configs[config], (DEFAULT_SPLIT,), replace(address, config=config or None))
    return [
        HubFile(address.dataset, listing.commit, name, listing.files[name]) for name in sorted(configs[config][split])
    ]


def _list(address: HubAddress) -> Listing:
    """Returns the files of a dataset now, or at its commit, where they never change and are asked for once."""
    hub = endpoint()
    if address.commit and (known := _KNOWN.get((hub, address.dataset, address.commit))):
        return known
    listing = _ask(HubAddress(address.dataset, address.revision), hub)
    _KNOWN[hub, address.dataset, listing.commit] = listing
    return listing


def _ask(address: HubAddress, hub: str) -> Listing:
    api = importlib.import_module("huggingface_hub").HfApi(endpoint=hub)

    def info() -> Any:
        return api.dataset_info(address.dataset, revision=address.revision, files_metadata=True, timeout=SECONDS)

    with explain_hub_errors(address, address.dataset, address.revision):
        found = patiently(info)
    if not isinstance(found.sha, str) or HubAddress(address.dataset, found.sha).commit is None:
        raise DataError(f"{address} cannot be read: {hub} names no commit of it")
    card = found.card_data.to_dict() if found.card_data is not None else {}
    files = {one.rfilename: one.size for one in found.siblings or () if one.rfilename.endswith(".parquet")}
    return Listing(found.sha, files, _declared(card.get("configs")))


def _declared(configs: Any) -> dict[str, Splits]:
    """Returns {config: {split: patterns}} of a card's `configs`; entries of another form are left out."""
    declared: dict[str, Splits] = {}
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, Mapping) and isinstance(config.get("config_name"), str):
            files, folder = config.get("data_files"), config.get("data_dir")
            if files is None and isinstance(folder, str):
                files = f"{folder.strip('/')}/*"
            declared[config["config_name"]] = _patterns(files)
    return declared


def _patterns(files: Any) -> Splits:
    """Returns {split: patterns} of a card's `data_files`: one pattern, several, or several splits with theirs."""
    if isinstance(files, str) or (isinstance(files, list) and all(isinstance(file, str) for file in files)):
        files = [{"split": DEFAULT_SPLIT, "path": files}]
    patterns: dict[str, tuple[str, ...]] = {}
    for entry in files if isinstance(files, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("split"), str):
            path = entry.get("path")
            paths = [path] if isinstance(path, str) else path if isinstance(path, list) else []
            patterns[entry["split"]] = tuple(one for one in paths if isinstance(one, str))
    return patterns


def _declared_files(listing: Listing) -> dict[str, Splits]:
    """Returns {config: {split: its files}} as the card declares them, without those that have no Parquet file."""
    found: dict[str, Splits] = {}
    for config, splits in listing.configs.items():
        files = {split: _matches(listing.files, patterns) for split, patterns in splits.items()}
        if files := {split: names for split, names in files.items() if names}:
            found[config] = files
    return found


def _matches(names: Iterable[str], patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def _folders(names: Iterable[str]) -> dict[str, Splits]:
    """Returns {folder: {split: its files}}, by the first folder of each path and the words in its names."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for name in names:
        folder = name.partition("/")[0] if "/" in name else ""
        words = (re.split(r"[-.]", part)[0] for part in reversed(name.split("/")))
        split = next((_SPLITS[word] for word in words if word in _SPLITS), DEFAULT_SPLIT)
        splits = found.setdefault(folder, {})
        splits[split] = (*splits.get(split, ()), name)
    return dict(found)


def _choose(
    what: str, wanted: str | None, there: Mapping[str, Any], customary: tuple[str, ...], address: HubAddress
) -> str:
    """Returns the wanted one of several names; without a wish the only one, or the customary one."""
    if wanted in there:
        return str(wanted)
    names = sorted(there)
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    if wanted is not None:
        close = nearest(wanted, names)
        hint = f"; did you mean '{close}'?" if close else ""
        raise DataError(f"{address}: {address.dataset} has no {what} '{wanted}', there are {listed}{hint}")
    usual = names[0] if len(names) == 1 else next((name for name in customary if name in there), None)
    if usual is None:
        example = replace(address, config=names[0]) if what == "config" else replace(address, split=names[0])
        raise DataError(f"{address}: {address.dataset} has {len(names)} {what}s, {listed}; name one, as in {example}")
    return usual
