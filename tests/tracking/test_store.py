"""Opening the store: created whole, found again, and every way of failing said in one sentence."""

import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from fvl_lightning.core.config.loading import check_config, load_config
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.tracking.store import mlflow_uri, open_store, resolve_uri, serve_ui, store_client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a name such as people and their build servers have."""
    return tmp_path_factory.mktemp("a store%2F#[1]'?x=1")


def test_store_and_experiment_are_created_and_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    created = open_store("sqlite:///new/mlflow.db", "shapes")
    assert open_store(f"sqlite:///{folder}/new/mlflow.db", "shapes") == created
    assert open_store("sqlite:///new/mlflow.db", "other") != created
    assert sorted(path.name for path in (folder / "new").iterdir()) == ["mlflow.db"]
    assert list(folder.iterdir()) == [folder / "new"]


def test_artifacts_lie_beside_the_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{folder}/new/mlflow.db"
    client = store_client(uri)
    run = client.create_run(open_store(uri, "shapes"))
    client.log_text(run.info.run_id, "hello", "note.txt")
    assert [path.name for path in (folder / "new" / "mlartifacts").rglob("*.txt")] == ["note.txt"]
    assert not list(tmp_path.iterdir())


def test_deleted_experiment(folder: Path) -> None:
    uri = f"sqlite:///{folder}/new/mlflow.db"
    store_client(uri).delete_experiment(open_store(uri, "gone"))
    check_sentence(uri, "'gone' was deleted", experiment="gone")


def test_an_experiment_that_another_process_creates_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    open_store(uri, "other")
    look = MlflowClient.get_experiment_by_name
    made: list[str] = []

    def created_right_after_the_look(client: MlflowClient, name: str) -> Any:
        found = look(client, name)
        if not made:
            made.append(client.create_experiment(name))
        return found

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", created_right_after_the_look)
    assert [open_store(uri, "shapes")] == made


def test_processes_that_open_a_new_store_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=open_store, args=(uri, f"experiment-{number}")) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["shared.db"]


@pytest.mark.slow
def test_interrupted_creation_leaves_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    program = f"from fvl_lightning.tracking.store import open_store; open_store({uri!r}, 'x')"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(path.stat().st_size > 0 for path in tmp_path.iterdir()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mlruns", "'mlruns' is not an MLflow store"),
        ("file:///tmp/mlruns", "sqlite:///<file>"),
        ("sqlite:///", "sqlite:///<file>"),
        ("sqlite:///:memory:/x/y.db", "cannot be"),
        ("ftp://example.org", "is not an MLflow store"),
        ("sqlite:////proc/nowhere/mlflow.db", "/proc/nowhere cannot be created"),
        ("sqlite:////proc/mlflow.db", "cannot be"),
        ("http://127.0.0.1:9", "no MLflow server answers at http://127.0.0.1:9"),
        ("http://[broken", "no MLflow server answers"),
    ],
)
def test_uris_that_cannot_be_opened(uri: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ":memory:").touch()
    start = time.monotonic()
    check_sentence(uri, words)
    assert time.monotonic() - start < 10


def test_files_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database at all, but long enough to have a header")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE things (name TEXT)")
    damaged = bytearray((tmp_path / "other.db").read_bytes())
    damaged[100:] = b"\xff" * (len(damaged) - 100)
    (tmp_path / "damaged.db").write_bytes(bytes(damaged))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    check_sentence(f"sqlite:///{tmp_path}", "is a folder, not an sqlite file")
    check_sentence(f"sqlite:///{tmp_path}/text.db", "is not an sqlite database")
    check_sentence(f"sqlite:///{tmp_path}/other.db", "not an MLflow store")
    check_sentence(f"sqlite:///{tmp_path}/damaged.db", "cannot be read as an sqlite database")
    check_sentence(f"sqlite:///{tmp_path}/text.db/mlflow.db", "cannot be created")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    check_sentence(f"sqlite:///{tmp_path}/mlflow.db", "cannot be written to")


def test_half_migrated_store(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("CREATE TABLE experiments (name TEXT)")
    check_sentence(f"sqlite:///{tmp_path}/old.db", "cannot be used")


def test_ui_refuses(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="there is no MLflow store at"):
        serve_ui(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(DataError, match="is a server already"):
        serve_ui("http://127.0.0.1:5000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"port {port} on 127.0.0.1 cannot be used"):
            serve_ui(f"sqlite:///{folder}/new/mlflow.db", port=port)
    with pytest.raises(DataError, match="port 99999"):
        serve_ui(f"sqlite:///{folder}/new/mlflow.db", port=99999)


@pytest.mark.slow
def test_ui_serves_until_interrupted(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"sqlite:///{folder}/new/mlflow.db"
    open_store(uri, "shapes")
    program = f"from fvl_lightning.tracking.store import serve_ui; serve_ui({uri!r}, port={port})"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        assert b"<title>MLflow</title>" in wait_for_page(f"http://127.0.0.1:{port}/", 120)
    finally:
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_relative_path_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path.resolve()}/runs/mlflow.db"
    assert resolve_uri("http://localhost:5000/") == "http://localhost:5000"


def test_an_address_is_a_path_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.engine import make_url

    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_uri("sqlite:///~/mlflow.db") == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    for name in ("a%2Fb", "100%", "what?x=1", "a#b", "a b", "it's", "a@b:c", "größe", "[x]"):
        uri = resolve_uri(f"sqlite:///{tmp_path}/{name}/mlflow.db")
        assert resolve_uri(uri) == uri
        assert make_url(mlflow_uri(uri)).database == f"{tmp_path.resolve()}/{name}/mlflow.db"
        assert make_url(mlflow_uri(uri)).get_backend_name() == "sqlite"


@pytest.mark.parametrize("login", ["me:s3cret", "me", "me:s3/cr@et", ":s3cret"])
@pytest.mark.parametrize("scheme", ["http", "https", "postgresql", "HTTP"])
def test_an_address_with_a_login_is_refused_and_not_said(login: str, scheme: str, tmp_path: Path) -> None:
    for use in (resolve_uri, lambda uri: open_store(uri, "x"), serve_ui):
        with pytest.raises(DataError) as caught:
            use(f"{scheme}://{login}@host:5000")
        assert f"tracking.uri: {scheme}://...@host:5000 contains a login" in str(caught.value)
    path = tmp_path / "a.yaml"
    path.write_text(f"tracking: {{uri: '{scheme}://{login}@host:5000', enabled: false}}", encoding="utf-8")
    with pytest.raises(ConfigError, match="contains a login") as refused:
        load_config(ExperimentConfig, path)
    assert "s3" not in str(refused.value)


def test_data_and_folders_have_no_password_in_their_addresses() -> None:
    for value in ("s3://key:s3cret@bucket/a", "https://me:s3cret@host:80/a.tar"):
        with pytest.raises(ConfigError, match="contains a password") as refused:
            check_config(ExperimentConfig, {"init_from": [value]})
        assert "s3cret" not in str(refused.value)
    for value in ("abfs://box@account.dfs/a", "https://host:80/a@b.tar", "runs/a:b@c", "hf://datasets/a@main"):
        assert check_config(ExperimentConfig, {"init_from": [value]}).init_from == [value]


def check_sentence(uri: str, words: str, experiment: str = "x") -> None:
    """Opening fails with one line that holds `words`."""
    with pytest.raises(DataError) as raised:
        open_store(uri, experiment)
    message = str(raised.value)
    assert words in message
    assert "\n" not in message


def wait_for_page(url: str, seconds: float) -> bytes:
    """The page at `url`, once the server behind it answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bytes(response.read())
        except OSError:
            assert time.monotonic() < deadline, f"no answer from {url}"
            time.sleep(0.5)


def test_a_server_that_asks_who_we_are_is_one_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its refusal is MLflow's to tell, which knows the user's name and password."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(DataError, match=r"cannot be used: .*401"):
                open_store(f"http://127.0.0.1:{server.server_port}", "shapes")
        finally:
            server.shutdown()
