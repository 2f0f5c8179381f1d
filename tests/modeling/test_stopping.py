"""Stop tokens of generation: one rule for every folder, without a pretrained model's other generation settings."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoModelForImageTextToText, GenerationConfig, LlamaConfig, LlamaForCausalLM

from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.inference.generation import Sampling, answer, encode, generate_texts, stream
from fvl_lightning.language_models.causal import CausalLanguageModel
from fvl_lightning.modeling.build import BuiltModel, build_model, load_model
from fvl_lightning.modeling.conversion.export import export_model
from fvl_lightning.modeling.stopping import end_of_answer, stop_tokens
from tests.families import END, END_TEMPLATE, build_family, family_tokenizer, save_family
from tests.tiny_models import BOS, EOS, IMAGE, LLAMA, PAD, VOCABULARY, experiment, tiny_tokenizer

TURN = 6
"""Another special token, as Llama 3 has several that end an answer."""


def tokenizer(template: str | None = END_TEMPLATE, *special: int) -> Any:
    made = family_tokenizer()
    made.add_special_tokens({"additional_special_tokens": [f"w{i}" for i in (END, *special)]})
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "special", "listed", "found"),
    [
        (END_TEMPLATE, (), [], [EOS, END]),
        (END_TEMPLATE, (), [EOS], [EOS, END]),
        (END_TEMPLATE, (TURN,), [TURN, EOS], [EOS, END, TURN]),
        (END_TEMPLATE, (), [9, 10**6], [EOS, END]),
        (END_TEMPLATE.replace("w4", "<eos>"), (), [], [EOS]),
        (END_TEMPLATE.replace(" w4", ""), (), [], [EOS]),
        ("{{ raise_exception('no') }}", (), [], [EOS]),
        (None, (), [], [EOS]),
        (None, (), [IMAGE], [EOS]),
    ],
    ids=[
        "the template's", "listed twice", "several", "words of another tokenizer", "eos itself", "no end", "refusing",
        "no template", "the image token",
    ],
)  # fmt: skip
def test_the_tokens_that_end_an_answer(
    template: str | None, special: tuple[int, ...], listed: list[int], found: list[int]
) -> None:
    assert stop_tokens(tokenizer(template, *special), IMAGE, listed) == found


def test_an_added_word_is_no_end() -> None:
    """Its text would stay in the answer."""
    made = tokenizer(None)
    made.add_tokens([AddedToken("w7", special=False)])
    assert stop_tokens(made, IMAGE, [7]) == [EOS]


def test_one_of_several_templates_is_the_default() -> None:
    made = tokenizer()
    made.chat_template = {"default": END_TEMPLATE, "tool_use": END_TEMPLATE.replace("w4", "<eos>")}
    assert end_of_answer(made, IMAGE) == END
    made.chat_template = {"tool_use": END_TEMPLATE}
    assert end_of_answer(made, IMAGE) is None


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    return build_family("llama", tmp_path_factory.mktemp("built"))


@pytest.fixture
def folder(built: BuiltModel, tmp_path: Path) -> Path:
    """A model folder as earlier versions wrote it: generation knows the tokenizer's eos alone."""
    save_family(built, tmp_path / "model")
    generation = {"eos_token_id": EOS, "pad_token_id": PAD, "repetition_penalty": 1.3, "do_sample": True}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return tmp_path / "model"


def script(model: Any, words: list[int]) -> None:
    """Has the model write these words, whatever it is asked."""
    left = iter(words)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(left)]), VOCABULARY).float().unsqueeze(1)

    model.language_model.logits = logits


def test_older_folders_end_answers_too_and_stay_greedy(folder: Path) -> None:
    """What a folder says of sampling and penalties is transformers' business: the kit's answers are the likeliest."""
    asked = [{"role": "user", "content": "w7 w8"}]
    for ask in (
        lambda loaded: answer(loaded, [encode(loaded, asked)], Sampling())[0],
        lambda loaded: "".join(stream(loaded, encode(loaded, asked), Sampling())),
        lambda loaded: generate_texts(loaded, [[BOS, 7, 8]])[0],
    ):
        loaded = load_model(folder)
        assert loaded.model.generation_config.eos_token_id == [EOS, END]
        assert loaded.model.generation_config.repetition_penalty is None
        script(loaded.model, [20, 21, 20, END, 22, 23])
        assert ask(loaded).strip() == "w20 w21 w20"


def test_an_export_of_an_older_folder_lists_the_end_and_keeps_what_its_user_wrote(folder: Path, tmp_path: Path) -> None:
    export_model(folder, tmp_path / "out", file_bytes=10**9)
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.eos_token_id, found.repetition_penalty, found.do_sample) == ([EOS, END], 1.3, True)
    export_model(tmp_path / "out", tmp_path / "again", file_bytes=10**9)
    first, second = ((tmp_path / name / "generation_config.json").read_bytes() for name in ("out", "again"))
    assert first == second


def pretrained(folder: Path, words: Any, **generation: Any) -> ExperimentConfig:
    """An experiment on a pretrained language model with these tokens, vocabulary and generation config."""
    fields = {key: value for key, value in LLAMA.items() if key != "model_type"}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**fields)).save_pretrained(folder / "language")
    words.save_pretrained(folder / "language")
    (folder / "language" / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    config = CausalLanguageModel.Config(pretrained=str(folder / "language"))
    slot = choose("language_model", {"name": "causal", **dataclasses.asdict(config)})
    return dataclasses.replace(experiment(folder, "finetune", "conversation"), language_model=slot)


def test_a_pretrained_models_own_end_tokens_count_and_its_sampling_does_not(tmp_path: Path) -> None:
    words = tokenizer(END_TEMPLATE, TURN)
    listed = {"eos_token_id": [TURN, EOS], "temperature": 0.6, "top_p": 0.9, "do_sample": True, "max_length": 9}
    built = build_model(pretrained(tmp_path, words, **listed))
    save_family(built, tmp_path / "model")
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").generation_config
    assert found.eos_token_id == [EOS, END, TURN]
    assert (found.pad_token_id, found.bos_token_id) == (PAD, BOS)
    assert (found.do_sample, found.temperature, found.top_p, found.max_length) == (None, None, None, None)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.add_special_tokens({"pad_token": "[PAD]"}), r"none for '\[PAD\]' with id 40; take the tokenizer"),
        (lambda t: t.add_tokens(["zebra", "gnu"]), "has 40 rows, and none for 'zebra' with id 40, 'gnu' with id 41"),
        (lambda t: t.add_special_tokens({"eos_token": "<end>"}), "none for '<end>' with id 40"),
    ],
    ids=["pad", "words", "eos"],
)
def test_tokens_without_a_row_are_known_before_training(tmp_path: Path, edit: Any, says: str) -> None:
    words = tokenizer()
    edit(words)
    with pytest.raises(ConfigError, match=f"^language_model.tokenizer: the model's token table .*{says}"):
        build_model(pretrained(tmp_path, words))


def test_the_image_placeholder_needs_no_row(tmp_path: Path) -> None:
    """Its embedding is the image's."""
    words = tiny_tokenizer()
    assert build_model(pretrained(tmp_path, words)).model.config.image_token_id == IMAGE
    for name in ("tokenizer.json", "tokenizer_config.json"):  # one that has no such token
        file = tmp_path / "language" / name
        file.write_text(file.read_text(encoding="utf-8").replace("<image>", "w3"), encoding="utf-8")
    slot = choose("language_model", {"name": "causal", "pretrained": str(tmp_path / "language")})
    whole = dataclasses.replace(experiment(tmp_path, "finetune", "conversation"), language_model=slot)
    assert build_model(whole).model.config.image_token_id == VOCABULARY


def test_tokens_added_to_a_model_folder_are_known_when_it_is_loaded(built: BuiltModel, tmp_path: Path) -> None:
    processor = save_family(built, tmp_path / "model")
    processor.tokenizer.add_tokens(["zebra"])
    try:
        processor.save_pretrained(tmp_path / "model")
        with pytest.raises(ConfigError, match=r"the tokenizer in .* has 40 rows, and none for 'zebra' with id 40"):
            load_model(tmp_path / "model")
    finally:
        built.tokenizer = family_tokenizer()


def test_a_model_folder_is_loaded_without_a_list_of_its_weights(
    built: BuiltModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers compares all names with its tensor-parallel plan where its logger has a level, and lists them."""
    monkeypatch.setattr("transformers.modeling_utils.verify_tp_plan", lambda *_: pytest.fail("names would be listed"))
    save_family(built, tmp_path / "model")
    load_model(tmp_path / "model")


def test_a_model_folder_with_weights_of_another_model(built: BuiltModel, tmp_path: Path) -> None:
    save_family(built, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file(load_file(file) | {"projector.extra": torch.ones(2)}, file, {"format": "pt"})
    with pytest.raises(Exception, match=r"holds 1 weights without a place in the model, such as projector.extra"):
        load_model(tmp_path / "model")
