"""The MLflow store: opened once, before anything is logged, and shown in a browser.

MLflow itself is imported inside the functions, since its import takes seconds and most commands never need it.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fvl_lightning.core.config.addresses import SQLITE, refuse_login, without_login
from fvl_lightning.core.errors import DataError, first_line
from fvl_lightning.tracking.sqlite_file import check_sqlite

# MLflow reports its usage to its makers by default, which a kit that works offline should not. MLflow reads this at its
# import, which the functions of this folder do later than this line.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

SERVER_EXIT_SECONDS = 10.0
"""Seconds that a server of `fvl ui` has to end."""
SERVER_TIMEOUT = 5.0
"""Seconds a tracking server has to answer when it is opened."""
MLFLOW_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Limits of a call to a server, unless the user's environment sets them; MLflow's defaults take many minutes."""


def is_server(uri: str) -> bool:
    """Returns whether the store is behind a server, rather than a file."""
    return uri.startswith(("http://", "https://"))


def resolve_uri(uri: str) -> str:
    """Returns the store's address with an absolute path in place of a relative sqlite path.

    The text after sqlite:/// is a path without any quoting.

    Raises:
        DataError: an address that is neither an sqlite file nor a server, or one with a login in it.
    """
    if uri.startswith(SQLITE) and uri != SQLITE:
        return f"{SQLITE}{Path(os.path.expanduser(uri.removeprefix(SQLITE))).resolve()}"
    try:
        refuse_login(uri, "tracking.uri")
    except ValueError as error:
        raise DataError(str(error)) from None
    if is_server(uri):
        return uri.rstrip("/")
    raise DataError(
        f"tracking.uri: '{without_login(uri)}' is not an MLflow store this kit can use; write sqlite:///<file> such as "
        "sqlite:///mlflow.db, or http(s)://<server>"
    )


def store_client(uri: str) -> Any:
    """Returns MLflow's client for a resolved address."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=mlflow_uri(uri))


def mlflow_uri(uri: str) -> str:
    """Returns a resolved address for MLflow and SQLAlchemy, in which % and ? of a path are escaped."""
    file = _sqlite_file(uri)
    if file is None or not {"%", "?"} & set(str(file)):
        return uri
    from sqlalchemy.engine import URL

    # With the driver's name MLflow does not make a folder called like the quoted path.
    return URL.create("sqlite+pysqlite", database=str(file)).render_as_string()


def open_store(uri: str, experiment: str) -> str:
    """Makes sure that the store and the experiment exist, creating both where needed, and returns the experiment's id.

    A new sqlite store is created atomically, so several processes may open it at once, and an interruption leaves
    no partial store. Artifacts go into the folder `mlartifacts` beside the sqlite file; a server decides by
    itself.

    Args:
        uri: `sqlite:///<file>` (relative to the working directory) or the `http(s)://` address of a server.
        experiment: the name under which MLflow groups the runs.

    Raises:
        DataError: the store cannot be opened, or the experiment was deleted in it.
    """
    uri = resolve_uri(uri)
    file = _sqlite_file(uri)
    if file is None:
        for name, value in MLFLOW_TIMEOUTS.items():
            os.environ.setdefault(name, value)  # MLflow reads them nowhere else
        _reach_server(uri)
    else:
        _prepare_sqlite(file)
    from mlflow.exceptions import MlflowException

    with store_errors(uri):
        client = store_client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            try:
                return str(client.create_experiment(experiment, artifact_location=file and _artifact_root(file)))
            except MlflowException as error:  # another process created it in between
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    raise error from None
    if found.lifecycle_stage != "active":
        raise DataError(
            f"tracking.experiment: '{experiment}' was deleted in {uri}; choose another name or bring it back with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return str(found.experiment_id)


def check_store(uri: str) -> None:
    """Checks that `open_store` can reach a server or read an sqlite file, and creates nothing.

    Raises:
        DataError: see open_store.
    """
    uri = resolve_uri(uri)
    file = _sqlite_file(uri)
    if file is None:
        _reach_server(uri)
    elif file.exists():
        check_sqlite(file)


def existing_store(uri: str) -> str:
    """Returns the resolved address of a store to read; MLflow would create a missing one.

    Raises:
        DataError: there is no store in the sqlite file; a server is not asked.
    """
    uri = resolve_uri(uri)
    file = _sqlite_file(uri)
    if file is not None:
        if not file.exists():
            raise DataError(
                f"tracking.uri: there is no MLflow store at {file} yet; a training or a comparison creates it"
            )
        check_sqlite(file)
    return uri


def serve_ui(
    uri: str, host: str = "127.0.0.1", port: int = 5000, before: Callable[[], None] = lambda: None
) -> None:
    """Serves MLflow's web interface on an sqlite store until interrupted (Ctrl-C or SIGTERM); for the main thread.

    Args:
        uri: `sqlite:///<file>` of a store that exists.
        host: the network address to listen on.
        port: the TCP port to listen on.
        before: called when store and port have been found to be usable.

    Raises:
        DataError: no store there, the port is taken, or the server ended with an error.
    """
    uri = existing_store(uri)
    file = _sqlite_file(uri)
    if file is None:
        raise DataError(f"tracking.uri: {uri} is a server already; open that address in a browser")
    _check_port(host, port)
    before()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", mlflow_uri(uri), "--workers", "1"]
    command += ["--host", host, "--port", str(port), "--artifacts-destination", _artifact_root(file)]
    command += ["--uvicorn-opts", "--no-access-log"]
    code = _run_until_interrupted(command)
    if code:
        raise DataError(f"the MLflow server on {uri} ended with code {code}; its own messages are above")


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Converts errors of MLflow and its database to a DataError that names the store."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # OSError: artifacts, and what requests raises
        shown = without_login(uri)
        raise DataError(f"the MLflow store {shown} cannot be used: {first_line(error).replace(uri, shown)}") from error


def _sqlite_file(uri: str) -> Path | None:
    """Returns the database file of a resolved address; None for a server."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _artifact_root(file: Path) -> str:
    """Returns the folder of artifacts, next to the store; MLflow's default is the working directory."""
    return (file.parent / "mlartifacts").as_uri()


def _prepare_sqlite(file: Path) -> None:
    """Checks an existing sqlite store or creates a new one."""
    # MLflow announces each table it creates; nobody asked.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"tracking.uri: the folder {file.parent} cannot be created ({error.strerror})") from None
    if not os.access(file.parent, os.W_OK):
        raise DataError(f"tracking.uri: the folder {file.parent} of the MLflow store cannot be written to")
    if file.exists():
        check_sqlite(file)
    else:
        _create_sqlite(file)


def _create_sqlite(file: Path) -> None:
    """Creates the store under another name and links it into place: a half-migrated store could never be opened."""
    draft = file.with_name(f".{file.name}.new-{os.getpid()}")
    draft_uri = f"{SQLITE}{draft}"
    try:
        # Where not even a file can be made MLflow would keep trying for minutes.
        draft.touch()
        with store_errors(draft_uri):
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            store = SqlAlchemyStore(mlflow_uri(draft_uri), _artifact_root(file))
            store.engine.dispose()
        # Unlike a rename, a link never replaces a store that another process has put there meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    except OSError as error:
        raise DataError(f"tracking.uri: {file} cannot be created ({error.strerror})") from None
    finally:
        draft.unlink(missing_ok=True)


def _reach_server(uri: str) -> None:
    """Asks the server's health page, since MLflow's own client retries for minutes."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=SERVER_TIMEOUT):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # a proxy that asks who we are; MLflow's client tells it
            return
        raise DataError(f"tracking.uri: {uri}/health answers {error.code}; it is not an MLflow server") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"tracking.uri: no MLflow server answers at {uri} ({reason})") from None


def _check_port(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # A port that a stopped server has just left is free for the next one.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise DataError(f"port {port} on {host} cannot be used ({error}); choose another one") from None


def _run_until_interrupted(command: list[str]) -> int:
    """Runs a server and its children; returns its exit code, or 0 after Ctrl-C or SIGTERM."""
    # MLflow would start a handful of workers for jobs that this kit never gives it, and a library of its server warns
    # about another one, which no user can change.
    warnings = [os.environ.get("PYTHONWARNINGS", ""), "ignore:starlette.middleware.wsgi is deprecated"]
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": ",".join(filter(None, warnings)),
    }
    # In a session of its own Ctrl-C does not reach it, so that it is ended in order rather than in a hail of traces.
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                server.wait(SERVER_EXIT_SECONDS)
        signal.signal(signal.SIGTERM, before)
