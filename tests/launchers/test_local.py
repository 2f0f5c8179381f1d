"""Cells on this machine: which GPUs, cores and ranks each has, with pretended GPUs and commands of bash."""

import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.core.errors import EXIT_INTERRUPTED, ConfigError
from fvl_lightning.launchers.gpus import GpuPool, visible_gpus
from fvl_lightning.launchers.local import LocalLauncher
from fvl_lightning.launchers.resources import ResourcesConfig

TAKES = """
echo "$RANK/$WORLD_SIZE $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS" > rank$RANK
if [ "${RANK:-0}" = 0 ]; then
    for gpu in ${CUDA_VISIBLE_DEVICES//,/ }; do mkdir ../lock-$gpu || touch ../clash; done
    touch ../begun-$(basename $PWD)
    while [ $(ls -d ../begun-* | wc -l) -lt AT_A_TIME ]; do sleep 0.02; done
    for gpu in ${CUDA_VISIBLE_DEVICES//,/ }; do rmdir ../lock-$gpu; done
fi
"""
"""Notes what a rank has been given, and claims its GPUs until so many cells have begun."""


@dataclass
class Shell(Cell):
    """A cell whose ranks are a script of bash in its folder."""

    script: str = ""

    @property
    def command(self) -> list[str]:
        return ["bash", "-c", f"cd {self.folder} && {{ {self.script}\n}}"]


def cells(folder: Path, count: int, script: str, accelerator: str = "auto", **resources: Any) -> list[Shell]:
    stages = [{"name": "finetune", "trainer": {"max_steps": 20, "accelerator": accelerator}}]
    specs = [CellSpec(stages=stages, resources=ResourcesConfig(**resources)) for _ in range(count)]
    return [Shell("gated", seed, folder / str(seed), spec, script=script) for seed, spec in enumerate(specs)]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight, of which there are none."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("fvl_lightning.launchers.local.POLL_SECONDS", 0.05)


def given(cell: Cell) -> list[str]:
    return [file.read_text(encoding="utf-8").strip() for file in sorted(cell.folder.glob("rank*"))]


def test_four_cells_at_a_time_have_two_of_eight_gpus_each(
    tmp_path: Path, gpus: None, caplog: pytest.LogCaptureFixture
) -> None:
    six = cells(tmp_path, 6, TAKES.replace("AT_A_TIME", "4"), devices=2, threads=3)
    with caplog.at_level("INFO"):
        LocalLauncher(6).run(six, lambda: None)
    assert [cell.code for cell in six] == [0] * 6
    assert not (tmp_path / "clash").exists(), "two cells had one GPU at the same time"
    first = [given(cell) for cell in six[:4]]
    for number, ranks in enumerate(first):
        assert ranks == [f"{rank}/2 {2 * number},{2 * number + 1} 3" for rank in range(2)]
    assert "4 cells at a time, not 6: there are 8 GPUs" in caplog.messages


def test_the_gpus_that_the_user_has_chosen_are_handed_out_by_their_names(
    tmp_path: Path, gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a, GPU-2b,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    three = cells(tmp_path, 3, TAKES.replace("AT_A_TIME", "3"))
    LocalLauncher(8).run(three, lambda: None)
    assert [given(cell) for cell in three] == [["/ GPU-1a 1"], ["/ GPU-2b 1"], ["/ 7 1"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert visible_gpus() == []


def test_on_a_cpu_cells_wait_for_no_gpu(tmp_path: Path, gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    three = cells(tmp_path, 3, TAKES.replace("AT_A_TIME", "3"), accelerator="cpu", devices=9)
    pool = GpuPool(visible_gpus())
    assert [pool.take(cell) for cell in three] == [{}, {}, {}]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    nowhere = GpuPool(visible_gpus())
    assert [nowhere.take(cell) for cell in cells(tmp_path, 3, "", devices=9)] == [{}, {}, {}]


def test_more_gpus_than_there_are_is_one_sentence_before_the_start(tmp_path: Path, gpus: None) -> None:
    one = cells(tmp_path, 1, "", devices=9)
    with pytest.raises(ConfigError, match="every cell needs 9 GPUs, and this machine has 8 "):
        LocalLauncher(1).run(one, lambda: None)
    assert not one[0].folder.exists()


LISTENS = """
import os, pathlib, signal, sys, time
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
signal.signal(signal.SIGINT, lambda *_: ((folder / f"heard{rank}").touch(), sys.exit(130)))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
(folder / f"pid{rank}.new").write_text(str(os.getpid()))
(folder / f"pid{rank}.new").rename(folder / f"pid{rank}")
time.sleep(60)
"""


def test_ctrl_c_reaches_every_rank_of_a_cell_and_none_is_left(tmp_path: Path, gpus: None) -> None:
    class Listening(Cell):
        @property
        def command(self) -> list[str]:
            return [sys.executable, "-c", LISTENS, str(self.folder)]

    (shell,) = cells(tmp_path, 1, "", devices=2)
    one = Listening(shell.arm, shell.seed, shell.folder, shell.spec)

    def stop() -> None:
        while not all((one.folder / f"pid{rank}").exists() for rank in range(2)):
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        LocalLauncher(1).run([one], lambda: None)
    assert one.code == EXIT_INTERRUPTED
    for rank in range(2):
        assert (one.folder / f"heard{rank}").exists()
        assert not Path(f"/proc/{(one.folder / f'pid{rank}').read_text(encoding='utf-8')}").exists()
