"""Every mistake in a configuration is one sentence: the place, the value, what would be right and the nearest name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fvl_lightning.core.config.base_files import MAX_BYTES
from fvl_lightning.core.config.loading import choose, load_config
from fvl_lightning.core.errors import ConfigError
from tests.core.tiny import Tiny

Sentence = Callable[..., str]
Write = Callable[[str, str], Path]

TRAINER = "betas, clip_norm, learning_rate, max_steps, precision, rates, resume"
GATED = "gate, hidden, label, model, window"

IN_THE_FILE = [
    # keys
    ("sede: 1", "sede in tiny.yaml: unknown key 'sede', allowed: arms, fusion, name, plugins, projector, seed, tags,"
     " trainable, trainer; did you mean 'seed'?"),
    ("trainer: {max_step: 1}", "trainer.max_step in tiny.yaml: unknown key 'max_step', allowed: " + TRAINER
     + "; did you mean 'max_steps'?"),
    ("fusion: {name: gated, hiden: 2}", "fusion.hiden in tiny.yaml: unknown key 'hiden', allowed: " + GATED
     + "; did you mean 'hidden'?"),
    ("arms: {a: {sets: []}}", "arms.a.sets in tiny.yaml: unknown key 'sets', allowed: set; did you mean 'set'?"),
    ("1: 2", "1 in tiny.yaml: unknown key '1', allowed: arms, fusion, name, plugins, projector, seed, tags,"
     " trainable, trainer"),
    ("max_step: 1", "max_step in tiny.yaml: unknown key 'max_step', allowed: arms, fusion, name, plugins, projector,"
     " seed, tags, trainable, trainer; did you mean 'trainer.max_steps'?"),
    ("trainer: {lr: 1}", "trainer.lr in tiny.yaml: unknown key 'lr', allowed: " + TRAINER
     + "; did you mean 'learning_rate'?"),
    ("gradient_clip_val: 1", "gradient_clip_val in tiny.yaml: unknown key 'gradient_clip_val', allowed: arms, fusion,"
     " name, plugins, projector, seed, tags, trainable, trainer; did you mean 'trainer.clip_norm'?"),
    ("trainer: {seed: 1}", "trainer.seed in tiny.yaml: unknown key 'seed', allowed: " + TRAINER
     + "; did you mean 'seed'?"),
    ("fusion: mean\ntrainer: {gate: sigmoid}", "trainer.gate in tiny.yaml: unknown key 'gate', allowed: " + TRAINER
     + "; did you mean 'fusion.gate'?"),
    ("fusion: {name: mean, gate: sigmoid}", "fusion.gate in tiny.yaml: unknown key 'gate', allowed: hidden; mean has no"
     " such key, gated has it"),
    ("fusion: {name: mean, max_steps: 1}", "fusion.max_steps in tiny.yaml: unknown key 'max_steps', allowed: hidden;"
     " did you mean 'trainer.max_steps'?"),
    # names
    ("fusion: gate", "fusion in tiny.yaml: unknown fusion 'gate', allowed: gated, mean; did you mean 'gated'?"),
    ("fusion: {name: men}", "fusion in tiny.yaml: unknown fusion 'men', allowed: gated, mean; did you mean 'mean'?"),
    ("projector: {name: xyz}", "projector in tiny.yaml: unknown projector 'xyz', allowed: linear"),
    # slots that are not one
    ("fusion: 3", "fusion in tiny.yaml: expected a name or a mapping with `name`, found 3"),
    ("fusion: true", "fusion in tiny.yaml: expected a name or a mapping with `name`, found True"),
    ("fusion: [gated]", "fusion in tiny.yaml: expected a name or a mapping with `name`, found ['gated']"),
    ("fusion: {name: 3}", "fusion in tiny.yaml: expected a name or a mapping with `name`, found {'name': 3}"),
    ("fusion: {hidden: 2}", "fusion in tiny.yaml: expected a name or a mapping with `name`, found {'hidden': 2}"),
    ("fusion: {}", "fusion in tiny.yaml: expected a name or a mapping with `name`, found {}"),
    # types
    ("seed: one", "seed in tiny.yaml: expected a whole number, found 'one'"),
    ("seed: 1.5", "seed in tiny.yaml: expected a whole number, found '1.5'"),
    ("trainer: {resume: maybe}", "trainer.resume in tiny.yaml: expected true or false, found 'maybe'"),
    ("trainer: {rates: {fusion: high}}", "trainer.rates.fusion in tiny.yaml: expected a number, found 'high'"),
    ("fusion: {name: gated, hidden: wide}", "fusion.hidden in tiny.yaml: expected a whole number, found 'wide'"),
    ("trainer: 3", "trainer in tiny.yaml: expected keys and values, found 3"),
    ("trainer:", "trainer in tiny.yaml: expected keys and values, found None"),
    ("arms: {a: [fusion=mean]}", "arms.a in tiny.yaml: expected keys and values, found ['fusion=mean']"),
    ("trainer: {betas: [0.9]}", "trainer.betas in tiny.yaml: expected tuple[float, float], found [0.9]"),
    ("trainer: {betas: 0.9}", "trainer.betas in tiny.yaml: expected tuple[float, float], found 0.9"),
    ("trainer: {betas: [0.9, high]}", "trainer.betas in tiny.yaml: expected tuple[float, float], found [0.9, 'high']"),
    ("fusion: {name: gated, window: [1, 2.5]}", "fusion.window in tiny.yaml: expected tuple[int, int], found [1, 2.5]"),
    ("trainable: frozen", "trainable in tiny.yaml: expected keys and values, such as trainable.<name>=..., found"
     " 'frozen'"),
    ("name: [a]", "name in tiny.yaml: expected text, found ['a']"),
    ("seed: [1]", "seed in tiny.yaml: expected a whole number, found [1]"),
    ("trainer: {learning_rate: {a: 1}}", "trainer.learning_rate in tiny.yaml: expected a number, found {'a': 1}"),
    ("trainer: {resume: [true]}", "trainer.resume in tiny.yaml: expected true or false, found [True]"),
    ("seed: ${name}", "seed in tiny.yaml: expected a whole number, found 'tiny'"),
    # one of a few values
    ("trainer: {precision: fp32}", "trainer.precision in tiny.yaml: unknown value 'fp32', allowed: 32-true, bf16-mixed;"
     " did you mean '32-true'?"),
    ("trainer: {precision: bf16}", "trainer.precision in tiny.yaml: unknown value 'bf16', allowed: 32-true,"
     " bf16-mixed; did you mean 'bf16-mixed'?"),
    ("trainable: {encoder: froze}", "trainable.encoder in tiny.yaml: unknown value 'froze', allowed: frozen, full;"
     " did you mean 'frozen'?"),
    ("fusion: {name: gated, gate: soft}", "fusion.gate in tiny.yaml: unknown value 'soft', allowed: sigmoid,"
     " softmax; did you mean 'softmax'?"),
    # refused by the component or the schema itself
    ("fusion: {name: gated, hidden: 3}", "fusion in tiny.yaml: hidden must be even, found 3"),
    ("trainer: {max_steps: -1}", "configuration in tiny.yaml: max_steps must not be negative, found -1"),
    # interpolation
    ("name: ${sede}", "name in tiny.yaml: there is no key 'sede' to take the value of"),
    ("name: ${", "name in tiny.yaml: a value with '${' refers to another key, as in ${optimizer.learning_rate}, and"
     " this one refers to none"),
    # the file itself
    ("- a\n- b", "tiny.yaml must hold keys and values, not a list"),
    ("just words", "tiny.yaml must hold keys and values, not a str"),
    ("false", "tiny.yaml must hold keys and values, not a bool"),
    ("seed: 1\ntrainer: {a: 1", "tiny.yaml is not valid YAML: line 2: expected ',' or '}', but got '<stream end>'"),
    ("seed: 1\n\tname: x", "tiny.yaml is not valid YAML: line 2: found character '\\t' that cannot start any token"),
    ("seed: 1\nname: a\nseed: 2", "tiny.yaml is not valid YAML: line 3: 'seed' is written twice"),
    ("trainer:\n  max_steps: 1\n  max_steps: 2", "tiny.yaml is not valid YAML: line 3: 'max_steps' is written twice"),
    ("name: !!python/name:os.system x", "tiny.yaml is not valid YAML: line 1: could not determine a constructor for the"
     " tag 'tag:yaml.org,2002:python/name:os.system'"),
    ("base: 3", "base in tiny.yaml: expected a file or a list of files, found 3"),
    ("base: [a.yaml, 3]", "base in tiny.yaml: expected a file or a list of files, found ['a.yaml', 3]"),
    ("base: tinny.yaml", "no configuration file tinny.yaml, named in `base:` of tiny.yaml; in FOLDER there are"
     " tiny.yaml; did you mean 'tiny.yaml'?"),
    ("base: tiny.yaml", "tiny.yaml: `base:` leads back to itself"),
]


@pytest.mark.parametrize(("text", "expected"), IN_THE_FILE, ids=[text for text, _ in IN_THE_FILE])
def test_a_mistake_in_the_file(sentence: Sentence, tmp_path: Path, text: str, expected: str) -> None:
    assert sentence(text) == expected.replace("FOLDER", str(tmp_path))


ON_THE_COMMAND_LINE = [
    ("fusion=gate", "fusion on the command line: unknown fusion 'gate', allowed: gated, mean; did you mean"
     " 'gated'?"),
    ("fusion.name=men", "fusion on the command line: unknown fusion 'men', allowed: gated, mean; did you mean"
     " 'mean'?"),
    ("trainer.max_step=20", "trainer.max_step on the command line: unknown key 'max_step', allowed: " + TRAINER
     + "; did you mean 'max_steps'?"),
    ("fusion.hiden=2", "fusion.hiden on the command line: unknown key 'hiden', allowed: " + GATED
     + "; did you mean 'hidden'?"),
    ("seed=one", "seed on the command line: expected a whole number, found 'one'"),
    ("fusion.gate=soft", "fusion.gate on the command line: unknown value 'soft', allowed: sigmoid, softmax; did you"
     " mean 'softmax'?"),
    ("fusion=3", "fusion on the command line: expected a name or a mapping with `name`, found 3"),
    ("fusion.name=3", "fusion on the command line: expected a name or a mapping with `name`, found {'name': 3}"),
    ("projector.depth=3", "projector on the command line: expected a name or a mapping with `name`, found"
     " {'depth': 3}"),
    ("trainer=3", "trainer on the command line: expected keys and values, found 3"),
    ("base=other.yaml", "base on the command line: unknown key 'base', allowed: arms, fusion, name, plugins,"
     " projector, seed, tags, trainable, trainer; did you mean 'tags'?"),
    ("name=${sede}", "name on the command line: there is no key 'sede' to take the value of"),
    ("trainer.betas=[1]", "trainer.betas on the command line: expected tuple[float, float], found [1]"),
    ("seed", "'seed' on the command line is not key=value, such as trainer.max_steps=20"),
]


@pytest.mark.parametrize(("word", "expected"), ON_THE_COMMAND_LINE, ids=[word for word, _ in ON_THE_COMMAND_LINE])
def test_a_mistake_on_the_command_line(sentence: Sentence, word: str, expected: str) -> None:
    assert sentence("fusion: gated", word) == expected


def test_no_override_is_lost(sentence: Sentence, load: Callable[..., Tiny]) -> None:
    text = "fusion: {name: gated, hidden: 4}"
    assert sentence(text, "fusion.hidden=2", "fusion=mean") == (
        "fusion.hidden on the command line is lost: fusion=mean after it replaces the whole fusion; "
        "write fusion=mean first"
    )
    assert load(text, "fusion.hidden=2", "fusion=gated").fusion.config.hidden == 2, "the same fusion keeps its fields"
    assert load(text, "fusion=mean").fusion.name == "mean", "fields of a file may be replaced"


def test_the_place_is_the_file_in_which_the_mistake_stands(sentence: Sentence, write: Write) -> None:
    write("base.yaml", "trainer: {max_step: 1}\nfusion: {name: gated, hiden: 2}")
    mended = ("base: base.yaml\nseed: 2\nfusion: {gate: sigmoid}", "fusion.hidden=4", "trainer.max_steps=1")
    assert sentence(*mended).startswith("trainer.max_step in base.yaml: ")
    write("base.yaml", "fusion: {name: gated, hiden: 2}")
    assert sentence(*mended).startswith("fusion.hiden in base.yaml: ")
    write("base.yaml", "fusion: gate")
    assert sentence(*mended).startswith("fusion in base.yaml: unknown fusion 'gate'")


class TestWhoseMistakeItIs:
    """Values that a Config refuses together: the place is the layer that made them wrong."""

    def test_an_override_of_several(self, sentence: Sentence) -> None:
        text = "trainer: {max_steps: 4}\nfusion: {name: gated, hidden: 4}"
        assert sentence(text, "seed=1", "trainer.max_steps=-1", "name=a") == (
            "trainer.max_steps on the command line: max_steps must not be negative, found -1"
        )
        assert sentence(text, "fusion.hidden=3", "fusion.label=a") == (
            "fusion.hidden on the command line: hidden must be even, found 3"
        )

    def test_a_base_although_later_layers_say_more(self, sentence: Sentence, write: Write) -> None:
        write("base.yaml", "trainer: {max_steps: -1}\nfusion: {name: gated, hidden: 3}")
        expected = "configuration in base.yaml: max_steps must not be negative, found -1"
        assert sentence("base: base.yaml\ntrainer: {precision: 32-true}", "trainer.resume=true") == expected
        expected = "fusion in base.yaml: hidden must be even, found 3"
        assert sentence("base: base.yaml\ntrainer: {max_steps: 1}", "fusion.label=a") == expected

    def test_the_same_mistake_twice_is_the_later_ones(self, sentence: Sentence) -> None:
        said = sentence("trainer: {max_steps: -1}", "trainer.max_steps=-2")
        assert said == "trainer.max_steps on the command line: max_steps must not be negative, found -2"

    def test_a_place_of_each_override(self, load: Callable[..., Tiny], write: Write) -> None:
        places = {"seed=one": "set in c.yaml", "seed=2": "arms.a.set in c.yaml"}
        with pytest.raises(ConfigError, match=r"^seed in set in c\.yaml: expected a whole number"):
            load_config(Tiny, write("tiny.yaml", "fusion: mean"), ["seed=2", "seed=one"], places)


def test_a_mistake_that_a_later_layer_replaces_is_none(load: Callable[..., Tiny]) -> None:
    assert load("fusion: {name: gate, what: 3}", "fusion=mean").fusion.name == "mean"


def test_bases_that_lead_in_a_circle(sentence: Sentence, write: Write) -> None:
    write("a.yaml", "base: b.yaml")
    write("b.yaml", "base: tiny.yaml")
    assert sentence("base: a.yaml") == "tiny.yaml: `base:` leads back to itself"


@pytest.mark.usefixtures("tiny_components")
class TestFiles:
    def refused(self, path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(Tiny, path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_missing_with_others_beside_it(self, write: Write, tmp_path: Path) -> None:
        write("finetune.yaml", "")
        write("pretrain.yaml", "")
        assert self.refused(tmp_path / "fintune.yaml") == (
            f"no configuration file {tmp_path}/fintune.yaml; in {tmp_path} there are finetune.yaml, pretrain.yaml;"
            " did you mean 'finetune.yaml'?"
        )

    def test_missing_with_nothing_beside_it(self, tmp_path: Path) -> None:
        assert self.refused(tmp_path / "a.yaml") == f"no configuration file {tmp_path}/a.yaml"
        assert self.refused(tmp_path / "no" / "a.yaml") == f"no configuration file {tmp_path}/no/a.yaml"

    def test_a_folder(self, tmp_path: Path) -> None:
        assert self.refused(tmp_path) == f"no configuration file {tmp_path}: it is a folder, not a YAML file"
        (tmp_path / "config.yaml").touch()
        assert self.refused(tmp_path).endswith(f"a folder, not a YAML file, such as {tmp_path}/config.yaml")

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00seed")
        expected = f"{tmp_path}/a.yaml is no configuration file: it is not text (UTF-8)"
        assert self.refused(tmp_path / "a.yaml") == expected

    def test_too_large_too_deep_or_without_end(self, write: Write, tmp_path: Path) -> None:
        with (tmp_path / "model.ckpt").open("wb") as file:
            file.truncate(MAX_BYTES + 1)
        assert "has more than 16,777,216 bytes" in self.refused(tmp_path / "model.ckpt")
        assert "nested too deeply" in self.refused(write("a.yaml", f"name: {'[' * 5000}{']' * 5000}"))
        assert "nested too deeply" in self.refused(write("a.yaml", f"name: {'[' * 150}{']' * 150}"))
        assert "nested too deeply" in self.refused(write("a.yaml", "tags: &a [*a]"))
        nine = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
        assert "too many values" in self.refused(write("a.yaml", f"a0: &a0 [1]\n{nine}"))

    def test_with_characters_that_yaml_does_not_know(self, write: Write) -> None:
        path = write("a.yaml", "name: \x00")
        assert self.refused(path).startswith(f"{path} could not be read: unacceptable character")

    def test_not_to_be_read(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(path: Path, encoding: str) -> str:
            raise PermissionError(13, "Permission denied", str(path))

        path = write("a.yaml", "seed: 1")
        monkeypatch.setattr(Path, "read_text", denied)
        assert self.refused(path) == f"{path} could not be read: [Errno 13] Permission denied: '{path}'"


@pytest.mark.usefixtures("tiny_components")
@pytest.mark.parametrize(
    ("entry", "where", "expected"),
    [
        ("gate", "", "fusion: unknown fusion 'gate', allowed: gated, mean; did you mean 'gated'?"),
        ("gate", "the saved model", "the saved model: unknown fusion 'gate', allowed: gated, mean; did you mean"
         " 'gated'?"),
        ({"name": "mean", "hiden": 1}, "the saved model", "the saved model: hiden: unknown key 'hiden', allowed:"
         " hidden; did you mean 'hidden'?"),
        ({"name": "gated", "hidden": 3}, "the saved model", "the saved model: hidden must be even, found 3"),
        (None, "", "fusion: expected a name or a mapping with `name`, found None"),
    ],
)
def test_choose_says_where(entry: object, where: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose("fusion", entry, where)
    assert str(caught.value) == expected
