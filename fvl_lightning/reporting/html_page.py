"""The report as one HTML file with embedded images, which loads nothing."""

import base64
from collections.abc import Mapping
from html import escape

from markdown_it import MarkdownIt

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ border-bottom: 1px solid #d5d9de; padding: 0.3rem 0.8rem 0.3rem 0; white-space: nowrap; }}
blockquote {{ margin: 1rem 0; padding: 0.1rem 1rem; border-left: 4px solid #2f6f9f; background: #f3f7fa; }}
pre {{ overflow-x: auto; background: #f4f5f6; padding: 0.7rem; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def html_page(markdown: str, pictures: Mapping[str, bytes], title: str) -> str:
    """Renders Markdown as an HTML page; raw HTML is shown as text, and no address is loaded.

    Args:
        markdown: the text.
        pictures: {name: content of a PNG file}; any other image is replaced by its description.
        title: the page's title.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in (inner for block in tokens for inner in block.children or ()):
        if token.type != "image":
            continue
        content = pictures.get(str(token.attrs.get("src")))
        if content is None:
            token.type, token.tag, token.children = "text", "", None  # its content is the description
        else:
            token.attrs["src"] = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return PAGE.format(title=escape(title), body=parser.renderer.render(tokens, parser.options, {}))
