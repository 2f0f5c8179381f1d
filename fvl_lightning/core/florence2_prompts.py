"""Florence-2's prompts."""

RELEASED_PROMPTS = {
    "caption": "Describe in detail what is shown in the image.",
    "ocr": "What is the text in the image?",
    "grounding": "Locate the objects in the image, with their descriptions.",
}
"""Prompts of Florence-VL's released code, in its order; the paper prints others (arXiv 2412.04424, section 3.2)."""
