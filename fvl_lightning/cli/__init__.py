"""Layer 4: the verbs of the command line, one file each. They need Linux or macOS, and say so elsewhere."""

import signal
import sys

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

if fcntl is None or not hasattr(signal, "SIGUSR1"):
    # Before any other import: what they import would end with an error of its own.
    sys.stderr.write("error: fvl runs on Linux and macOS only; on Windows it runs in WSL, its Linux\n")
    raise SystemExit(2)
