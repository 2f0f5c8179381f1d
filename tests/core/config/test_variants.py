"""`variants` of a file: which choice is taken, over and under what it stands, what is recorded, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvl_lightning.core.config.fields import differences
from fvl_lightning.core.config.loading import Choice, as_plain, check_config, config_hash, load_config
from fvl_lightning.core.errors import ConfigError
from tests.core.tiny import Gated, Mean, Tiny

Write = Callable[[str, str], Path]

OFFER = """
name: mine
fusion: {name: gated, hidden: 2}
trainer: {max_steps: 5}
variants:
  recipe:
    default: paper
    paper: {trainer: {max_steps: 66, learning_rate: 1.0}}
    released: {trainer: {max_steps: 8}, fusion: {gate: sigmoid}}
  scale:
    default: full
    full: {}
    tiny: {trainer: {max_steps: 2}, fusion: {hidden: 6}}
"""


@dataclass
class Offering(Tiny):
    """The tiny schema with a record of what was taken."""

    chosen: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def offer(tiny_components: None, write: Write) -> Callable[..., Offering]:
    """Loads a file, with `key=value` words behind it."""

    def loader(*overrides: str, text: str = OFFER) -> Offering:
        return load_config(Offering, write("a.yaml", text), overrides)

    return loader


@pytest.fixture
def refused(tiny_components: None, write: Write, tmp_path: Path) -> Callable[..., str]:
    """The sentence in which a text and its words are refused, with the test's folder taken out."""

    def sentence(text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(Offering, write("a.yaml", text), overrides)
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return sentence


class TestTaking:
    def test_the_default_is_taken_and_recorded(self, offer: Callable[..., Offering]) -> None:
        config = offer()
        assert config.chosen == {"recipe": "paper", "scale": "full"}
        assert (config.trainer.max_steps, config.trainer.learning_rate) == (66, 1.0)

    def test_a_word_takes_another_and_nothing_of_the_first_stays(self, offer: Callable[..., Offering]) -> None:
        config = offer("recipe=released")
        assert config.chosen == {"recipe": "released", "scale": "full"}
        assert (config.trainer.max_steps, config.trainer.learning_rate) == (8, 1e-4)
        assert config.fusion.config == Gated.Config(gate="sigmoid", hidden=2)

    def test_a_later_variant_stands_over_an_earlier_one(self, offer: Callable[..., Offering]) -> None:
        config = offer("scale=tiny", "recipe=released")
        assert config.trainer.max_steps == 2
        assert config.fusion.config == Gated.Config(gate="sigmoid", hidden=6)

    def test_the_command_line_stands_over_all(self, offer: Callable[..., Offering]) -> None:
        assert offer("trainer.max_steps=3", "scale=tiny").trainer.max_steps == 3

    def test_the_last_word_counts(self, offer: Callable[..., Offering]) -> None:
        assert offer("recipe=released", "recipe=paper").chosen["recipe"] == "paper"

    def test_a_file_may_take_from_itself(self, offer: Callable[..., Offering]) -> None:
        assert offer(text=OFFER + "scale: tiny\n").trainer.max_steps == 2

    def test_a_choice_without_keys_may_be_left_empty(self, offer: Callable[..., Offering]) -> None:
        assert offer(text="seed: 4\nvariants: {scale: {default: full, full: , tiny: {seed: 1}}}").seed == 4

    def test_another_component_replaces_the_slot(self, offer: Callable[..., Offering]) -> None:
        text = "fusion: {name: gated, gate: sigmoid}\nvariants: {f: {default: a, a: {}, b: {fusion: {name: mean}}}}"
        assert offer(text=text).fusion.config.gate == "sigmoid"
        assert offer("f=b", text=text).fusion == Choice("fusion", "mean", Mean.Config())
        assert offer("f=b", "fusion.hidden=6", text=text).fusion.config.hidden == 6

    def test_a_name_may_be_made_of_what_was_taken(self, offer: Callable[..., Offering]) -> None:
        assert offer("recipe=released", "name=run-${chosen.recipe}").name == "run-released"


class TestFiles:
    def test_a_file_stands_over_what_it_takes_from_its_base(self, offer: Callable[..., Offering], write: Write) -> None:
        write("offer.yaml", OFFER)
        config = offer(text="base: offer.yaml\nrecipe: released\ntrainer: {learning_rate: 3}")
        assert config.chosen == {"recipe": "released", "scale": "full"}
        assert (config.trainer.max_steps, config.trainer.learning_rate) == (8, 3.0)
        config = offer(text="base: offer.yaml\ntrainer: {max_steps: 7}")
        assert (config.trainer.max_steps, config.trainer.learning_rate) == (7, 1.0)

    def test_the_command_line_may_take_otherwise_than_the_file(
        self, offer: Callable[..., Offering], write: Write
    ) -> None:
        write("offer.yaml", OFFER)
        assert offer("recipe=paper", text="base: offer.yaml\nrecipe: released").chosen["recipe"] == "paper"

    def test_a_file_may_offer_more_of_its_bases_variant(self, offer: Callable[..., Offering], write: Write) -> None:
        write("offer.yaml", OFFER)
        more = "base: offer.yaml\nvariants: {scale: {tiny: {seed: 3}, huge: {seed: 9}}, recipe: {default: released}}"
        assert offer(text=more).chosen == {"recipe": "released", "scale": "full"}
        tiny = offer("scale=tiny", text=more)
        assert (tiny.trainer.max_steps, tiny.seed) == (2, 3)
        assert offer("scale=huge", text=more).seed == 9

    def test_a_choice_may_be_another_file_and_more(self, offer: Callable[..., Offering], write: Write) -> None:
        write("shared/tiny.yaml", "base: deep.yaml\ntrainer: {max_steps: 2}")
        write("shared/deep.yaml", "seed: 5\ntrainer: {max_steps: 1}")
        text = "variants: {scale: {default: full, full: {}, tiny: {base: shared/tiny.yaml, name: small}}}"
        config = offer("scale=tiny", text=text)
        assert (config.seed, config.trainer.max_steps, config.name) == (5, 2, "small")
        assert offer(text=text).seed == 0

    def test_files_of_choices_that_are_not_taken_are_not_read(self, offer: Callable[..., Offering]) -> None:
        text = "variants: {scale: {default: full, full: {}, tiny: {base: lost.yaml}}}"
        assert offer(text=text).chosen == {"scale": "full"}


class TestRecord:
    def test_what_was_resolved_is_taken_as_it_is(self, offer: Callable[..., Offering], write: Write) -> None:
        config = offer("recipe=released", "scale=tiny")
        plain = as_plain(config)
        again = load_config(Offering, write("stored.yaml", yaml.safe_dump(plain)))
        assert again == check_config(Offering, plain) == config
        assert config_hash(again) == config_hash(config)

    def test_it_is_part_of_what_two_configurations_differ_in(self, offer: Callable[..., Offering]) -> None:
        one, other = as_plain(offer()), as_plain(offer("recipe=released"))
        assert differences(one, other) == [
            "chosen.recipe", "fusion.gate", "trainer.learning_rate", "trainer.max_steps"
        ]  # fmt: skip

    def test_nothing_offered_is_nothing_recorded(self, offer: Callable[..., Offering]) -> None:
        assert offer(text="seed: 1").chosen == {}


ALLOWED = "arms, chosen, fusion, name, plugins, projector, recipe, scale, seed, tags, trainable, trainer"
REFUSED = [
    (OFFER, "recipe=relesed", "recipe on the command line: unknown recipe 'relesed', allowed: paper, released; did"
     " you mean 'released'?"),
    (OFFER, "recipe=", "recipe on the command line: unknown recipe 'None', allowed: paper, released"),
    (OFFER, "recipe.paper=1", "recipe on the command line: unknown recipe '{'paper': 1}', allowed: paper, released;"
     " did you mean 'paper'?"),
    (OFFER, "recipe=default", "recipe on the command line: unknown recipe 'default', allowed: paper, released"),
    (OFFER, "recip=paper", f"recip on the command line: unknown key 'recip', allowed: {ALLOWED}; did you mean"
     " 'recipe'?"),
    (OFFER, "variants.recipe.paper.seed=1", "variants on the command line: unknown key 'variants', allowed: "
     + ALLOWED + "; did you mean 'arms'?"),
    (OFFER, "chosen.recipe=released", "chosen on the command line: it only records selected choices; select one"
     " with recipe=..."),
    (OFFER, "trainer.max_step=1", "trainer.max_step on the command line: unknown key 'max_step', allowed: betas,"
     " clip_norm, learning_rate, max_steps, precision, rates, resume; did you mean 'max_steps'?"),
    (OFFER + "scale: small", "", "scale in a.yaml: unknown scale 'small', allowed: full, tiny"),
    (OFFER + "sead: 3", "", f"sead in a.yaml: unknown key 'sead', allowed: {ALLOWED}; did you mean 'seed'?"),
    ("seed: 1", "recipe=paper", "recipe on the command line: unknown key 'recipe', allowed: arms, chosen, fusion,"
     " name, plugins, projector, seed, tags, trainable, trainer"),
    ("variants: 3", "", "variants in a.yaml: expected names with their choices, found 3"),
    ("variants: {recipe: [a, b]}", "", "variants.recipe in a.yaml: expected `default` and choices by name, found"
     " ['a', 'b']"),
    ("variants: {recipe: {default: no, yes: {}}}", "", "variants.recipe.default in a.yaml: unknown recipe 'no', allowed"
     ": yes"),
    ("variants: {recipe: {default: a, a: 3}}", "", "variants.recipe.a in a.yaml: expected keys, found 3"),
    ("variants: {recipe: {a: {}, b: {}}}", "", "variants.recipe in a.yaml: it has no `default`, which is one of a, b"),
    ("variants: {recipe: {default: papr, paper: {}}}", "", "variants.recipe.default in a.yaml: unknown recipe 'papr',"
     " allowed: paper; did you mean 'paper'?"),
    ("variants: {seed: {default: a, a: {}}}", "", "variants.seed in a.yaml: 'seed' is a key already; rename it"),
    ("variants: {recipe: {default: a, a: {trainer: {max_step: 1}}}}", "", "trainer.max_step in a.yaml: unknown key"
     " 'max_step', allowed: betas, clip_norm, learning_rate, max_steps, precision, rates, resume; did you mean"
     " 'max_steps'?"),
    ("variants: {recipe: {default: a, a: {base: lost.yaml}}}", "", "no configuration file lost.yaml, named in `base:`"
     " of a.yaml; in FOLDER there are a.yaml, other.yaml; did you mean 'other.yaml'?"),
    ("variants: {recipe: {default: a, a: {base: a.yaml}}}", "", "a.yaml: `base:` leads back to itself"),
    ("variants: {r: {default: a, a: {s: b}}, s: {default: b, b: {}}}", "", "s in a.yaml: a variant cannot define"
     " or select other variants"),
    ("variants: {r: {default: a, a: {base: other.yaml}}}", "", "variants in other.yaml: a variant cannot define"
     " or select other variants"),
]


@pytest.mark.parametrize(("text", "word", "expected"), REFUSED, ids=[sentence for _, _, sentence in REFUSED])
def test_a_mistake_is_one_sentence(
    refused: Callable[..., str], write: Write, tmp_path: Path, text: str, word: str, expected: str
) -> None:
    write("other.yaml", "variants: {s: {default: b, b: {}}}")
    assert refused(text, *[word] * bool(word)) == expected.replace("FOLDER", str(tmp_path))


def test_the_place_is_the_file_of_the_choice(refused: Callable[..., str], write: Write) -> None:
    write("tiny.yaml", "fusion: {hiden: 2}")
    text = "fusion: gated\nvariants: {scale: {default: tiny, tiny: {base: tiny.yaml}}}"
    assert refused(text).startswith("fusion.hiden in tiny.yaml: ")


@pytest.mark.usefixtures("tiny_components")
def test_a_schema_without_the_record_has_no_variants(write: Write) -> None:
    path: Any = write("a.yaml", OFFER)
    with pytest.raises(ConfigError, match="unknown key 'variants', allowed: arms, fusion, name"):
        load_config(Tiny, path)
