"""The imported model computes what the original computes; tolerances from tests/fixtures/README.md."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from tests.encoders import original

PLACE = original.VOCABULARY
"""The placeholder's id here, just beyond the vocabulary; the original writes one -200 per image."""
ORIGINAL_PLACE = -200
PROJECTED = 1e-4
LOGITS = 1e-3
LOSS = 1e-4
GRADIENT_NORM = 1e-4
"""Relative."""
FIXTURE = "llama_io.safetensors"


@pytest.fixture(scope="module")
def model() -> FlorenceVLForConditionalGeneration:
    return original.imported()


def tensor(name: str) -> Tensor:
    return original.tensors(FIXTURE)[name]


def expanded(case: str, tokens: int) -> dict[str, Tensor]:
    """A case as our model takes it: each -200 as `tokens` placeholders, pads on the right, labels alongside."""
    ids, mask = tensor(f"{case}/input_ids"), tensor(f"{case}/attention_mask").bool()
    labels = tensor(f"{case}/labels")
    new_ids, new_labels = [], []
    for row in range(ids.shape[0]):
        pairs: list[tuple[int, int]] = []
        for id_, label in zip(ids[row][mask[row]].tolist(), labels[row][mask[row]].tolist(), strict=True):
            pairs += [(PLACE, IGNORE_INDEX)] * tokens if id_ == ORIGINAL_PLACE else [(id_, label)]
        new_ids.append([id_ for id_, _ in pairs])
        new_labels.append([label for _, label in pairs])
    length = max(map(len, new_ids))
    return {
        "input_ids": torch.tensor([row + [0] * (length - len(row)) for row in new_ids]),
        "labels": torch.tensor([row + [IGNORE_INDEX] * (length - len(row)) for row in new_labels]),
        "pixel_values": tensor(f"{case}/images"),
    }


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("case", "expected", "pooled"),
    [
        ("batch_pad", "batch_pad", "keep"),
        ("two_images_list", "two_images_list", "keep"),
        ("batch_pad", "nopool/batch_pad", "drop"),
    ],
)
def test_logits_and_loss_are_the_originals(
    model: FlorenceVLForConditionalGeneration, case: str, expected: str, pooled: str
) -> None:
    if pooled == "drop":
        model = original.imported("drop")
    inputs = expanded(case, model.image_spec.tokens_per_image)
    assert torch.equal(inputs["labels"], tensor(f"{expected}/new_labels"))
    with torch.no_grad():
        projected = model.get_image_features(inputs["pixel_values"])
        close(projected, tensor(f"{expected}/projected"), PROJECTED)
        embeddings, _ = model._embed(inputs["input_ids"], (inputs["pixel_values"], None, None), first_pass=True)
        loss = model(**inputs).loss
        inputs.pop("labels")
        logits = model(**inputs).logits
    read = tensor(f"{expected}/new_attention_mask").bool()
    close(embeddings[read], tensor(f"{expected}/inputs_embeds")[read], PROJECTED)
    close(logits[read], tensor(f"{expected}/logits")[read], LOGITS)
    assert float(loss) == pytest.approx(original.expected()[expected]["loss"], abs=LOSS)


def test_gradients_are_the_originals(model: FlorenceVLForConditionalGeneration) -> None:
    model.zero_grad()
    model(**expanded("batch_pad", 17)).loss.backward()
    ours = {
        "model.mm_projector.encoder_mlp.0.": "projector.layers.0.",
        "model.mm_projector.encoder_mlp.1.1.": "projector.layers.2.",
        "model.mm_projector.encoder_mlp.2.1.": "projector.layers.4.",
    }
    for name, norm in original.expected()["batch_pad"]["grad_norm"].items():
        prefix = next((prefix for prefix in ours if name.startswith(prefix)), "")
        mine = ours[prefix] + name.removeprefix(prefix) if prefix else f"language_model.model.{name}"
        assert float(model.get_parameter(mine).grad.norm()) == pytest.approx(norm, rel=GRADIENT_NORM), name


@pytest.mark.parametrize("case", ["gen0", "gen1", "gen2"])
def test_generations_are_the_originals(model: FlorenceVLForConditionalGeneration, case: str) -> None:
    wanted: dict[str, Any] = original.expected()["generate"][case]
    ids = [token for id_ in wanted["input_ids"] for token in ([PLACE] * 17 if id_ == ORIGINAL_PLACE else [id_])]
    output = model.generate(
        torch.tensor([ids]),
        pixel_values=tensor("batch_pad/images")[wanted["image_index"]][None],
        max_new_tokens=len(wanted["new_tokens"]),
        do_sample=False,
        eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert output.sequences[0, -len(wanted["new_tokens"]) :].tolist() == wanted["new_tokens"]
    close(torch.cat(output.scores), tensor(f"{case}/scores"), LOGITS)
