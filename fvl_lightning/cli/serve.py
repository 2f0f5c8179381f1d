"""`fvl serve`: a page in the browser on which to talk with a model about pictures, and to see what its fusion takes."""

import socket
from contextlib import suppress
from threading import Event
from typing import Annotated

import typer

from fvl_lightning.cli.options import Adapters, Host, Model, Plugins
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import say


def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 256,
    adapter: Adapters = None,
    plugins: Plugins = None,
) -> None:
    """Serve a page to talk with a model about pictures; needs the extra `serve`.

    Example: `fvl serve runs/demo/concat/finetune --port 7861`
    """
    from fvl_lightning.inference.adapters import attach_adapters
    from fvl_lightning.inference.generation import Sampling
    from fvl_lightning.runs.plugins import import_plugins_for
    from fvl_lightning.runs.references import answering_model
    from fvl_lightning.serving.page import build_page
    from fvl_lightning.serving.server import launch_page, offline_gradio

    gradio = offline_gradio()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--port: {host}:{port} cannot be listened on ({error.strerror}); name another") from None
    import_plugins_for(model, plugins)
    loaded = answering_model(model)
    page = build_page(gradio, loaded, Sampling(max_tokens), model, attach_adapters(loaded, adapter))
    with suppress(KeyboardInterrupt):
        launch_page(gradio, page, host, port)
        say(f"{model} answers on http://{host}:{port} (Ctrl-C ends)")
        Event().wait()
    page.close(verbose=False)
