"""A conditioned fusion reads the question about each image, and nothing else of the text."""

from pathlib import Path

import pytest
import torch

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import NO_TOKEN
from fvl_lightning.inference.generation import Sampling, answer, encode, user_message
from fvl_lightning.modeling.build import LoadedModel, load_model
from fvl_lightning.modeling.processing.processor import make_processor
from tests.tiny_models import CHAT_TEMPLATE, pixels, rows, tiny_model, tiny_tokenizer


def talker() -> LoadedModel:
    model, tokenizer = tiny_model(5, fusion="film"), tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return LoadedModel(model, tokenizer, make_processor(model.image_spec, tokenizer, "stretch", conditioned=True))


def test_the_question_is_the_mean_of_its_token_embeddings_whatever_stands_beside_it() -> None:
    model = tiny_model(5, fusion="film")
    wide = torch.full((3, 9), NO_TOKEN)
    wide[0, :4], wide[1, :9] = torch.tensor([5, 9, 9, 7]), torch.arange(10, 19)
    with torch.no_grad():
        found, alone = model._question(wide, 3), model._question(wide[:1, :4], 1)
        table = model.get_input_embeddings().weight
        assert torch.equal(found[0], alone[0]), "bitwise, whatever the padding and the other questions"
        torch.testing.assert_close(found[0], table[[5, 9, 9, 7]].mean(0), rtol=0, atol=1e-7)
        assert not found[2].any(), "no question is zero"


def test_features_follow_the_question() -> None:
    model, images = tiny_model(5, fusion="film"), pixels(1)
    with torch.no_grad():
        one, other = (model.embed_images(images, question_ids=torch.tensor([[k, 8]])).features for k in (5, 6))
        by_cache = model.embed_images(sources=model.encoder(images), question_ids=torch.tensor([[5, 8]])).features
    assert not torch.equal(one, other)
    assert torch.equal(one, by_cache)


def test_images_without_questions_are_refused() -> None:
    model, batch = tiny_model(fusion="film"), rows(2)
    says = r"^fusion film reads the question about each image: no question_ids for 2 images"
    with pytest.raises(ValueError, match=says):
        model(batch.token_ids, batch.images)
    with pytest.raises(ValueError, match=r"1 rows of question_ids for 2 images"):
        model(batch.token_ids, batch.images, question_ids=torch.tensor([[5]]))


def test_a_text_that_names_no_question_is_refused() -> None:
    with pytest.raises(DataError, match=r"^this model's fusion reads the question, which a text does not name: give"):
        talker().processor(images=[pixels(1)[0].clamp(0, 1).permute(1, 2, 0).numpy()], text="<image> w7")


def test_prompts_carry_their_last_question_and_a_batch_answers_as_one_by_one(tmp_path: Path) -> None:
    from PIL import Image

    loaded = talker()
    picture = tmp_path / "a.png"
    Image.new("RGB", (20, 20), (90, 10, 200)).save(picture)
    first = user_message([picture], "w7 w8")
    talk = [first, {"role": "assistant", "content": "w9"}, {"role": "user", "content": "w11 w12 w13"}]
    prompts = [encode(loaded, messages) for messages in ([first], talk)]
    assert [list(prompt.question) for prompt in prompts] == [[7, 8], [11, 12, 13]]
    sampling = Sampling(max_tokens=5)
    together = answer(loaded, prompts, sampling)
    assert together == [answer(loaded, [prompt], sampling)[0] for prompt in prompts]
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.processor.conditioned
    assert answer(again, [encode(again, talk)], sampling) == together[1:]
