"""Fixtures of all tests: the command line, small data to train on in seconds, and one quick demo for all."""

import contextlib
import fcntl
import gc
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# Without a deadline, since a busy machine is no fault of the code.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
TINY_DATA = ("data.train_images=64", "data.validation_images=16", "data.test_images=16", "data.unseen_images=8")
"""Overrides for the demo set that `workspace` has already drawn."""
TINY = (*TINY_DATA, "trainer.batch_size=8", "trainer.max_steps=3", "tracking.enabled=false")
"""Overrides that make any experiment of the demo take a second."""
QUICK_DEMO_SECONDS = 900

Run = Callable[..., subprocess.CompletedProcess[str]]
"""(folder, *words) -> what `fvl <words>` said and returned in that folder."""
Fork = Callable[..., list[int]]
"""(folder, out, *the words of each rank) -> runs them in the folder; their exit codes. See forked_ranks.py."""


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives all tests of a file to one worker, and all files that share the quick demo's folder to one worker.

    What takes long comes first, so that both workers end at about the same time.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "quick demo" if file in sharing else file

        def _assign_work_unit(self, node: Any) -> None:
            long = [scope for scope in self.workqueue if scope.startswith(("quick demo", "tests/integration/"))]
            if long:
                self.workqueue.move_to_end(min(long), last=False)  # the quick demo's is the longest
            super()._assign_work_unit(node)

    files = ROOT.glob("tests/**/test_*.py")
    sharing = {str(path.relative_to(ROOT)) for path in files if "quick_demo" in path.read_text(encoding="utf-8")}
    return ByFile(config, log)


def pytest_collection_finish() -> None:
    """Keeps what imports and collection have made out of garbage collection, which takes a sixth of the time else."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heard() -> None:
    """Handles SIGINT and SIGHUP, which a shell's background jobs and nohup ignore, since tests send them."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the record of plugins that trainings have used out of the account's own, for subprocesses too."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def fvl() -> Run:
    """Runs the command line in its own process; the imports take some seconds."""

    def run(folder: Path, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fvl_lightning", *words]
        environment = os.environ | ONE_THREAD | {"COLUMNS": "200"}
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture(scope="session")
def fvl_here() -> Run:
    """Runs the command line in this process, and restores folder, logging, plugins and threads afterwards.

    An exception that the command line does not handle fails the test.
    """

    def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        from fvl_lightning.cli.main import run as run_command

        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, _logging_kept(), _plugins_forgotten(), _threads_kept():
            patch.chdir(folder)
            patch.setenv("COLUMNS", "1000")  # or a log line would be broken in two
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run_command(list(words))
        return subprocess.CompletedProcess(["fvl", *words], code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def fork() -> Iterator[Fork]:
    """Runs ranks in processes that are forked after the imports."""
    started: list[subprocess.Popen[str]] = []

    def run(folder: Path, out: str, *ranks: Sequence[str]) -> list[int]:
        if not started:
            command = [sys.executable, str(ROOT / "tests" / "forked_ranks.py")]
            environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
        (folder / out).mkdir()
        stdin, stdout = started[0].stdin, started[0].stdout
        assert stdin is not None
        assert stdout is not None
        job = {"folder": str(folder), "out": str(folder / out), "ranks": [list(map(str, words)) for words in ranks]}
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder `data` with the demo's tokenizer and the set of TINY_DATA."""
    from datamodules.demo.data import DemoData
    from fvl_lightning.core.config.merging import parse_override

    data = tmp_path_factory.mktemp("tiny") / "data"
    fields: dict[str, int] = {}
    for word in TINY_DATA:
        fields |= parse_override(word)["data"]
    DemoData(DemoData.Config(root=str(data / "demo"), **fields)).prepare_data()
    return data


@pytest.fixture
def workspace(tmp_path: Path, tiny_data: Path) -> Path:
    """Makes a working folder with `experiments` and `data`, without runs."""
    return furnish(tmp_path, tiny_data)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes an MLflow store without runs, for tests to copy, since creating one takes seconds."""
    from fvl_lightning.tracking.store import open_store

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{file}", "unused")
    return file


@pytest.fixture(scope="session")
def quick_demo(tmp_path_factory: pytest.TempPathFactory, fvl: Run) -> Path:
    """Makes a working folder in which `fvl demo --quick` has run once for all tests; `runs/demo` has its report.

    `experiments` and `docs` are the repository's, so that the README's commands find their files; but the quick demo's
    stages have a quarter of their steps, since no test looks at what they learn.
    """
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    folder = base / "quick-demo"
    with (base / "quick-demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "output.txt").is_file():
            folder.mkdir()
            shutil.copytree(ROOT / "experiments", folder / "experiments")
            (folder / "docs").symlink_to(ROOT / "docs")
            for stage in ("encoder_pretrain", "pretrain", "finetune"):
                _cut_steps(folder / "experiments" / "demo" / "quick" / f"{stage}.yaml")
            done = fvl(folder, "demo", "--quick", timeout=QUICK_DEMO_SECONDS)
            assert done.returncode == 0, done.stderr
            (folder / "runs" / "demo").symlink_to("demo-quick")
            (folder / "output.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def _cut_steps(experiment: Path) -> None:
    """Leaves a quarter of the steps of a training, and of those between two validations."""
    text, count = re.subn(
        r"(?<=max_steps: |ate_every: )\d+", lambda found: str(int(found[0]) // 4), experiment.read_text()
    )
    assert count == 2, f"{experiment.name}: {count} numbers of steps"
    experiment.write_text(text)


def furnish(folder: Path, data: Path) -> Path:
    """Puts `experiments` and the sets of `data` into a working folder; what a test draws stays in that folder."""
    (folder / "experiments").symlink_to(ROOT / "experiments")
    (folder / "data" / "demo").mkdir(parents=True)
    for shared in (data / "demo").glob("*"):
        (folder / "data" / "demo" / shared.name).symlink_to(shared)
    return folder


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Restores logging after a command, which sets it up for the whole process and removes pytest's handlers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    named = {name: logger for name, logger in root.manager.loggerDict.items() if isinstance(logger, logging.Logger)}
    levels = {name: logger.level for name, logger in named.items()}
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        libraries = ("lightning.pytorch", "lightning.fabric", "alembic", "mlflow", "huggingface_hub")
        for name in ("fvl_lightning", "datamodules", *libraries):
            logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


@contextlib.contextmanager
def _plugins_forgotten() -> Iterator[None]:
    """Removes the components that a command's `plugins:` have registered."""
    from fvl_lightning.core import registry

    for slot in registry.SLOT_PACKAGES:
        registry.names(slot)
    before = {slot: dict(components) for slot, components in registry._components.items()}
    modules = set(sys.modules)
    try:
        yield
    finally:
        for slot, components in before.items():
            registry._components[slot] = components
        for name in set(sys.modules) - modules:
            if name.startswith("fvl_plugin_"):
                del sys.modules[name]


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """Makes a working folder with the run `runs/tiny` of a gated fusion, and `model`, its model without the run."""
    folder = furnish(tmp_path_factory.mktemp("asked"), tiny_data)
    words = ("train", "experiments/demo/finetune.yaml", *TINY, "fusion=gated", "name=tiny")
    done = fvl_here(folder, *words)
    assert done.returncode == 0, done.stderr
    (folder / "model").symlink_to("runs/tiny/model")
    return folder
