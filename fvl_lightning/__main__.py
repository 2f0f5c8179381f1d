"""`python -m fvl_lightning` is `fvl`. Its signals are handled from here on, before it imports what takes long."""

import sys

NOTHING_BEGUN = "stopped; nothing had begun\n"

try:
    from fvl_lightning.training.fault_tolerance.signals import SUPPORTED, handle_for_command
except KeyboardInterrupt:
    sys.stderr.write(NOTHING_BEGUN)
    sys.exit(130)


def main() -> None:
    """Runs the command line."""
    try:
        if SUPPORTED:
            handle_for_command(sys.argv[1:])
        from fvl_lightning.cli.main import main as run_command
    except KeyboardInterrupt:
        sys.stderr.write(NOTHING_BEGUN)
        sys.exit(130)
    run_command()


if __name__ == "__main__":
    main()
