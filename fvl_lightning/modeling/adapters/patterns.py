"""Tries regular expressions of strangers in a process of its own, since some take longer than the universe has time."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence

from fvl_lightning.core.errors import DataError

SECONDS = 5
"""CPU time for all names of a model; an expression that names layers takes a hundredth of a second."""
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.|\\^$-")
"""The characters of expressions without a repetition, which take no time."""
PROGRAM = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name)
        re.match(rf"(.*\\.)?({{pattern}})$", name)
"""


def check_patterns(patterns: Iterable[object], names: Sequence[str], where: str) -> None:
    """Checks that expressions can be matched with the names of modules in a short time.

    Args:
        patterns: expressions; anything that is no text, or has no repetition, is passed over.
        names: the names of all modules.
        where: the beginning of the message.

    Raises:
        DataError: one of them is no regular expression, or takes more than SECONDS.
    """
    doubtful = [pattern for pattern in patterns if isinstance(pattern, str) and not PLAIN.issuperset(pattern)]
    if not doubtful:
        return
    tried = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM],
        input=json.dumps([doubtful, list(names)]), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode < 0:
        raise DataError(f"{where}: its expressions for names of layers take more than {SECONDS} seconds of CPU time")
    if tried.returncode:
        reason = tried.stderr.strip().rpartition("\n")[2]
        raise DataError(f"{where}: its expressions for names of layers cannot be used: {reason}")
