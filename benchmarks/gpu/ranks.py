"""Trainings on several devices: DDP, FSDP and HSDP over NCCL have the losses of one device.

The ranks are started as `fvl train` and `fvl launch` start them. For HSDP the devices of this machine stand for two.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from typing import Any

import torch

from benchmarks.gpu.runner import Findings, Settings
from benchmarks.gpu.smoke import COMMON, DEMO
from fvl_lightning.runs.folder import RunFolder

ROWS = 8
"""Samples of a step, whatever the number of devices."""
TOLERANCE = 1e-3
LAST_LINES = 3


def findings(settings: Settings) -> Findings:
    """Yields losses of each strategy, and their difference from those of one device; an error where it is large."""
    devices = 2 if settings.tiny else torch.cuda.device_count()
    while ROWS % devices:
        devices -= 1
    with tempfile.TemporaryDirectory() as name, chdir(name):  # where the demo's images are made
        alone = None
        for case, commands in _cases(settings, devices):
            started = time.perf_counter()
            problem = _run(commands)
            found: dict[str, Any] = {"case": case, "seconds": round(time.perf_counter() - started, 1)}
            if problem is not None:
                yield found | {"error": problem}
                continue
            found["losses"] = losses = [loss for _, loss in RunFolder.open(f"runs/{_folder(case)}").curve("train/loss")]
            alone = alone or losses
            found["difference"] = max(abs(one - two) / abs(two) for one, two in zip(losses, alone, strict=True))
            yield found | ({"error": "other losses"} if found["difference"] > TOLERANCE else {})


def _cases(settings: Settings, devices: int) -> Iterator[tuple[str, list[tuple[list[str], Mapping[str, str]]]]]:
    """Yields the name of a case, and its commands with their additions to the environment."""

    def command(verb: str, case: str, rows: int, *words: str) -> list[str]:
        common = (*COMMON, f"trainer.accelerator={settings.device}", f"trainer.batch_size={rows}", "feature_cache=null")
        run = (*common, f"name={_folder(case)}", "output=runs", *words)
        return [sys.executable, "-m", "fvl_lightning", verb, str(DEMO / "finetune.yaml"), *run]

    yield "one device", [(command("train", "one device", ROWS), {})]
    if devices < 2:
        return
    for strategy in ("ddp", "fsdp"):
        words = f"trainer.strategy={strategy}", f"trainer.devices={devices}"
        yield f"{strategy} on {devices}", [(command("train", f"{strategy} on {devices}", ROWS // devices, *words), {})]
    half, case = devices // 2, f"hsdp, two groups of {devices // 2}"
    place = f"127.0.0.1:{_free_port()}"
    options = ("--nodes", "2", "--gpus-per-node", str(half), "--rendezvous", place, "--node-rank")
    words = command("launch", case, ROWS // (2 * half), "trainer.strategy=hsdp")
    visible = [",".join(map(str, range(half * node, half * (node + 1)))) for node in range(2)]
    yield case, [([*words, *options, str(node)], {"CUDA_VISIBLE_DEVICES": visible[node]}) for node in range(2)]


def _run(commands: Sequence[tuple[list[str], Mapping[str, str]]]) -> str | None:
    """Runs commands side by side; returns the last lines of one that fails."""
    started = [
        subprocess.Popen(words, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for words, more in commands
    ]
    outputs = [process.communicate()[0] for process in started]
    sys.stdout.write("".join(outputs))
    failed = [output for process, output in zip(started, outputs, strict=True) if process.returncode]
    return " | ".join(failed[0].strip().splitlines()[-LAST_LINES:]) if failed else None


def _folder(case: str) -> str:
    return case.replace(" ", "-").replace(",", "")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
