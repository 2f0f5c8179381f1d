"""`fvl serve`: a page in the browser on which to talk with a model about pictures, and to see what its fusion takes."""

import os
import socket
from contextlib import suppress
from importlib import import_module
from threading import Event
from typing import Annotated, Any

import typer

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import say
from fvl_lightning.inference.adapters import ADAPTERS_HELP, put_on
from fvl_lightning.inference.generation import Sampling
from fvl_lightning.runs.references import MODEL_HELP, answering_model
from fvl_lightning.serving.page import build_page
from fvl_lightning.serving.source_shares import CSS

MAX_UPLOAD = "20mb"
"""An uploaded file may have this size."""


def serve(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    adapter: Annotated[list[str] | None, typer.Option(help=ADAPTERS_HELP)] = None,
) -> None:
    """Open a page to talk with a model about pictures; needs the extra `serve`.

    Example: `fvl serve runs/demo/concat/finetune --port 7861`
    """
    gradio = offline_gradio()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--port: {host}:{port} can't be listened on ({error.strerror}); name another") from None
    loaded = answering_model(model)
    page = build_page(gradio, loaded, Sampling(max_tokens), model, put_on(loaded, adapter))
    with suppress(KeyboardInterrupt):
        launch(gradio, page, host, port)
        say(f"{model} answers on http://{host}:{port} (Ctrl-C ends)")
        Event().wait()
    page.close(verbose=False)


def offline_gradio() -> Any:
    """Gradio, which tells nobody of what happens here; ConfigError where it is not installed."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # read when it is imported
    try:
        return import_module("gradio")
    except ImportError:
        raise ConfigError('fvl serve needs its packages: pip install "fvl-lightning[serve]"') from None


def launch(gradio: Any, page: Any, host: str, port: int) -> None:
    """Serves the page in a thread of its own, without what asks anything of other machines."""
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
    )
