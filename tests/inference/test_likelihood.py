"""Log-likelihoods of continuations are those of a plain forward pass of each row by itself."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.errors import DataError
from fvl_lightning.inference import likelihood
from fvl_lightning.inference.generation import positions
from fvl_lightning.inference.likelihood import Continuation, continuation_log_likelihoods
from fvl_lightning.modeling.build import BuiltModel
from tests.tiny_models import BOS, IMAGE, LLAMA, TOKENS, pixels, tiny_model, tiny_tokenizer

ONE = [BOS, *[IMAGE] * TOKENS, 7]
TWO = [BOS, *[IMAGE] * TOKENS, 8, *[IMAGE] * TOKENS, 9, 10]
NONE = [BOS, 11, 12]
PROMPTS = [ONE, ONE, NONE, TWO, NONE]
CONTINUATIONS = [[20], [21, 22, 23], [24, 25], [26, 27, 28, 29], []]
IMAGES = [[0], [0], [], [1, 2], []]
"""The images of each prompt: the first two rows share one."""


@pytest.fixture(scope="module")
def built() -> BuiltModel:
    llama = LLAMA | {"tie_word_embeddings": False, "initializer_range": 0.6}
    return BuiltModel(tiny_model(7, fusion="gated", llama=llama), tiny_tokenizer())


def images_of(rows: Sequence[int]) -> dict[str, Any]:
    """The pixels of these rows, repeated where they share images."""
    wanted = [image for row in rows for image in IMAGES[row]]
    return {"pixel_values": pixels(3)[wanted]} if wanted else {}


@torch.no_grad()
def plain(built: BuiltModel, row: int) -> tuple[float, list[bool]]:
    """The sum of log-probabilities of a row, from all of its logits, and whether each token is the likeliest."""
    prompt, continuation = PROMPTS[row], CONTINUATIONS[row]
    token_ids = torch.tensor([[*prompt, *continuation]])
    (logits,) = built.model(token_ids, use_cache=False, **images_of([row])).logits.log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
    pairs = list(zip(places, continuation, strict=True))
    return sum(float(logits[place, token]) for place, token in pairs), [
        int(logits[place].argmax()) == token for place, token in pairs
    ]


def test_they_are_those_of_a_plain_forward_pass_in_any_batch(built: BuiltModel) -> None:
    rows = range(len(PROMPTS))
    together = continuation_log_likelihoods(built, PROMPTS, CONTINUATIONS, **images_of(rows))
    for row in rows:
        (alone,) = continuation_log_likelihoods(built, [PROMPTS[row]], [CONTINUATIONS[row]], **images_of([row]))
        wanted, greedy = plain(built, row)
        for found in (alone, together[row]):
            assert found.log_likelihood == pytest.approx(wanted, abs=1e-5)
            assert (found.tokens, found.is_greedy) == (len(CONTINUATIONS[row]), all(greedy))
    assert together[4] == Continuation(0.0, 0, True)
    assert together[1].per_token == together[1].log_likelihood / 3
    assert len({round(found.log_likelihood, 3) for found in together}) == len(rows)


def test_what_greedy_decoding_writes_is_greedy(built: BuiltModel) -> None:
    with torch.no_grad():
        ids = built.model.generate(torch.tensor([ONE]), pixel_values=pixels(1), max_new_tokens=5, do_sample=False)
    written = ids[0, len(ONE) :].tolist()
    other = [*written[:-1], written[-1] % 30 + 4]
    inputs = {"pixel_values": pixels(1).repeat(2, 1, 1, 1)}
    found = continuation_log_likelihoods(built, [ONE, ONE], [written, other], **inputs)
    assert [one.is_greedy for one in found] == [True, False]
    assert found[0].log_likelihood > found[1].log_likelihood


def test_logits_are_computed_at_the_continuations_alone_and_in_parts(
    built: BuiltModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = range(len(PROMPTS))
    whole = continuation_log_likelihoods(built, PROMPTS, CONTINUATIONS, **images_of(rows))
    original, computed = built.model.language_model.logits, []

    def logits(hidden: Tensor) -> Tensor:
        computed.append(hidden.shape[:-1])
        return original(hidden)

    monkeypatch.setattr(built.model.language_model, "logits", logits)
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 3 * LLAMA["vocab_size"])
    in_parts = continuation_log_likelihoods(built, PROMPTS, CONTINUATIONS, **images_of(rows))
    assert computed == [(3,), (3,), (3,), (1,)], "10 tokens, at most 3 at a time"
    for one, other in zip(whole, in_parts, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-5)


def test_continuations_of_one_prompt_need_its_image_encoded_once(built: BuiltModel) -> None:
    choices = [[20], [21, 22], [23]]
    with torch.no_grad():
        sources = {name: source[[0, 0, 0]] for name, source in built.model.encoder(pixels(1)).items()}
    shared = continuation_log_likelihoods(built, [ONE] * 3, choices, image_sources=sources)
    repeated = continuation_log_likelihoods(built, [ONE] * 3, choices, pixel_values=pixels(1).repeat(3, 1, 1, 1))
    for one, other in zip(shared, repeated, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-5)


def test_rows_that_do_not_fit_are_refused(built: BuiltModel) -> None:
    limit = positions(built)
    continuation_log_likelihoods(built, [[5] * (limit - 1)], [[6]])
    with pytest.raises(DataError, match=f"has {limit + 1} tokens, the model has {limit} positions"):
        continuation_log_likelihoods(built, [[5] * limit], [[6]])
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        continuation_log_likelihoods(built, [[]], [[6]])
    assert continuation_log_likelihoods(built, [], []) == []
