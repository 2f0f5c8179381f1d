"""Words that stand for media are found in texts, and what only looks like them is not."""

import pytest

from datamodules.encoding.placeholders import find_placeholder


@pytest.mark.parametrize(
    "word",
    [
        *("<image>", "<Image>", "<images>", "<image_1>", "<image 2>", "<image-3>", "<|image|>", "<|image_1|>", "<img>"),
        *("<ImageHere>", "<IMG_CONTEXT>", "<image_placeholder>", "<|image_pad|>", "<image_soft_token>", "<im_patch>"),
        *("<video>", "<video_0>", "<|video_pad|>", "<audio>", "<|AUDIO|>", "<|vision_start|>", "<start_of_image>"),
        *("[IMG]", "[IMAGE]", "[IMAGE_1]", "[VIDEO]", "<|audio_bos|>", "<speech>"),
    ],
)
def test_words_that_stand_for_media(word: str) -> None:
    assert find_placeholder(f"What is {word}\nhere?") == word


@pytest.mark.parametrize(
    "text",
    [
        *("", "an image", "<imagine>", "<b>", "a < image > b", "image>", "<|im_start|>", "</s>", "[Image: a dog]"),
        *('<img src="a.png">', '<video controls src="a.mp4">', "the tag `<video>` plays", "```html\n<audio>\n```"),
    ],
)
def test_words_that_do_not(text: str) -> None:
    assert find_placeholder(text) == ""
