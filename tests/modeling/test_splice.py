"""Image tokens replace their placeholders, and nothing else."""

import pytest
import torch

from fvl_lightning.modeling.splice import splice_images

PLACE = 3


def test_images_fill_the_placeholders_in_reading_order() -> None:
    """Three images of two tokens over two rows: two in the first, apart, and one in the second."""
    token_ids = torch.tensor([[3, 3, 9, 3, 3, 8], [7, 7, 3, 3, 7, 7]])
    embeddings = -torch.arange(2 * 6 * 2, dtype=torch.float32).reshape(2, 6, 2) - 1
    images = torch.arange(3 * 2 * 2, dtype=torch.float32).reshape(3, 2, 2)
    spliced = splice_images(embeddings, token_ids, images, PLACE)
    assert spliced[0, :2].tolist() == images[0].tolist()
    assert spliced[0, 3:5].tolist() == images[1].tolist()
    assert spliced[1, 2:4].tolist() == images[2].tolist()
    words = token_ids != PLACE
    assert torch.equal(spliced[words], embeddings[words])


def test_gradients_go_where_the_values_came_from() -> None:
    token_ids = torch.tensor([[3, 5, 3]])
    embeddings = torch.zeros(1, 3, 2, requires_grad=True)
    images = torch.zeros(2, 1, 2, requires_grad=True)
    weights = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    (splice_images(embeddings, token_ids, images, PLACE) * weights).sum().backward()
    assert embeddings.grad.tolist() == [[[0, 0], [3, 4], [0, 0]]]
    assert images.grad.tolist() == [[[1, 2]], [[5, 6]]]


def test_images_come_in_the_embeddings_dtype() -> None:
    spliced = splice_images(
        torch.zeros(1, 2, 2, dtype=torch.bfloat16), torch.tensor([[3, 1]]), torch.ones(1, 1, 2), PLACE
    )
    assert spliced.dtype == torch.bfloat16
    assert spliced[0, 0].tolist() == [1, 1]


@pytest.mark.parametrize("images", [1, 3])
def test_counts_that_do_not_match(images: int) -> None:
    token_ids = torch.tensor([[3, 3, 5], [5, 3, 3]])
    with pytest.raises(ValueError, match=r"4 image placeholders in the batch") as caught:
        splice_images(torch.zeros(2, 3, 2), token_ids, torch.zeros(images, 2, 2), PLACE)
    assert str(caught.value) == (
        f"4 image placeholders in the batch, but {images} images of 2 tokens need {2 * images}; "
        "placeholders per row: [2, 2]"
    )


@pytest.mark.parametrize("width", [1, 4])
def test_image_tokens_of_another_width_than_the_table(width: int) -> None:
    """Their numbers would be poured into embeddings of any width."""
    with pytest.raises(ValueError, match=f"image tokens have width {width}, token embeddings 2"):
        splice_images(torch.zeros(1, 3, 2), torch.tensor([[3, 3, 5]]), torch.zeros(1, 2, width), PLACE)
