"""Every family of language models: answers end where training ends them, and files hold what the model computes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from fvl_lightning.inference.generation import generate_texts
from fvl_lightning.modeling.build import load_model
from fvl_lightning.modeling.conversion.export import export_model
from tests.families import END, FAMILIES, Trained, build_family, inputs, learn_answer, save_family
from tests.modeling.architectures import RESCALED
from tests.tiny_models import EOS

TOLERANCE = 1e-5
TOKENS = 12
"""Room for an answer; the one that is learnt has three tokens."""

Family = Callable[[str], Trained]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """name -> the model that has learnt its answer, made when it is first asked for."""
    made: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            built = build_family(name, folder)
            learn_answer(built)
            asked = inputs(save_family(built, folder / "model"))
            with torch.no_grad():
                made[name] = Trained(built, folder / "model", asked, built.model(**asked).logits)
        return made[name]

    return get


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in RESCALED else name for name in FAMILIES]
)
def test_answers_stop_at_the_trained_end_and_files_keep_the_logits(name: str, family: Family) -> None:
    trained = family(name)
    check_whole_model(AutoModelForImageTextToText.from_pretrained(trained.folder), trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_and_the_kits_own_loading_do_the_same(name: str, family: Family, tmp_path: Path) -> None:
    trained = family(name)
    export_model(trained.folder, tmp_path / "export", file_bytes=10**4)
    check_whole_model(AutoModelForImageTextToText.from_pretrained(tmp_path / "export"), trained)
    for token in inputs(AutoProcessor.from_pretrained(tmp_path / "export")).values():
        assert isinstance(token, Tensor)
    texts = generate_texts(
        load_model(tmp_path / "export"),
        trained.inputs["input_ids"].tolist(),
        TOKENS,
        pixel_values=trained.inputs["pixel_values"],
    )
    assert texts == ["w20 w21"]


def check_whole_model(model: torch.nn.Module, trained: Trained) -> None:
    """The model computes the trained one's logits, and its greedy answer ends where training ended it."""
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**trained.inputs).logits, trained.logits, atol=TOLERANCE, rtol=0)
    assert model.generation_config.eos_token_id == [EOS, END]
    written = model.generate(**trained.inputs, max_new_tokens=TOKENS)
    assert written[0, trained.inputs["input_ids"].shape[1] :].tolist() == [20, 21, END]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_resizing_placement_and_attention_keep_the_logits(name: str, family: Family, tmp_path: Path) -> None:
    trained = family(name)
    ways = {
        "disk": {"device_map": "auto", "max_memory": {"cpu": "45KB"}, "offload_folder": str(tmp_path / "offload")},
        "eager": {"attn_implementation": "eager"},
        "resized": {},
    }
    words = trained.logits.shape[-1]
    for way, asked in ways.items():
        model = AutoModelForImageTextToText.from_pretrained(trained.folder, **asked)
        if way == "resized":
            model.resize_token_embeddings(words + 7)
        with torch.no_grad():
            output = model(**trained.inputs, output_attentions=way == "eager", output_hidden_states=way == "eager")
        torch.testing.assert_close(output.logits[..., :words], trained.logits, atol=TOLERANCE, rtol=0)
        assert output.logits.shape[-1] == words + 7 * (way == "resized")
        layers = model.config.get_text_config().num_hidden_layers
        assert way != "eager" or (len(output.attentions), len(output.hidden_states)) == (layers, layers + 1)
    model.save_pretrained(tmp_path / "resized")
    with torch.no_grad():
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "resized")(**trained.inputs).logits
    torch.testing.assert_close(again, output.logits, atol=0, rtol=0)
