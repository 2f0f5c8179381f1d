"""Exit codes, and errors that the user can fix: one sentence each, shown without a traceback, exit code 2."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

EXIT_PEER_FAILED = 1
"""A rank ended because another rank failed, whose exit code has the cause."""
EXIT_USAGE_ERROR = 2
"""The user can fix the error."""
EXIT_REQUEUE = 75
"""Run the same command again: after SIGTERM, SIGUSR1 or SIGHUP, and where ranks died or hang.

The value is EX_TEMPFAIL of sysexits.h.
"""
EXIT_INTERRUPTED = 130
"""Ctrl-C: 128 + SIGINT, as in shells."""
PATH_AND_DISK_ERRORS = (
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ELOOP, errno.EFBIG,
    errno.EIO,
)  # fmt: skip
"""System errors caused by a path or a disk; any other may be a bug."""


FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Those of a disk without space, of a user without quota, and of a file larger than is allowed."""


class UserError(Exception):
    """An error the user can fix; the message is one sentence: what is wrong, where, and what is allowed."""


class ConfigError(UserError):
    """A mistake in a YAML file, on the command line, or in the combination of components."""


class DataError(UserError):
    """Training data, an image, a run folder or a store is missing, broken or does not match."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class name where the message is empty."""
    return " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__


def is_lack_of_files(error: OSError) -> bool:
    """Returns whether the process or the machine has reached its limit of open files."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def is_of_the_machine(error: OSError) -> bool:
    """Returns whether a path or the machine is the cause rather than the code: no permission, no space, a long name."""
    return is_lack_of_files(error) or error.errno in PATH_AND_DISK_ERRORS


def disk_error(error: BaseException) -> OSError | None:
    """Returns the system's error behind one that a library raises, if a path or the machine is its cause.

    Returns:
        The error itself where it is the system's; None where it may be a bug.
    """
    if isinstance(error, OSError):
        return error if is_of_the_machine(error) else None
    if isinstance(error, UserError):
        return None
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # as Rust writes it, in safetensors and tokenizers
        code = int(number[1])
        return disk_error(OSError(code, os.strerror(code)))
    if "database or disk is full" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # torch ends a file that it could not write with an error of its own.
    return disk_error(error.__context__) if isinstance(error, RuntimeError) and error.__context__ else None


def full_disk(error: BaseException, folder: Path) -> str | None:
    """Returns the system's message and the free bytes in `folder`, if a full disk is the cause; None for any other."""
    cause = disk_error(error)
    if cause is None or cause.errno not in FULL_DISK_ERRORS:
        return None
    try:
        return f"{os_error_in_words(cause)}; {shutil.disk_usage(folder).free:,} bytes free in {folder}"
    except OSError:
        return os_error_in_words(cause)


def os_error_in_words(error: OSError) -> str:
    """Returns the system's message; for too many open files also the limit and how to raise it."""
    message = error.strerror or first_line(error)
    if not is_lack_of_files(error):
        return message
    import resource  # Windows does not have this module, but can import the package

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"{message} (a process may have {limit} of them here; `ulimit -n 4096` allows more)"


def nearest(value: str, allowed: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Returns the allowed name closest to `value`, or None where none is as similar as `cutoff`, from 0 to 1."""
    matches = get_close_matches(value, list(allowed), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def unknown_name(
    what: str, value: object, allowed: Iterable[str], where: str, meant: str | None = None, advice: str = ""
) -> ConfigError:
    """Returns the error for a name that is not one of `allowed`, with the name that was probably meant.

    Args:
        what: the kind of name, such as "fusion" or "key".
        value: the wrong name.
        allowed: the names to choose from.
        where: the place of the mistake, such as "fusion in experiments/demo/finetune.yaml".
        meant: the name that was probably meant; None for the closest of `allowed`.
        advice: the end of the sentence, in place of that name.
    """
    names = sorted(allowed)
    close = meant or nearest(str(value), names)
    hint = f"; did you mean '{close}'?" if close else ""
    end = f"; {advice}" if advice else hint
    return ConfigError(f"{where}: unknown {what} '{value}', allowed: {', '.join(names) or 'none'}{end}")


def refuse_unknown_fields(given: Mapping[str, Any], config_class: Any, where: str) -> None:
    """Raises ConfigError for mistakes that a transformers configuration class accepts silently.

    These are a key that is not one of its fields, and another class's model type.
    """
    older_names = {"rope_theta", "rope_scaling", "torch_dtype"}
    known = {*config_class().to_dict(), *config_class.attribute_map, *older_names}
    for key in given:
        if key not in known:
            raise unknown_name("key", key, known, f"{where}.{key}")
    model_type = given.get("model_type", config_class.model_type)
    if model_type != config_class.model_type:
        raise ConfigError(f"{where}.model_type: expected '{config_class.model_type}', found {model_type!r}")
