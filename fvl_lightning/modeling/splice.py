"""Image embeddings in the rows of a batch, at the positions of the placeholders."""

from torch import Tensor


def splice_images(embeddings: Tensor, token_ids: Tensor, images: Tensor, image_token_id: int) -> Tensor:
    """Replaces the embedding of every placeholder by the next image token.

    Args:
        embeddings: text embeddings [B, S, D].
        token_ids: [B, S], with `image_token_id` once per image token; images are in reading order over the rows.
        images: image embeddings [I, N, D].
        image_token_id: the id of the placeholder.

    Returns:
        The embeddings [B, S, D].

    Raises:
        ValueError: the number of placeholders is not I * N (the message gives the counts of every row), or the images
            and the embeddings differ in width.
    """
    if images.shape[-1] != embeddings.shape[-1]:  # masked_scatter accepts any widths
        raise ValueError(f"image tokens have width {images.shape[-1]}, token embeddings {embeddings.shape[-1]}")
    places = token_ids == image_token_id
    expected = images.shape[0] * images.shape[1]
    # Counting makes the host wait for the device once a step; without it, misplaced images would silently train.
    found = int(places.sum())
    if found != expected:
        raise ValueError(
            f"{found} image placeholders in the batch, but {images.shape[0]} images of {images.shape[1]} tokens need "
            f"{expected}; placeholders per row: {places.sum(1).tolist()}"
        )
    return embeddings.masked_scatter(places.unsqueeze(-1), images.to(embeddings))
