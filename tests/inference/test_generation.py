"""Answers of several prompts at once are those of one at a time, streamed ones too; nothing exceeds the model."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.inference.conversation import Conversation
from fvl_lightning.inference.generation import (
    Prompt,
    Sampling,
    answer,
    encode,
    generate_texts,
    positions,
    stream,
    user_message,
)
from fvl_lightning.inference.source_weight_maps import source_weights
from fvl_lightning.modeling.build import LoadedModel
from tests.tiny_models import EOS, TOKENS, pixels, tiny_talker


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_talker()


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def prompts(loaded: LoadedModel) -> list[Prompt]:
    """Of unlike lengths, with no image, one, and several."""
    asked = [("w7", 1), ("w8 w9 w10 w11", 2), ("w12 w13", 0), ("w20 w21 w22", 1)]
    return [
        encode(loaded, [user_message([picture(10 * row + image) for image in range(images)], text)])
        for row, (text, images) in enumerate(asked)
    ]


def test_a_prompt_holds_its_pictures_before_its_words(loaded: LoadedModel) -> None:
    one, two, none, _ = prompts(loaded)
    image = loaded.processor.image_token_id
    assert [ids.count(image) // TOKENS for ids in (one.ids, two.ids, none.ids)] == [1, 2, 0]
    assert two.pixel_values is not None
    assert torch.equal(two.pixel_values[1:], loaded.processor.image_processor(picture(11))["pixel_values"])
    assert none.pixel_values is None


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_at_once_are_those_one_by_one(loaded: LoadedModel, beams: int) -> None:
    asked, sampling = prompts(loaded), Sampling(max_tokens=8, beams=beams)
    together = answer(loaded, asked, sampling)
    assert together == [answer(loaded, [prompt], sampling)[0] for prompt in asked]
    assert len(set(together)) == len(asked), "answers that are all alike compare nothing"
    assert min(len(set(text.split())) for text in together) >= 3


def test_answers_without_a_cache_are_the_same(loaded: LoadedModel) -> None:
    asked = prompts(loaded)
    images = torch.cat([prompt.pixel_values for prompt in asked if prompt.pixel_values is not None])
    ids = [prompt.ids for prompt in asked]
    without = generate_texts(loaded, ids, 8, pixel_values=images, use_cache=False)
    assert without == answer(loaded, asked, Sampling(max_tokens=8))


def test_little_room_is_used_to_the_end_and_changes_nothing_else(loaded: LoadedModel) -> None:
    """A long prompt beside a short one does not cut the answer of the short one."""
    held = positions(loaded)
    sampling = Sampling(max_tokens=12)
    short = encode(loaded, [user_message([], "w9")])
    long = encode(loaded, [user_message([], " ".join(["w8"] * (held - 7)))])
    assert held - len(long.ids) < 12
    together = answer(loaded, [short, long], sampling)
    assert together == [answer(loaded, [short], sampling)[0], answer(loaded, [long], sampling)[0]]
    assert len(together[1].split()) <= held - len(long.ids)


def test_what_the_model_cannot_hold_is_refused(loaded: LoadedModel) -> None:
    held = positions(loaded)
    with pytest.raises(DataError, match=f"has {held + 2} tokens with its images, the model has {held} pos"):
        encode(loaded, [user_message([], " ".join(["w8"] * held))])


def test_drawn_words_follow_the_seed(loaded: LoadedModel) -> None:
    asked, sampling = prompts(loaded), Sampling(max_tokens=8, temperature=2.0, top_p=0.9)

    def drawn(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return answer(loaded, asked, sampling)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_little_probability_leaves_the_likeliest_word(loaded: LoadedModel) -> None:
    asked = prompts(loaded)
    greedy = answer(loaded, asked, Sampling(max_tokens=8))
    assert answer(loaded, asked, Sampling(max_tokens=8, temperature=1.0, top_p=1e-6)) == greedy


# One answer as it is written.


def test_a_streamed_answer_is_the_same_in_pieces(loaded: LoadedModel) -> None:
    for prompt in prompts(loaded):
        pieces = list(stream(loaded, prompt, Sampling(max_tokens=8)))
        assert "".join(pieces).strip() == answer(loaded, [prompt], Sampling(max_tokens=8))[0]
    assert len(pieces) > 2


def test_a_beam_search_cannot_be_streamed(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="beams: a stream needs 1, not 3"):
        next(stream(loaded, prompts(loaded)[0], Sampling(beams=3)))


def counted(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """The steps of the model from here on; it never ends on its own, and may fail."""
    steps: list[int] = []
    original = loaded.model.language_model.logits

    def logits(hidden: Tensor) -> Tensor:
        steps.append(len(steps))
        if len(steps) == fail_at:
            raise RuntimeError("out of memory")
        return original(hidden).index_fill(-1, torch.tensor([EOS]), -torch.inf)

    monkeypatch.setattr(loaded.model.language_model, "logits", logits)
    return steps


def test_closing_stops_the_model(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = counted(loaded, monkeypatch)
    with closing(stream(loaded, prompts(loaded)[2], Sampling(max_tokens=50))) as pieces:
        next(pieces)
    done = len(steps)
    assert 0 < done < 50


def test_an_error_while_writing_comes_out(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(loaded, monkeypatch, fail_at=3)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream(loaded, prompts(loaded)[2], Sampling(max_tokens=50)))


def roles(conversation: Conversation) -> Sequence[str]:
    return [message["role"] for message in conversation.messages]


def test_a_conversation_goes_on_with_all_that_was_said(loaded: LoadedModel) -> None:
    conversation = Conversation(loaded, Sampling(max_tokens=4), pictures=[picture(1)])
    first = "".join(conversation.say("w7")).strip()
    assert conversation.messages == [user_message([conversation.messages[0]["content"][0]["image"]], "w7"),
                                     {"role": "assistant", "content": first}]
    assert conversation.pictures == [], "a picture is shown once"
    second = "".join(conversation.say("w9")).strip()
    whole = encode(loaded, [*conversation.messages[:2], user_message([], "w9")])
    assert second == answer(loaded, [whole], Sampling(max_tokens=4))[0]
    assert roles(conversation) == ["user", "assistant"] * 2


def test_a_refused_message_is_no_part_of_it(loaded: LoadedModel) -> None:
    conversation = Conversation(loaded, Sampling(), pictures=[picture(1)])
    with pytest.raises(DataError, match="positions for prompt and answer"):
        conversation.say("w8 " * 100)
    assert conversation.messages == []
    assert len(conversation.pictures) == 1


def test_a_stopped_answer_stays_as_far_as_it_came(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(loaded, monkeypatch)
    conversation = Conversation(loaded, Sampling(max_tokens=50))
    with closing(conversation.say("w7")) as pieces:
        said = next(pieces) + next(pieces)
    assert conversation.messages[-1] == {"role": "assistant", "content": said.strip()}


def test_shares_are_those_of_each_image(loaded: LoadedModel) -> None:
    both = source_weights(loaded, pixels(2))
    for image, shares in zip(pixels(2).split(1), both, strict=True):
        assert source_weights(loaded, image)[0].weights == shares.weights
    assert both[0].weights != both[1].weights
    for source, share in both[0].weights.items():
        assert both[0].maps[source].shape == (2, 2)
        assert float(both[0].maps[source].mean()) == pytest.approx(share, abs=1e-5)
