"""Compares shards with the manifests in their folders: of builds, and of sets that list only samples per split."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.building.manifest import MANIFEST_NAME, Manifest
from datamodules.inspection.check import Findings, ShardProblem
from datamodules.storage.remote import is_remote, list_names, read_bytes
from datamodules.storage.shard_paths import split_of_shard
from datamodules.storage.writer import Shard
from fvl_lightning.core.errors import DataError, os_error_in_words


@dataclass
class Manifests:
    """The content of the manifests next to some shards.

    Attributes:
        shards: the shards that builds have listed, by path.
        samples: {folder: {split: number of samples}} of sets such as the demo's, which list no shards.
        others: files with the name of a manifest and another purpose; nothing can be compared with them.
        findings: a problem for every manifest that cannot be read.
    """

    shards: dict[str, Shard] = field(default_factory=dict)
    samples: dict[str, dict[str, int]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


def read_manifests(shards: Sequence[str]) -> Manifests:
    """Returns the content of the manifests next to these shards."""
    found = Manifests()
    for folder in sorted({shard.rpartition("/")[0] for shard in shards}):
        for name in filter(MANIFEST_NAME.fullmatch, _listed(folder)):
            place = f"{folder}/{name}" if folder else name
            try:
                _read_manifest(place, folder, found)
            except DataError as error:
                found.findings.add(ShardProblem("manifest", place, "", str(error)))
    return found


def _read_manifest(place: str, folder: str, found: Manifests) -> None:
    try:
        content = read_bytes(place) if is_remote(place) else Path(place).read_bytes()
    except OSError as error:
        raise DataError(f"{place} cannot be read: {os_error_in_words(error)}") from None
    text = content.decode("utf-8", errors="replace")
    fields = _fields(text)
    counts = fields.get("counts")
    if isinstance(counts, dict) and all(type(count) is int for count in counts.values()):
        found.samples[folder] = counts
    elif fields and not {"settings", "splits"} & fields.keys():
        found.others.append(place)
    else:
        manifest = Manifest.from_json(text, place)
        found.shards |= {f"{folder}/{shard.name}" if folder else shard.name: shard for shard in manifest.all_shards}


def _fields(text: str) -> dict[str, Any]:
    """Returns a JSON object; an empty one for any other text."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def missing_shards(manifests: Manifests, shards: Sequence[str]) -> Findings:
    """Returns a finding for every shard of a build that is neither in its folder nor among `shards`."""
    findings = Findings()
    names = {folder: set(_listed(folder)) for folder in {place.rpartition("/")[0] for place in manifests.shards}}
    for place, shard in manifests.shards.items():
        if place not in shards and shard.name not in names[place.rpartition("/")[0]]:
            findings.add(ShardProblem("missing shard", place, "", f"the manifest lists it, {shard.samples} samples"))
    return findings


def wrong_counts(manifests: Manifests, samples: Mapping[str, int]) -> Findings:
    """Returns a finding for every split that has another number of samples than its manifest says.

    Args:
        manifests: of the folders of the shards.
        samples: {shard: its samples}; a split of which some shards are left out is not judged.
    """
    findings = Findings()
    for folder, expected in manifests.samples.items():
        names = defaultdict(set)
        for name in _listed(folder):
            names[split_of_shard(name)].add(f"{folder}/{name}" if folder else name)
        for split, count in expected.items():
            there = sum(samples.get(shard, 0) for shard in names[split])
            if names[split] <= samples.keys() and there != count:
                where = f"{folder}/{split}-*.tar" if folder else f"{split}-*.tar"
                findings.add(ShardProblem("samples", where, "", f"{there} samples, {count} in the manifest"))
    return findings


def _listed(folder: str) -> list[str]:
    if not is_remote(folder):
        return sorted(path.name for path in Path(folder or ".").iterdir())
    try:
        return list_names(folder)
    except DataError:  # a plain web server has no listing
        return []
