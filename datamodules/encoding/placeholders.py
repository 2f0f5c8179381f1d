"""Finds placeholders for media in the texts of datasets, such as <image> and <|video_1|>.

A placeholder that is left in a text stands for an image that is missing; trained on as text, it is noise.
"""

import re

_MEDIA = r"images?|img|pictures?|photos?|videos?|audios?|speech|sounds?|media|vision"
_MORE = r"\d+|pad|tokens?|placeholder|here|context|start|end|begin|bos|eos|patch|feature|soft"
_PLACEHOLDER = re.compile(
    rf"<\|?(?:(?:start|begin|end)[ _]of[ _])?(?:{_MEDIA}|im(?=_patch)|vi(?=_patch))(?:[ _-]*(?:{_MORE}))*\|?>"
    rf"|\[(?:IMG|IMAGE|VIDEO|AUDIO)(?:[ _-]*\d+)?\]",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def find_placeholder(text: str) -> str:
    """Returns the first placeholder in a text, empty where there is none; code in backticks is ignored."""
    if _PLACEHOLDER.search(text) is None:
        return ""
    found = _PLACEHOLDER.search(_CODE.sub("", text))
    return found[0] if found else ""
