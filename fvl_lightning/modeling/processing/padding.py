"""Truncation, padding and tensors for the token ids of a batch, with transformers' options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from fvl_lightning.core.errors import ConfigError

Side = Literal["left", "right"]
Ids = list[int]

OPTION_GROUPS = ("text_kwargs", "common_kwargs")
"""Keyword arguments that group options, as in transformers; "images_kwargs" belong to the image processor."""
IGNORED_IF_FALSE = (
    "is_split_into_words", "return_token_type_ids", "return_mm_token_type_ids", "return_offsets_mapping",
    "return_overflowing_tokens", "return_special_tokens_mask", "return_length", "sanitize_control_tokens",
)  # fmt: skip
"""Options of other processors that are ignored if False."""
UNBOUNDED = 10**9
"""A tokenizer without `model_max_length` has a larger value than this in transformers."""


@dataclass(frozen=True)
class RowOptions:
    """Options for the padding, the truncation and the type of the rows of a batch."""

    padding: bool | str = True
    """True or "longest", "max_length", False or "do_not_pad"."""
    padding_side: Side = "left"
    pad_to_multiple_of: int | None = None
    truncation: bool | str = False
    """True or "longest_first" truncates rows to `max_length`; False or "do_not_truncate"."""
    max_length: int | None = None
    """None for the tokenizer's, if it has one."""
    return_tensors: str | None = "auto"
    """"auto" gives PyTorch tensors if all rows have one length, and lists otherwise; None always gives lists."""
    return_attention_mask: bool = True
    add_special_tokens: bool | None = None
    """None adds them unless the text begins with the beginning-of-sequence token already."""

    @classmethod
    def read(cls, keywords: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Returns the options among the keyword arguments, and the other keyword arguments.

        Raises:
            ConfigError: an option has a value that is not allowed.
        """
        flat = {name: value for name, value in keywords.items() if name not in OPTION_GROUPS}
        for group in OPTION_GROUPS:
            flat |= keywords.get(group) or {}
        rest = {
            name: value
            for name, value in flat.items()
            if name not in cls.__dataclass_fields__ and not (name in IGNORED_IF_FALSE and value is False)
        }
        chosen = {name: flat[name] for name in cls.__dataclass_fields__ if name in flat}
        given = {name: value for name, value in chosen.items() if value is not None or name == "return_tensors"}
        options = cls(**given)
        options._check()
        return options, rest

    def _check(self) -> None:
        allowed: dict[str, tuple[Any, ...]] = {
            "padding": (True, False, "longest", "max_length", "do_not_pad"),
            "padding_side": ("left", "right"),
            "truncation": (True, False, "longest_first", "only_first", "do_not_truncate"),
            "return_tensors": ("auto", "pt", "np", None),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(repr, values))}")
        if self.max_length is not None and not self.truncates and self.padding != "max_length":
            raise ConfigError("max_length has no effect without truncation=True or padding='max_length'")

    @property
    def truncates(self) -> bool:
        """Returns whether rows that are too long are truncated."""
        return self.truncation not in (False, "do_not_truncate")

    def limit(self, tokenizer: Any) -> int | None:
        """Returns the largest number of tokens of a row; None if neither the options nor the tokenizer set one."""
        own = tokenizer.model_max_length
        return self.max_length if self.max_length is not None else own if own < UNBOUNDED else None

    def truncate(self, rows: Sequence[Ids], tokenizer: Any) -> list[Ids]:
        """Returns the rows, truncated to the limit on the tokenizer's `truncation_side`."""
        limit = self.limit(tokenizer)
        if not self.truncates or limit is None:
            return [list(row) for row in rows]
        if tokenizer.truncation_side == "left":
            return [row[max(0, len(row) - limit) :] for row in rows]
        return [row[:limit] for row in rows]

    def pad(self, rows: Sequence[Ids], value: int, tokenizer: Any) -> list[Ids]:
        """Returns the rows, padded with `value` to one length if the options say so.

        Raises:
            ConfigError: padding is "max_length", and neither the options nor the tokenizer set one.
        """
        if self.padding in (False, "do_not_pad"):
            return [list(row) for row in rows]
        length = max(map(len, rows))
        if self.padding == "max_length":
            limit = self.limit(tokenizer)
            if limit is None:
                raise ConfigError("padding='max_length' needs max_length: the tokenizer has none of its own")
            length = max(length, limit)
        multiple = self.pad_to_multiple_of or 1
        length = -(-length // multiple) * multiple
        paddings = [[value] * (length - len(row)) for row in rows]
        if self.padding_side == "left":
            return [[*pad, *row] for pad, row in zip(paddings, rows, strict=True)]
        return [[*row, *pad] for pad, row in zip(paddings, rows, strict=True)]

    def tensor_type(self, rows: Sequence[Ids]) -> str | None:
        """Returns the type for BatchFeature: "pt", "np", or None for lists.

        Raises:
            ConfigError: a tensor is asked for, but the rows differ in length.
        """
        even = len({len(row) for row in rows}) <= 1
        if self.return_tensors == "auto":
            return "pt" if even else None
        if self.return_tensors is not None and not even:
            shortest, longest = min(map(len, rows)), max(map(len, rows))
            raise ConfigError(
                f"rows of {shortest} to {longest} tokens do not form a tensor; write padding=True, or "
                "return_tensors=None for lists"
            )
        return self.return_tensors
