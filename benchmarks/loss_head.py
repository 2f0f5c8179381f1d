"""The loss head with gradients in the forward pass, beside one that computes its logits again in the backward pass.

    python benchmarks/loss_head.py [--rounds 5] [--vocabulary 128256] [--rows 2048] [--width 256]

The second way was the kit's until gradients moved into the forward pass; it is written out below. A quarter of the rows
is supervised. Both ways take turns, each time in a process of its own with one thread. The time is the CPU time of a
forward and a backward pass, the fastest of three after one for warming up; of each pair of processes the ratio is
taken, and of all pairs the median. The memory is the largest that the process held above what it held before the first
pass. Loss and gradients are compared. Prints a table and saves benchmarks/results/loss_head.json; takes five minutes.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from recording import record
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.loss import MAX_LOGIT_ELEMENTS, token_loss

Way = Callable[[Tensor, Tensor, nn.Linear], Tensor]
PASSES = 4


def recomputed(hidden: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    """Returns the sum of the losses; each chunk of logits is computed again in the backward pass."""

    def chunk_loss(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores = head(rows).float()
        correct = (scores.detach().argmax(-1) == targets).sum()
        return cross_entropy(scores, targets, reduction="sum"), correct

    supervised = labels != IGNORE_INDEX
    size = MAX_LOGIT_ELEMENTS // head.out_features
    chunks = zip(hidden[supervised].split(size), labels[supervised].split(size), strict=True)
    parts = [checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack([loss for loss, _ in parts]).sum()


def in_forward(hidden: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    """Returns the sum of the losses, whose gradients the forward pass has computed."""
    return token_loss(hidden, labels, head, head.out_features).sum


WAYS: dict[str, Way] = {"recomputed": recomputed, "in the forward pass": in_forward}


def main() -> None:
    """Measures both ways, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.way:
        sys.stdout.write(json.dumps(measure(WAYS[settings.way], settings)))
        return
    sizes = {"vocabulary": settings.vocabulary, "rows": settings.rows, "width": settings.width}
    rounds = [{way: in_a_process(way, sizes) for way in WAYS} for _ in range(settings.rounds)]
    result = {**sizes, "supervised": settings.rows // 4, "threads": 1, **compare(rounds)}
    record("loss_head", result)
    show(result)


def in_a_process(way: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Returns what `measure` finds in a new process."""
    words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    command = [sys.executable, __file__, "--way", way, *words]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(way: Way, sizes: argparse.Namespace) -> dict[str, Any]:
    """Returns the CPU seconds of each pass but the first, the peak of memory, the loss, and sums of the gradients."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
    hidden = torch.randn(1, sizes.rows, sizes.width, requires_grad=True)
    labels = torch.randint(0, sizes.vocabulary, (1, sizes.rows))
    labels[:, torch.arange(sizes.rows) % 4 != 0] = IGNORE_INDEX
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(PASSES):
        head.weight.grad = hidden.grad = None
        start = time.process_time()
        loss = way(hidden, labels, head)
        loss.backward()
        seconds.append(time.process_time() - start)
    assert head.weight.grad is not None
    assert hidden.grad is not None
    return {
        "seconds": seconds[1:],
        "peak_bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        "loss": loss.item(),
        "gradients": [float(gradient.double().norm()) for gradient in (hidden.grad, head.weight.grad)],
    }


def compare(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Returns the seconds and the memory of each way, and the ratios of the second to the first."""
    old, new = WAYS
    fastest = [{way: min(found["seconds"]) for way, found in one.items()} for one in rounds]
    peaks = {way: max(one[way]["peak_bytes"] for one in rounds) for way in WAYS}
    values = [[one[way]["loss"], *one[way]["gradients"]] for one in rounds for way in WAYS]
    return {
        "seconds": {way: statistics.median(one[way] for one in fastest) for way in WAYS},
        "peak_bytes": peaks,
        "ratio_of_seconds": statistics.median(one[new] / one[old] for one in fastest),
        "ratios_of_seconds": [one[new] / one[old] for one in fastest],
        "ratio_of_memory": peaks[new] / max(1, peaks[old]),  # 0 if the parent process was larger
        "largest_relative_difference": max(
            abs(found / wanted - 1) for line in values for found, wanted in zip(line, values[0], strict=True)
        ),
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    table = Table("loss head", "CPU s", "memory, MB")
    for way in WAYS:
        table.add_row(way, f"{result['seconds'][way]:.2f}", f"{result['peak_bytes'][way] / 1e6:,.0f}")
    table.add_row("ratio", f"{result['ratio_of_seconds']:.2f}", f"{result['ratio_of_memory']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
