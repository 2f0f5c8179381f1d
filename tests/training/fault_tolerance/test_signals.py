"""Signals as requests, and what they are where there is no step to finish."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE
from fvl_lightning.training.fault_tolerance import signals as module
from fvl_lightning.training.fault_tolerance.signals import (
    INTERRUPTED,
    NOT_BEGUN,
    Preempted,
    Stop,
    StopSignals,
    ended_at_once,
    handle_for_command,
    preemptible,
)

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _handlers_are_given_back() -> Any:
    before = {number: signal.getsignal(number) for number in ALL}
    yield
    assert {number: signal.getsignal(number) for number in ALL} == before


@pytest.mark.parametrize(
    ("sent", "requested"),
    [
        ([], Stop.NOBODY),
        ([signal.SIGINT], Stop.PERSON),
        ([signal.SIGTERM], Stop.CLUSTER),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], Stop.CLUSTER),
        ([signal.SIGTERM, signal.SIGINT], Stop.PERSON),
        ([signal.SIGINT, signal.SIGTERM], Stop.PERSON),
    ],
)
def test_requests(sent: list[signal.Signals], requested: Stop) -> None:
    with StopSignals() as signals:
        for number in sent:
            signal.raise_signal(number)
        assert signals.requested is requested


def test_a_second_ctrl_c_is_answered_at_once() -> None:
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_that_another_has_set_meanwhile_are_taken_back() -> None:
    with StopSignals() as signals:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signals.listen()
        signal.raise_signal(signal.SIGTERM)
        assert signals.requested is Stop.CLUSTER


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_outside_of_steps_a_request_is_answered_at_once(number: signal.Signals) -> None:
    with pytest.raises(Preempted), preemptible():
        signal.raise_signal(number)


@pytest.mark.parametrize("other", list(Stop))
def test_ranks_agree_on_the_larger_request(other: Stop) -> None:
    class TwoRanks:
        root_device = torch.device("cpu")

        def reduce(self, mine: torch.Tensor, reduce_op: str) -> torch.Tensor:
            return {"max": torch.maximum}[reduce_op](mine, torch.tensor(int(other)))

    signals = StopSignals()
    signals.requested = Stop.CLUSTER
    trainer: Any = SimpleNamespace(world_size=2, strategy=TwoRanks())
    assert signals.agreed(trainer) is max(Stop.CLUSTER, other)


def test_who_asked_is_raised() -> None:
    Stop.NOBODY.raise_for()
    with pytest.raises(KeyboardInterrupt):
        Stop.PERSON.raise_for()
    with pytest.raises(Preempted):
        Stop.CLUSTER.raise_for()


IN_C = """
mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
for _ in range(2):  # the second time for ever
    libc.pthread_mutex_lock(mutex)
"""
"""Where no handler of Python's is called, as in a wait for other ranks."""


def ended(*code: str, rank: int | None = None) -> tuple[int, str]:
    """Exit code and words of a process that is sent SIGTERM and SIGUSR1 from a thread of its own."""
    lines = (
        "import ctypes, os, signal, sys, threading, time",
        "from fvl_lightning.training.fault_tolerance.signals import *",
        "asks = lambda: [os.kill(os.getpid(), number) for number in (signal.SIGUSR1, signal.SIGTERM)]",
        *code,
    )
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    environment |= {} if rank is None else {"RANK": str(rank)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(("rank", "said"), [(None, f"{NOT_BEGUN}\n"), (0, f"{NOT_BEGUN}\n"), (1, "")])
def test_before_anything_began_the_process_ends_wherever_it_is(rank: int | None, said: str) -> None:
    assert ended("end_at_once()", "threading.Timer(0.2, asks).start()", IN_C, rank=rank) == (EXIT_REQUEUE, said)


def test_nothing_that_happens_meanwhile_is_told() -> None:
    assert ended("end_at_once()", "asks()", "raise RuntimeError('the others are gone')", rank=0) == (
        EXIT_REQUEUE, f"{NOT_BEGUN}\n",
    )  # fmt: skip


def test_a_signal_that_came_before_is_not_missed() -> None:
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, CLUSTER)"
    assert ended(block, "asks()", "end_at_once()", IN_C) == (EXIT_REQUEUE, f"{NOT_BEGUN}\n")


def interrupted(folder: Path, module: str, *before: str) -> tuple[int, str]:
    """Exit code and output of a process in which `module` is imported from a folder where it raises SIGINT."""
    (folder / "slow.py").write_text(module, encoding="utf-8")
    code = (f"import sys; sys.path.insert(0, {str(folder)!r})", *before, "import slow")
    return ended(*code)


SWALLOWS = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except BaseException:
    pass
"""
"""A module that takes Ctrl-C for a reason to do without something."""


@pytest.mark.parametrize("preemptible", ["True", "False"])
def test_ctrl_c_in_an_import_ends_the_process_with_one_sentence(preemptible: str, tmp_path: Path) -> None:
    done = interrupted(tmp_path, SWALLOWS, f"handle_from_start({preemptible})")
    assert done == (EXIT_INTERRUPTED, f"{INTERRUPTED}\n")


def test_a_ctrl_c_that_came_while_the_starter_blocked_it_ends_the_process_with_one_sentence() -> None:
    """As of a launcher of ranks, which blocks signals until all ranks are started."""
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); os.kill(os.getpid(), signal.SIGINT)"
    assert ended(blocked, "handle_from_start(True)", "time.sleep(60)") == (EXIT_INTERRUPTED, f"{INTERRUPTED}\n")


def test_ctrl_c_outside_of_imports_is_an_exception() -> None:
    program = "try: asks_person(1)\nexcept KeyboardInterrupt: os._exit(3)"
    assert ended("handle_from_start(True)", ASKS_PERSON, program) == (3, "")


@pytest.mark.parametrize(
    ("number", "raised"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "Preempted")]
)
def test_a_signal_that_a_destructor_swallows_comes_again(number: str, raised: str) -> None:
    """As of a generator of batches that nobody closes; Python would print its error and go on."""
    program = f"""
class Closing:
    def __del__(self):
        os.kill(os.getpid(), signal.{number}); time.sleep(0.1)

handle_from_start(True)
with preemptible():
    try: Closing(); time.sleep(60)
    except {raised}: os._exit(3)
"""
    assert ended(program) == (3, "")


def test_other_errors_of_destructors_are_shown() -> None:
    code, said = ended("handle_from_start(True)", "class Closing:\n    def __del__(self): 1 / 0", "Closing()")
    assert code == 0
    assert "ZeroDivisionError" in said


ASKS_PERSON = "def asks_person(times): [(os.kill(os.getpid(), signal.SIGINT), time.sleep(0.1)) for _ in range(times)]"


@pytest.mark.parametrize(("times", "limit"), [(2, "2"), (3, "3")])
def test_further_ctrl_c_end_a_process_wherever_it_is(times: int, limit: str) -> None:
    """In C code that waits for ever, where no handler of Python's is called."""
    code = ended(
        "from fvl_lightning.training.fault_tolerance.process_exit import SECONDS_LEFT",
        f"SECONDS_LEFT.update({{2: 3600.0, 3: 3600.0}}); SECONDS_LEFT[{limit}] = 0.1",
        ASKS_PERSON,
        "handle_from_start(True)",
        f"threading.Timer(0.2, asks_person, [{times}]).start()",
        IN_C,
    )
    assert code == (EXIT_INTERRUPTED, "")


def test_an_exit_that_hangs_has_a_limit() -> None:
    """As of a thread of a library that nobody ends."""
    code = ended(
        "from fvl_lightning.training.fault_tolerance import process_exit",
        "process_exit.EXIT_SECONDS = 0.2",
        "threading.Thread(target=time.sleep, args=(600,)).start()",
        "process_exit.begin_exit(2)",
        "sys.exit(2)",
    )
    assert code == (2, "")


def test_a_ctrl_c_while_the_exit_begins_prints_nothing() -> None:
    """It comes while the timer of the exit starts."""
    code = ended(
        "from fvl_lightning.training.fault_tolerance import process_exit",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "process_exit.exit_within = lambda *_: os.kill(os.getpid(), signal.SIGINT)",
        "process_exit.begin_exit(75)",
        "sys.exit(75)",
    )
    assert code == (75, "")


def test_handlers_that_come_later_take_over_and_the_end_is_left_alone() -> None:
    code = """
end_at_once()
try:
    with preemptible():
        asks()
except Preempted:
    asks()
    time.sleep(0.2)
    os._exit(3)
"""
    assert ended(code) == (3, "")


def test_a_wait_for_others_gives_the_handlers_back() -> None:
    with preemptible():
        before = signal.getsignal(signal.SIGTERM)
        with ended_at_once():
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_terminal_that_goes_is_a_request_but_not_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.requested is Stop.NOBODY
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.requested is Stop.CLUSTER
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_has_gone_is_not_written_to() -> None:
    """Its other end closed, every write to it fails; what has to be said then must not keep the run from saving."""
    ours, theirs = pty.openpty()
    reading, writing = os.pipe()
    program = (
        "import os, signal, sys\nfrom fvl_lightning.training.fault_tolerance.signals import Preempted, _preempt\n"
        f"signal.signal(signal.SIGHUP, signal.SIG_IGN)\nos.read({reading}, 1)\n"
        "try: _preempt(signal.SIGHUP, None)\nexcept Preempted: print('x' * 9999, flush=True); sys.exit(75)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, pass_fds=[reading],
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    os.write(writing, b"x")
    assert process.wait(60) == 75
    os.close(reading)
    os.close(writing)


@pytest.mark.slow
def test_where_there_are_no_such_signals() -> None:
    """As on Windows: the package can be imported, and the command line is one sentence."""
    program = (
        "import importlib, os, signal, sys\nsys.modules['fcntl'] = None\n"
        "del signal.SIGUSR1, signal.SIGHUP, os.EX_TEMPFAIL\n"
        "import fvl_lightning\nfrom fvl_lightning.modeling.build import load_model\n"
        "from fvl_lightning.core import errors\nfrom datamodules.storage import open_files\n"
        "sys.modules['resource'] = None  # not earlier: libraries go by the platform's name\n"
        "importlib.reload(errors)\nimportlib.reload(open_files)\n"
        "print('imported', flush=True)\nfrom fvl_lightning.cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "imported\n")
    said = "error: fvl runs on Linux and macOS only; on Windows it runs in WSL, its Linux"
    assert done.stderr.splitlines()[-1] == said
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "preempted"),
    [("train a.yaml", True), ("compare a.yaml jobs=2", True), ("compare a.yaml --plan", False), ("evaluate a", False)],
)
def test_a_cluster_stops_what_can_be_resumed(monkeypatch: pytest.MonkeyPatch, words: str, preempted: bool) -> None:
    found: list[bool] = []
    monkeypatch.setattr(module, "handle_from_start", lambda preemptible, limited: found.append(preemptible))
    handle_for_command(words.split())
    assert found == [preempted]
