"""Answers without each source are those of a model that gets zeros in its place, from one pass of the encoder."""

from pathlib import Path

import pytest
from PIL import Image

from fvl_lightning.inference.generation import Sampling, answer, encode, user_message
from fvl_lightning.inference.without_sources import answers_without_sources, with_sources
from tests.tiny_models import tiny_talker


def test_each_answer_is_that_of_zeros_in_place_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, sampling = tiny_talker(), Sampling(max_tokens=6)
    for parameter in (*loaded.model.projector.parameters(), *loaded.model.fusion.parameters()):
        parameter.data.mul_(8)  # so that the images decide the answers
    for number, colour in enumerate([(200, 30, 90), (10, 220, 40)]):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{number}.png")
    pictures = [tmp_path / "0.png", tmp_path / "1.png"]
    prompt = encode(loaded, [user_message(pictures, "w7 w8")])
    sources, alignment = list(loaded.model.encoder.specs), loaded.model.alignment
    expected = {}
    for source in sources:
        alignment.keep([other for other in sources if other != source])
        (expected[source],) = answer(loaded, [prompt], sampling)
    alignment.keep(sources)
    whole = answer(loaded, [prompt], sampling)
    known = with_sources(loaded, prompt)
    monkeypatch.setattr(loaded.model.encoder, "forward", None)  # from here on, a call is an error
    assert answer(loaded, [known], sampling) == whole
    found = answers_without_sources(loaded, known, sampling)
    assert found == expected
    assert len({*found.values(), *whole}) > 1, "some answer depends on a source"
    assert answers_without_sources(loaded, encode(loaded, [user_message([], "w7 w8")]), sampling) == {}
