"""Every number of a configuration has a range, and one outside it is refused in one sentence."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from datamodules.building.config import BuildConfig
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core import registry
from fvl_lightning.core.config.fields import differences, keys_that_change, number
from fvl_lightning.core.config.loading import as_plain, check_config, load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from tests.core.config.own_components import own_names


def parts_of(hint: Any) -> Iterator[Any]:
    """A type and everything in its brackets."""
    yield hint
    for inner in get_args(hint):
        yield from parts_of(inner)


def configs() -> dict[str, type[Any]]:
    """Every Config of the kit by a name for messages, those inside others among them."""
    found: dict[str, type[Any]] = {}
    waiting: list[type[Any]] = [ExperimentConfig, ComparisonConfig, BuildConfig]
    for slot in registry.SLOT_PACKAGES:
        waiting += [registry.component(slot, name).Config for name in own_names(slot)]
    while waiting:
        config = waiting.pop()
        name = f"{config.__module__}.{config.__qualname__}"
        if name not in found:
            found[name] = config
            hints = get_type_hints(config)
            waiting += [
                part
                for field in dataclasses.fields(config)
                for part in parts_of(hints[field.name])
                if inspect.isclass(part) and dataclasses.is_dataclass(part)
            ]
    return found


def test_every_number_declares_its_range() -> None:
    undeclared = [
        f"{name}.{field.name}"
        for name, config in configs().items()
        for field in dataclasses.fields(config)
        if {int, float} & set(parts_of(get_type_hints(config)[field.name])) and "range" not in field.metadata
    ]
    assert not undeclared


def test_the_defaults_lie_within_their_ranges() -> None:
    for schema in (ExperimentConfig, ComparisonConfig, BuildConfig):
        check_config(schema, {})


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("optimizer.clip_norm=-1", "optimizer.clip_norm @ must be above 0, not -1; null turns clipping off"),
        ("optimizer.clip_norm=0", "must be above 0, not 0; null turns clipping off"),
        ("optimizer.clip_norm=.nan", "must be a finite number, not nan; null turns clipping off"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate @ must be a finite number, not inf"),
        ("optimizer.learning_rates.fusion=-2e-4", "optimizer.learning_rates.fusion @ must be above 0"),
        ("optimizer.weight_decay=-0.1", "must be at least 0, not -0.1"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas @ must be at least 0 and below 1, not 1"),
        ("optimizer.warmup_steps=-1", "must be at least 0, not -1"),
        ("optimizer.final_fraction=1.5", "must be at least 0 and at most 1, not 1.5"),
        ("trainer.batch_size=0", "trainer.batch_size @ must be at least 1, not 0"),
        ("trainer.spike_threshold=0", "must be above 0, not 0; null looks for none"),
        ("lora.dropout=1", "must be at least 0 and below 1, not 1"),
        ("lora.components.encoder.rank=0", "lora.components.encoder.rank @ must be at least 1, not 0"),
        ("data={name: shards, max_bad_fraction: 1.5}", "data.max_bad_fraction @ must be at least 0 and at"),
        ("data={name: shards, datasets: {a: {share: .nan}}}", "data.datasets.a.share @ must be a finite"),
        ("projector={name: mlp, depth: 0}", "projector.depth @ must be at least 1, not 0"),
        ("seed=-1", "seed @ must be at least 0"),
    ],
)
def test_a_number_out_of_range_is_one_sentence(tmp_path: Path, word: str, sentence: str) -> None:
    (tmp_path / "a.yaml").write_text("name: a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(sentence.replace("@", "on the command line"))) as error:
        load_config(ExperimentConfig, tmp_path / "a.yaml", [word])
    assert "\n" not in str(error.value)


@dataclasses.dataclass
class Foreign:
    """As a plugin may write it: a number without a range, and what another library reads."""

    width: float = 1.0
    share: float | None = number(None, at_least=0, at_most=1)
    needed: int = number(at_least=2, default=2)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_a_config_of_ones_own_is_checked_alike() -> None:
    with pytest.raises(ConfigError, match="width must be a finite number, not nan"):
        check_config(Foreign, {"width": float("nan")})
    with pytest.raises(ConfigError, match=r"share must be at least 0 and at most 1, not -0\.5"):
        check_config(Foreign, {"share": -0.5})
    with pytest.raises(ConfigError, match="needed must be at least 2, not 1"):
        check_config(Foreign, {"needed": 1})
    # A language model's own configuration may say infinity.
    assert check_config(Foreign, {"settings": {"limit": float("inf")}}).settings["limit"] == float("inf")


class TestGlobalBatch:
    """trainer.global_batch is divided by batch_size x devices x nodes into trainer.accumulate."""

    def load(self, tmp_path: Path, text: str, *words: str) -> ExperimentConfig:
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
        return load_config(ExperimentConfig, tmp_path / "a.yaml", words)

    def test_is_divided(self, tmp_path: Path) -> None:
        text = "trainer: {batch_size: 8, global_batch: 256, strategy: ddp}"
        for words, accumulate in (((), 32), (("trainer.devices=8",), 4), (("trainer.devices=8", "trainer.nodes=4"), 1)):
            config = self.load(tmp_path, text, *words)
            assert (config.trainer.accumulate, config.trainer.samples_per_step) == (accumulate, 256)
        again = config.with_overrides("trainer.nodes=2")
        assert again.trainer.accumulate == 2, "a resolved configuration is divided anew"
        assert again.trainer.batch_in_words() == "8 x 8 devices x 2 nodes x 2 accumulated = 256 samples a step"
        assert self.load(tmp_path, "trainer: {accumulate: 3}").trainer.accumulate == 3

    def test_the_later_of_both_counts(self, tmp_path: Path) -> None:
        text = "trainer: {batch_size: 8, global_batch: 256}"
        config = self.load(tmp_path, text, "trainer.accumulate=1")
        assert (config.trainer.accumulate, config.trainer.global_batch) == (1, None)
        config = self.load(tmp_path, "trainer: {batch_size: 8, accumulate: 7}", "trainer.global_batch=16")
        assert config.trainer.accumulate == 2
        with pytest.raises(ConfigError, match="on the command line: one replaces the other; give one of them"):
            self.load(tmp_path, text, "trainer.accumulate=2", "trainer.global_batch=64")

    @pytest.mark.parametrize(
        ("words", "end"),
        [
            (("trainer.batch_size=24",), "no whole number of batches of 24 .*; trainer.batch_size=16 fits"),
            (("trainer.batch_size=512",), "trainer.batch_size=256 fits"),
            (("trainer.strategy=ddp", "trainer.devices=3"), r"\(batch_size 8 x devices 3 x nodes 1\); choose"),
            (("trainer.global_batch=0",), "trainer.global_batch on the command line must be at least 1, not 0"),
            (("trainer.batch_size=0",), "trainer.batch_size on the command line must be at least 1, not 0"),
        ],
    )
    def test_what_does_not_divide_is_one_sentence(self, tmp_path: Path, words: tuple[str, ...], end: str) -> None:
        with pytest.raises(ConfigError, match=f"on the command line.*{end}|{end}"):
            self.load(tmp_path, "trainer: {batch_size: 8, global_batch: 256}", *words)

    def test_a_run_from_before_may_be_resumed(self, tmp_path: Path) -> None:
        before = as_plain(self.load(tmp_path, "trainer: {batch_size: 8, accumulate: 32}"))
        before["trainer"].pop("global_batch")
        now = self.load(tmp_path, "trainer: {batch_size: 8, global_batch: 256}")
        assert set(differences(before, as_plain(now))) <= keys_that_change(now, "nothing")


def test_what_changes_nothing_is_said_by_the_fields() -> None:
    config = check_config(ExperimentConfig, {"data": {"name": "shards", "root": "x"}})
    nothing = keys_that_change(config, "nothing")
    assert {"data.workers", "trainer.log_every", "trainer.checkpoint_every", "tracking.enabled"} <= nothing
    assert not {"data.root", "data.image_fit", "trainer.precision", "optimizer.learning_rate", "seed"} & nothing
    assert {"trainer.devices", "trainer.batch_size"} <= keys_that_change(config, "placement")
