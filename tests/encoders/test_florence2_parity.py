"""The imported encoder computes what the original computes; tolerances (float32) from tests/fixtures/README.md."""

import pytest
import torch
from torch import Tensor

from tests.encoders import original

FEATURE = 1e-4
STAGE = 1e-3
"""Values of the stages reach 250."""


def expected(name: str) -> Tensor:
    return original.tensors("vision_io.safetensors")[name]


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


def states(sources: dict[str, Tensor]) -> Tensor:
    """The three prompts' states side by side, as the original returns them."""
    return torch.cat([sources[task] for task in original.TASKS], dim=-1)


@pytest.mark.parametrize(("suffix", "images", "size"), [
    ("128", "pixel_values", 128), ("b3", "pixel_values_3", 128), ("96", "pixel_values_96", 96),
])
@torch.no_grad()
def test_features_are_the_originals(suffix: str, images: str, size: int) -> None:
    """At 96 px the last stages' grids are no multiple of the window."""
    sources = original.encoder(**{} if size == 128 else {"image_size": size})(expected(images))
    close(sources["davit"], expected(f"image_feature_{suffix}"), FEATURE)
    close(states(sources), expected(f"encoder_states_{suffix}"), FEATURE)


@torch.no_grad()
def test_stages_are_the_originals() -> None:
    names = [f"davit_stage_{stage}" for stage in (1, 2, 3, 4)]
    sources = original.encoder(sources=names)(expected("pixel_values"))
    for index, name in enumerate(names):
        close(sources[name][:, 1:], expected(f"davit_stage{index}_128"), STAGE)
        close(sources[name][:, 0], expected(f"davit_stage{index}_128").mean(1), STAGE)


@torch.no_grad()
def test_the_pooled_token_is_dropped_after_all_computation() -> None:
    """What remains is as with the token: the text encoder has read it either way."""
    sources = original.encoder(pooled_token="drop")(expected("pixel_values"))
    close(sources["davit"], expected("image_feature_128")[:, 1:], FEATURE)
    close(states(sources), expected("encoder_states_128")[:, 1:], FEATURE)


def test_the_prompts_are_the_originals() -> None:
    assert original.imported().encoder.prompts.rows == expected("task_ids").tolist()


@torch.no_grad()
def test_wrong_answers_do_not_match() -> None:
    """The control tensors: pads masked, and the text before the image. Their distance is 100 tolerances or more."""
    found = states(original.encoder()(expected("pixel_values")))
    for control in ("control_pads_masked", "control_text_first"):
        assert float((found - expected(control)).abs().max()) > 100 * FEATURE, control


@torch.no_grad()
def test_masking_the_pads_is_the_other_answer() -> None:
    """`prompt_pads: mask` is exactly the control of that name."""
    found = states(original.encoder(prompt_pads="mask")(expected("pixel_values")))
    close(found, expected("control_pads_masked"), FEATURE)
