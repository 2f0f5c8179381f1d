"""Gradio, started without the network."""

import os
from importlib import import_module
from typing import Any

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.serving.page import CSS
from fvl_lightning.serving.same_host import SameHost

MAX_UPLOAD = "20mb"
"""An uploaded file may have this size."""
MAX_SESSIONS = 1000
"""Conversations that are kept; the oldest are forgotten."""


def offline_gradio() -> Any:
    """Imports gradio with its analytics off; ConfigError if it is not installed."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # read when it is imported
    try:
        return import_module("gradio")
    except ImportError:
        raise ConfigError('fvl serve needs its packages: pip install "fvl-lightning[serve]"') from None


def launch_page(gradio: Any, page: Any, host: str, port: int) -> None:
    """Serves the page in a thread of its own, to visitors of this host only, and asks nothing of other machines."""
    from starlette.middleware import Middleware  # a part of gradio, and thereby of the extra

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        theme=gradio.themes.Soft(primary_hue="indigo", **fonts),
        css=CSS,
        prevent_thread_lock=True,
        num_workers=0,  # they would answer on ports of their own, without the check of the host
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={"middleware": [Middleware(SameHost, host=host)]},
    )
