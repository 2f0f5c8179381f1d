"""Layers of configuration: dataclass defaults <- `base:` <- the YAML <- `key=value`; slots; the plain result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fvl_lightning.core.config.fields import differences
from fvl_lightning.core.config.loading import Choice, as_plain, check_config, choose, config_hash, load_config
from fvl_lightning.core.config.merging import parse_override
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from tests.core.tiny import Gated, Linear, Mean, Tiny, Trainer

Load = Callable[..., Tiny]
Write = Callable[[str, str], Path]
VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


class TestLayers:
    def test_an_empty_file_is_the_defaults(self, load: Load) -> None:
        assert load("") == Tiny()
        assert load("# nothing\n") == Tiny()

    def test_the_file_wins_over_the_defaults_and_the_command_line_over_the_file(self, load: Load) -> None:
        config = load("seed: 1\nname: mine\ntrainer: {max_steps: 5}", "trainer.max_steps=7")
        assert (config.seed, config.name, config.trainer.max_steps) == (1, "mine", 7)
        assert config.trainer.learning_rate == Trainer.learning_rate

    def test_the_last_word_wins(self, load: Load) -> None:
        assert load("", "seed=1", "seed=2").seed == 2

    def test_dictionaries_merge_and_lists_are_replaced(self, load: Load) -> None:
        text = "trainer: {rates: {encoder: 1.0}}\ntags: [a, b]"
        config = load(text, "trainer.rates.fusion=2", "tags=[c]")
        assert config.trainer.rates == {"encoder": 1.0, "fusion": 2.0}
        assert config.tags == ["c"]

    def test_an_empty_dictionary_empties(self, load: Load) -> None:
        assert load("trainer: {rates: {encoder: 1.0}}", "trainer.rates={}").trainer.rates == {}

    def test_a_pretrained_model_replaces_one_from_scratch(self, tmp_path: Path, write: Write) -> None:
        """Its sizes, its tokenizer and what follows from that; not what is written with it, nor other fields."""
        scratch = "model: {hidden_size: 8}, tokenizer: theirs, prompt_ids: {caption: [1]}"
        write("base.yaml", f"encoder: {{name: florence2, {scratch}, image_size: 64, prompts: {{caption: What}}}}")
        path = write("a.yaml", "base: base.yaml")

        def encoder(*words: str) -> Any:
            return load_config(ExperimentConfig, path, words).encoder.config

        assert (encoder().model, encoder().tokenizer) == ({"hidden_size": 8}, "theirs")
        found = encoder("encoder.pretrained=hub/model")
        assert (found.model, found.tokenizer, found.prompt_ids) == ({}, None, {})
        assert (found.image_size, found.prompts) == (64, {"caption": "What"})
        assert encoder("encoder.tokenizer=mine", "encoder.pretrained=hub/model").tokenizer == "mine"
        assert encoder("encoder.pretrained=null").tokenizer == "theirs"

    def test_a_pretrained_model_keeps_the_tokenizer_given_to_another(self, tmp_path: Path, write: Write) -> None:
        """A copy of the model at hand needs the template that the model has none of."""
        write("base.yaml", "language_model: {name: causal, pretrained: hub/a, tokenizer: hub/b, chat_template: x}")
        path = write("a.yaml", "base: base.yaml\nlanguage_model: {pretrained: copies/a}")
        found = load_config(ExperimentConfig, path).language_model.config
        assert (found.pretrained, found.tokenizer, found.chat_template) == ("copies/a", "hub/b", "x")

    def test_a_member_of_an_ensemble_is_replaced_too(self, tmp_path: Path, write: Write) -> None:
        members = "{one: {name: hf_vision, model: {model_type: dinov2}}}"
        path = write("a.yaml", f"encoder: {{name: ensemble, members: {members}}}")
        config = load_config(ExperimentConfig, path, ["encoder.members.one.pretrained=hub/model"])
        assert config.encoder.config.members["one"].config.model == {}

    def test_null_is_a_value(self, load: Load) -> None:
        assert load("", "trainer.clip_norm=null").trainer.clip_norm is None
        assert load("", "trainer.clip_norm=").trainer.clip_norm is None

    def test_dataclasses_stand_in_dictionaries(self, load: Load) -> None:
        config = load("arms: {gated: {set: [fusion=gated]}, concat: {}}")
        assert config.arms["gated"].set == ["fusion=gated"]
        assert config.arms["concat"].set == []

    @pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3", "+1e-3"])
    def test_a_power_of_ten_is_a_number_even_where_nothing_says_so(self, load: Load, text: str) -> None:
        config = load(f"fusion: {{name: gated, model: {{epsilon: {text}}}}}", f"fusion.model.other={text}")
        assert config.fusion.config.model == {"epsilon": 1e-3, "other": 1e-3}

    @pytest.mark.parametrize("text", ["e-3", "1e", "1e-3x", "'1e-3'"])
    def test_what_looks_like_one_is_text(self, load: Load, text: str) -> None:
        assert load(f"name: {text}").name == text.strip("'")

    def test_a_path_may_be_text(self, write: Write, tiny_components: None) -> None:
        assert load_config(Tiny, str(write("a.yaml", "seed: 3"))).seed == 3  # type: ignore[arg-type]


class TestBase:
    def test_is_read_first_and_relative_to_its_file(self, load: Load, write: Write) -> None:
        write("shared/common.yaml", "seed: 1\nname: common\ntrainer: {max_steps: 5}")
        config = load("base: shared/common.yaml\nname: mine\ntrainer: {learning_rate: 2}")
        assert (config.seed, config.name) == (1, "mine")
        assert (config.trainer.max_steps, config.trainer.learning_rate) == (5, 2.0)

    def test_of_a_base(self, load: Load, write: Write) -> None:
        write("shared/a.yaml", "base: deep/b.yaml\nseed: 2")
        write("shared/deep/b.yaml", "seed: 1\nname: deep")
        config = load("base: shared/a.yaml")
        assert (config.seed, config.name) == (2, "deep")

    def test_may_be_several_the_later_winning(self, load: Load, write: Write) -> None:
        write("a.yaml", "seed: 1\nname: a")
        write("b.yaml", "seed: 2")
        config = load("base: [a.yaml, b.yaml]")
        assert (config.seed, config.name) == (2, "a")

    def test_may_be_reached_on_two_ways(self, load: Load, write: Write) -> None:
        write("root.yaml", "seed: 1")
        write("a.yaml", "base: root.yaml\nname: a")
        write("b.yaml", "base: root.yaml\ntags: [b]")
        config = load("base: [a.yaml, b.yaml]")
        assert (config.seed, config.name, config.tags) == (1, "a", ["b"])

    @pytest.mark.parametrize("text", ["base:", "base: []", "base: ''"])
    def test_may_be_none(self, load: Load, text: str) -> None:
        assert load(text) == Tiny()


class TestSlots:
    def test_a_slot_is_a_choice(self, load: Load) -> None:
        fusion = load("fusion: {name: gated, hidden: 2}").fusion
        assert fusion == Choice("fusion", "gated", Gated.Config(hidden=2))
        assert fusion.component is Gated
        fields = {"gate": "softmax", "hidden": 2, "window": (2, 2), "model": {}, "label": None}
        assert fusion.as_dict() == {"name": "gated"} | fields

    def test_a_name_alone_is_short_for_a_mapping(self, load: Load) -> None:
        assert load("fusion: gated") == load("fusion: {name: gated}")
        assert load("projector: linear").projector == Choice("projector", "linear", Linear.Config())

    def test_a_slot_left_out_is_empty(self, load: Load) -> None:
        assert load("").fusion is None
        assert load("fusion: gated", "fusion=null").fusion is None

    @pytest.mark.parametrize("word", ["fusion=mean", "fusion={name: mean}", "fusion.name=mean"])
    def test_another_name_replaces_the_slot(self, load: Load, word: str) -> None:
        assert load("fusion: {name: gated, hidden: 2}", word).fusion == Choice("fusion", "mean", Mean.Config(hidden=4))

    @pytest.mark.parametrize("word", ["fusion=gated", "fusion={name: gated}", "fusion.name=gated"])
    def test_the_same_name_merges(self, load: Load, word: str) -> None:
        assert load("fusion: {name: gated, hidden: 2}", word).fusion.config.hidden == 2

    def test_a_field_alone_speaks_of_the_component_already_chosen(self, load: Load) -> None:
        config = load("fusion: {name: gated, hidden: 2}", "fusion.gate=sigmoid", "fusion.model.depth=3")
        assert config.fusion.config == Gated.Config(gate="sigmoid", hidden=2, model={"depth": 3})

    def test_a_field_may_follow_a_new_name(self, load: Load) -> None:
        config = load("fusion: {name: gated, gate: sigmoid}", "fusion=mean", "fusion.hidden=6")
        assert config.fusion == Choice("fusion", "mean", Mean.Config(hidden=6))

    def test_going_away_and_back_leaves_nothing_behind(self, load: Load) -> None:
        assert load("fusion: {name: gated, hidden: 2}", "fusion=mean", "fusion=gated").fusion.config == Gated.Config()

    def test_bases_follow_the_same_rule(self, load: Load, write: Write) -> None:
        write("base.yaml", "fusion: {name: gated, hidden: 2, gate: sigmoid}")
        assert load("base: base.yaml\nfusion: {hidden: 6}").fusion.config == Gated.Config(hidden=6, gate="sigmoid")
        assert load("base: base.yaml\nfusion: gated").fusion.config == Gated.Config(hidden=2, gate="sigmoid")
        assert load("base: base.yaml\nfusion: mean").fusion.config == Mean.Config()

    @pytest.mark.usefixtures("tiny_components")
    def test_choose_checks_one_entry(self) -> None:
        assert choose("fusion", "mean") == Choice("fusion", "mean", Mean.Config())
        assert choose("fusion", {"name": "mean", "hidden": 6}).config.hidden == 6

    @pytest.mark.usefixtures("tiny_components")
    def test_choose_leaves_the_entry_as_it_was(self) -> None:
        entry = {"name": "mean", "hidden": 6}
        choose("fusion", entry)
        assert entry == {"name": "mean", "hidden": 6}


class TestInterpolation:
    def test_names_another_key(self, load: Load) -> None:
        config = load("name: run-${fusion.name}-${seed}\nseed: 4\nfusion: {name: gated, hidden: '${seed}'}")
        assert config.name == "run-gated-4"
        assert config.fusion.config.hidden == 4

    def test_follows_the_command_line(self, load: Load) -> None:
        assert load("name: run-${fusion.name}\nfusion: gated", "fusion=mean").name == "run-mean"

    def test_sees_defaults(self, load: Load) -> None:
        assert load("name: ${trainer.max_steps}").name == "1000"

    def test_may_name_a_component(self, load: Load) -> None:
        assert load("fusion: ${name}\nname: mean").fusion.name == "mean"

    def test_is_converted_to_the_type_of_its_place(self, load: Load) -> None:
        assert load("seed: ${name}\nname: '12'").seed == 12


class TestOverride:
    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("a=1", {"a": 1}),
            ("a.b.c=true", {"a": {"b": {"c": True}}}),
            ("a=[1, x]", {"a": [1, "x"]}),
            ("a={b: 2}", {"a": {"b": 2}}),
            ("a=b=c", {"a": "b=c"}),
            ("a=1e-4", {"a": 1e-4}),
            ("a=", {"a": None}),
            ("a='1'", {"a": "1"}),
            ("a=${b.c}", {"a": "${b.c}"}),
        ],
    )
    def test_value_is_yaml(self, word: str, expected: object) -> None:
        assert parse_override(word) == expected

    @pytest.mark.parametrize("word", ["", "a", "=1", ".a=1", "a.=1", "a..b=1", "--seed", "-m"])
    def test_that_is_no_key_and_value(self, word: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_override(word)
        assert str(caught.value) == f"'{word}' on the command line is not key=value, such as trainer.max_steps=20"

    @pytest.mark.parametrize("word", ["a=[1", "a={b", "a=b: c: d", "a={b: 1, b: 2}"])
    def test_that_is_no_yaml(self, word: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_override(word)
        assert str(caught.value) == f"the value of '{word}' on the command line is not valid YAML"

    def test_a_path_with_brackets_in_a_list(self) -> None:
        with pytest.raises(ConfigError, match=r"is not valid YAML; quote a value that has brackets in it"):
            parse_override("a=[runs/lora[r=8]]")
        assert parse_override("a=['runs/lora[r=8]']") == {"a": ["runs/lora[r=8]"]}


class TestPlain:
    TEXT = "fusion: {name: gated, model: {sizes: [1, 2]}}\narms: {a: {set: [x=1]}}\ntrainer: {max_steps: 5}"

    def test_is_plain_all_the_way_down(self, load: Load) -> None:
        plain = as_plain(load(self.TEXT))
        assert json.loads(json.dumps(plain)) == plain
        assert plain["fusion"]["window"] == [2, 2]
        assert plain["trainer"]["betas"] == [0.9, 0.95]
        assert plain["arms"] == {"a": {"set": ["x=1"]}}
        assert plain["projector"] is None

    def test_written_and_read_it_is_the_same(self, load: Load) -> None:
        config = load(self.TEXT)
        again = load(yaml.safe_dump(as_plain(config)))
        assert again == config
        assert config_hash(again) == config_hash(config)

    @pytest.mark.usefixtures("tiny_components")
    def test_may_be_checked_without_a_file(self) -> None:
        assert check_config(Tiny, {"fusion": {"name": "mean"}, "seed": 2}).fusion.name == "mean"

    def test_hash_is_of_what_is_said_and_not_of_how(self, load: Load) -> None:
        one = load("seed: 1\nfusion: gated\ntrainer: {learning_rate: 1}")
        other = load("fusion: {hidden: 8, name: gated}\ntrainer: {learning_rate: 1.0}", "seed=1")
        assert config_hash(one) == config_hash(other) == config_hash(as_plain(one))
        assert len(config_hash(one)) == 12
        assert set(config_hash(one)) <= set("0123456789abcdef")

    def test_hash_stays_over_processes_and_time(self) -> None:
        assert config_hash({"b": [1, 2.5, None], "a": {"c": "text"}}) == "13bea4b90306"

    @pytest.mark.parametrize("word", ["seed=1", "fusion.hidden=6", "fusion=mean", "tags=[a]", "trainer.clip_norm=null"])
    def test_hash_sees_every_value(self, load: Load, word: str) -> None:
        assert config_hash(load("fusion: gated")) != config_hash(load("fusion: gated", word))

    def test_differences_are_dotted_and_sorted(self, load: Load) -> None:
        one = as_plain(load("fusion: {name: gated, hidden: 2}\nseed: 1"))
        other = as_plain(load("fusion: {name: gated, hidden: 4}\ntrainer: {max_steps: 5, betas: [0.9, 0.9]}"))
        assert differences(one, other) == ["fusion.hidden", "seed", "trainer.betas", "trainer.max_steps"]
        assert differences(one, one) == []

    def test_differences_of_two_components(self, load: Load) -> None:
        one, other = as_plain(load("fusion: gated")), as_plain(load("fusion: mean"))
        fields = ("gate", "hidden", "model", "name", "window")
        assert differences(one, other) == [f"fusion.{field}" for field in fields]
        assert differences(one, as_plain(load(""))) == ["fusion"]

    @given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.integers())
    def test_only_what_differs_is_named(self, plain: dict[str, object], value: int) -> None:
        assert differences(plain, plain) == []
        changed = plain | {"added key": value}
        assert differences(plain, changed) == differences(changed, plain) == ["added key"]
