"""Token ids of a batch as rows: cut, padded and turned into tensors by the options that transformers has for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from fvl_lightning.core.errors import ConfigError

Side = Literal["left", "right"]
Ids = list[int]

NESTED = ("text_kwargs", "common_kwargs")
"""Groups in which transformers' processors also take options; "images_kwargs" are the image processor's."""
ABSENT = (
    "is_split_into_words", "return_token_type_ids", "return_mm_token_type_ids", "return_offsets_mapping",
    "return_overflowing_tokens", "return_special_tokens_mask", "return_length", "sanitize_control_tokens",
)  # fmt: skip
"""Options of other processors that ask for nothing when they are False."""
UNBOUNDED = 10**9
"""transformers writes a larger `model_max_length` for a tokenizer without one."""


@dataclass(frozen=True)
class RowOptions:
    """How rows of one batch come to one length, and as what they are returned."""

    padding: bool | str = True
    """True or "longest", "max_length", False or "do_not_pad"."""
    padding_side: Side = "left"
    pad_to_multiple_of: int | None = None
    truncation: bool | str = False
    """True or "longest_first" cuts rows to `max_length`; False or "do_not_truncate"."""
    max_length: int | None = None
    """None for the tokenizer's own, where it has one."""
    return_tensors: str | None = "auto"
    """"auto" gives PyTorch tensors where all rows have one length, and lists elsewhere; None always gives lists."""
    return_attention_mask: bool = True
    add_special_tokens: bool | None = None
    """None: only in front of a text that does not begin with the first token already."""

    @classmethod
    def read(cls, words: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The options among `words`, and the rest, of which the caller must make use.

        Raises:
            ConfigError: a value that an option does not have.
        """
        flat = {name: value for name, value in words.items() if name not in NESTED}
        for group in NESTED:
            flat |= words.get(group) or {}
        rest = {
            name: value
            for name, value in flat.items()
            if name not in cls.__dataclass_fields__ and not (name in ABSENT and value is False)
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
        if self.max_length is not None and not self.cuts and self.padding != "max_length":
            raise ConfigError("max_length has no effect without truncation=True or padding='max_length'")

    @property
    def cuts(self) -> bool:
        """Whether rows that are too long are cut."""
        return self.truncation not in (False, "do_not_truncate")

    def limit(self, tokenizer: Any) -> int | None:
        """Tokens of a row at most; None where neither the caller nor the tokenizer sets any."""
        own = tokenizer.model_max_length
        return self.max_length if self.max_length is not None else own if own < UNBOUNDED else None

    def cut(self, rows: Sequence[Ids], tokenizer: Any) -> list[Ids]:
        """The rows, without what is beyond the limit on the tokenizer's `truncation_side`."""
        limit = self.limit(tokenizer)
        if not self.cuts or limit is None:
            return [list(row) for row in rows]
        if tokenizer.truncation_side == "left":
            return [row[max(0, len(row) - limit) :] for row in rows]
        return [row[:limit] for row in rows]

    def pad(self, rows: Sequence[Ids], value: int, tokenizer: Any) -> list[Ids]:
        """The rows with `value` up to one length, or as they are.

        Raises:
            ConfigError: a length is wanted that nobody has set.
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
        pads = [[value] * (length - len(row)) for row in rows]
        if self.padding_side == "left":
            return [[*pad, *row] for pad, row in zip(pads, rows, strict=True)]
        return [[*row, *pad] for pad, row in zip(pads, rows, strict=True)]

    def tensor_type(self, rows: Sequence[Ids]) -> str | None:
        """What BatchFeature makes of the rows: "pt", "np", or None for lists.

        Raises:
            ConfigError: a tensor is wanted of rows of several lengths.
        """
        even = len({len(row) for row in rows}) <= 1
        if self.return_tensors == "auto":
            return "pt" if even else None
        if self.return_tensors is not None and not even:
            raise ConfigError(
                f"rows of {min(map(len, rows))} to {max(map(len, rows))} tokens make no tensor; write padding=True, or "
                "return_tensors=None for lists"
            )
        return self.return_tensors
