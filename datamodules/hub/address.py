"""Addresses of datasets on the Hugging Face hub: `hub:owner/name@revision:config/split`."""

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

PREFIX = "hub:"

_NAME = r"[A-Za-z0-9_][\w.-]*"
_ADDRESS = re.compile(
    rf"{PREFIX}(?P<dataset>{_NAME}(?:/{_NAME})?)(?:@(?P<revision>[^:\s]+))?"
    r"(?::(?P<config>[^/\s]+)(?:/(?P<split>[^/\s]+))?)?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubAddress:
    """A dataset of the hub, or one of its configs and splits; without a revision, its newest commit."""

    dataset: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubAddress":
        """Reads an address; characters of a config or split may be written as in a URL (%20).

        Raises:
            ValueError: it is not of this form.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or ".." in match["dataset"]:
            raise ValueError(
                f"file: {text!r} is no dataset of the hub: write hub:owner/name, with @revision and :config/split "
                "where they are needed, such as hub:HuggingFaceM4/the_cauldron@main:chartqa/train"
            )
        config, split = (match[name] and unquote(match[name]) for name in ("config", "split"))
        return cls(match["dataset"], match["revision"], config, split)

    @property
    def repository(self) -> str:
        """The address without config and split, by which a manifest records the commit."""
        return f"{PREFIX}{self.dataset}" + (f"@{self.revision}" if self.revision else "")

    @property
    def commit(self) -> str | None:
        """The revision where it is the full hash of a commit, whose files never change."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        parts = [quote(part, safe="") for part in (self.config, self.split) if part]
        return self.repository + (f":{'/'.join(parts)}" if parts else "")

    def at(self, commit: str) -> "HubAddress":
        """Returns the same config and split at a commit."""
        return replace(self, revision=commit)


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset at a commit; its size in bytes is None where the hub does not list it."""

    dataset: str
    commit: str
    path: str
    size: int | None = None

    @property
    def name(self) -> str:
        """The path in the dataset, since files of several configs often have the same name."""
        return self.path

    def __str__(self) -> str:
        return f"{self.path} of {PREFIX}{self.dataset}@{self.commit[:12]}"


def is_hub(place: str) -> bool:
    """Returns whether a text is meant as the address of a dataset on the hub."""
    return place.startswith(PREFIX)
