"""Cells as tasks of Ray: with a stand-in for it, and, slow, with Ray itself where it is installed.

The latter by hand: pip install -c constraints.txt ray, then python -m pytest tests/launchers/test_ray.py
"""

import importlib.util
import json
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.launchers.ray import RayConfig, RayLauncher, ray_resources
from fvl_lightning.launchers.resources import ResourcesConfig
from tests.comparison.test_cell import FAILS, cell
from tests.conftest import Run
from tests.integration.test_comparison import COMPARISON, lasting, report_of, workplace

ray_needed = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='pip install "fvl-lightning[ray]"')
STOPS = (
    "import signal; signal.signal(signal.SIGTERM, lambda *_: ((folder / 'saved').touch(), sys.exit(75))); "
    "(folder / 'here').touch(); time.sleep(60)"
)


class StandIn:
    """As much of Ray as the launcher uses, with threads for workers."""

    def __init__(self) -> None:
        self.began: dict[str, Any] = {}
        self.resources: dict[str, Any] = {}
        self.most = self.ended = 0
        self.gpus = 0.0
        self.exceptions = SimpleNamespace(TaskCancelledError=InterruptedError, RayError=OSError)
        self._pool = ThreadPoolExecutor(4)

    def init(self, **options: Any) -> None:
        if options["address"] == "10.0.0.1:6379":
            raise ConnectionError("nobody answers there\nand much more")
        self.began = options
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0, "GPU": self.gpus}

    def remote(self, **resources: Any) -> Any:
        self.resources = resources
        return lambda run: SimpleNamespace(remote=lambda *told: self._pool.submit(run, *told))

    def wait(self, references: list[Future[int]], timeout: float) -> tuple[list[Future[int]], list[Future[int]]]:
        self.most = max(self.most, len(references))
        done, rest = wait(references, timeout, "FIRST_COMPLETED")
        return list(done), list(rest)

    def get(self, reference: Future[int]) -> int:
        return reference.result()

    def shutdown(self) -> None:
        self.ended += 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "ray", stand_in)  # type: ignore[arg-type]
    return stand_in


def test_every_cell_is_a_task_and_so_many_at_a_time(tmp_path: Path, ray: StandIn) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cells = [cell(tmp_path, seed=0), cell(tmp_path, seed=1, script=FAILS), cell(tmp_path, seed=2)]
    RayLauncher(2, RayConfig()).run(cells, lambda: None)
    assert [one.code for one in cells] == [0, 1, 0]
    assert [one.finished for one in cells] == [True, False, True]
    cells[1].record_failure()
    assert cells[1].failure == "no space left"
    assert (ray.most, ray.ended) == (2, 1)
    assert ray.resources == {"num_cpus": 1, "num_gpus": 0.0, "max_retries": 0}
    assert (ray.began["address"], ray.began["include_dashboard"]) == ("local", False)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_cell_of_several_devices_has_a_gpu_for_each_on_one_machine(tmp_path: Path, ray: StandIn) -> None:
    """Ray runs a task on one machine; `ray.num_gpus` is for cells of one device."""
    trainer = {"max_steps": 20, "accelerator": "auto"}
    resources = ResourcesConfig(devices=2, threads=3, memory_gb=5)
    one = cell(tmp_path, stages=[{"name": "finetune", "trainer": trainer}], resources=resources)
    assert ray_resources([one], RayConfig(), 0.0) == {"num_cpus": 6, "num_gpus": 0.0, "memory": 5e9}
    ray.gpus = 8.0
    RayLauncher(1, RayConfig()).run([one], lambda: None)
    assert one.code == 0
    assert ray.resources == {"num_cpus": 6, "num_gpus": 2.0, "memory": 5e9, "max_retries": 0}
    with pytest.raises(ConfigError, match=r"resources\.devices: 2 for every cell, and the cluster has 1$"):
        ray_resources([one], RayConfig(), 1.0)
    with pytest.raises(ConfigError, match=r"ray\.num_gpus: 1 for every cell, and resources\.devices gives it 2; leave"):
        ray_resources([one], RayConfig(num_gpus=1), 8.0)


def test_a_task_that_is_lost_leaves_its_cell_to_be_resumed(
    tmp_path: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(reference: Any) -> int:
        raise OSError("a traceback\nthe worker died")

    monkeypatch.setattr(ray, "get", lost)
    cells = [cell(tmp_path)]
    RayLauncher(1, RayConfig()).run(cells, lambda: None)
    assert cells[0].code is None
    assert cells[0].failure is None
    assert "Ray lost gated with seed 0 (the worker died); the next start resumes it" in caplog.text


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (RayConfig(address="10.0.0.1:6379"), r"ray.address: .* '10.0.0.1:6379' \(nobody answers there\)$"),
        (RayConfig(num_gpus=1), "ray.num_gpus: 1 for every cell, and the cluster has 0$"),
    ],
)
def test_what_the_cluster_cannot_do_is_one_sentence(
    config: RayConfig, sentence: str, tmp_path: Path, ray: StandIn
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RayLauncher(1, config).run([cell(tmp_path)], lambda: None)


def test_without_ray_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ray needs its package, pip install \"fvl-lightning\[ray\]\", or use"):
        RayLauncher(1, RayConfig()).run([cell(tmp_path)], lambda: None)


# Ray itself.


@ray_needed
@pytest.mark.slow
def test_a_stop_reaches_the_cells_that_run(tmp_path: Path) -> None:
    """Those that run save and end, one that waits for a core is not begun, and Ray is gone afterwards."""
    import ray

    cells = [cell(tmp_path, seed=seed, script=f"exec({STOPS!r})") for seed in range(2)]

    def stop() -> None:
        while not (cells[0].folder / "here").exists():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        RayLauncher(1, RayConfig()).run(cells, lambda: None)
    assert [one.code for one in cells] == [75, None]
    assert (cells[0].folder / "saved").exists()
    assert not cells[1].folder.exists()
    assert not ray.is_initialized()


@ray_needed
@pytest.mark.slow
def test_local_and_ray_give_the_same_report(tmp_path: Path, tiny_data: Path, empty_store: Path, fvl: Run) -> None:
    reports = {}
    for launcher in ("local", "ray"):
        (tmp_path / launcher).mkdir()
        arms = {arm: COMPARISON["arms"][arm] for arm in ("concat", "gated")}
        work = workplace(tmp_path / launcher, tiny_data, empty_store, arms=arms, seeds=[0])
        done = fvl(work, "compare", "tiny.yaml", f"launcher={launcher}", "jobs=2", timeout=900)
        assert done.returncode == 0, done.stderr
        assert list((work / "runs" / "tiny").glob("*/cell.log"))
        reports[launcher] = lasting(report_of(work))
    assert json.dumps(reports["ray"]) == json.dumps(reports["local"])
