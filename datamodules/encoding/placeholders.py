"""Words that stand for media in the texts of data sets, such as <image> and <|video_1|>.

Where a word is left in a text, the picture it stands for is not there: taught as letters, it is noise.
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
    """The first such word in a text; empty where there is none. What is marked as code is what people write about."""
    if _PLACEHOLDER.search(text) is None:
        return ""
    found = _PLACEHOLDER.search(_CODE.sub("", text))
    return found[0] if found else ""
