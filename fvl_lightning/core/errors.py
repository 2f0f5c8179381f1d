"""Errors that are the user's to mend: one sentence each, shown without a traceback, exit code 2."""

import errno
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

EXIT_PEER_FAILED = 1
"""The exit code of a rank that ends because another one failed; the other's exit code says why."""
EXIT_USAGE_ERROR = 2
"""The exit code for what the user can mend."""
EXIT_REQUEUE = 75
"""The exit code that asks for the same command again: after SIGTERM, SIGUSR1 or SIGHUP, and where ranks died or hang.

It is EX_TEMPFAIL of sysexits.h.
"""
EXIT_INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as shells count."""
OF_THE_MACHINE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ELOOP)
"""Errors of the system that say something of a path or a disk; any other may be a mistake in the code."""


class UserError(Exception):
    """Something the user can mend; the message is one sentence saying what is wrong, where, and what would be right."""


class ConfigError(UserError):
    """A mistake in a YAML file, on the command line, or in how components are put together."""


class DataError(UserError):
    """Training data, an image, a run folder or a store that is missing, broken or does not match."""


def first_line(error: Exception) -> str:
    """The first line of an error's words, or its class where it has none."""
    return " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__


def is_lack_of_files(error: OSError) -> bool:
    """Whether the process, or the machine, has as many files open as it may."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def is_of_the_machine(error: OSError) -> bool:
    """Whether a path or the machine is at fault and not the code: no permission, no space, a name too long."""
    return is_lack_of_files(error) or error.errno in OF_THE_MACHINE


def os_error_in_words(error: OSError) -> str:
    """What the system says of an error; with its limit and what to do where too many files are open."""
    said = error.strerror or first_line(error)
    if not is_lack_of_files(error):
        return said
    import resource  # Windows has no such module, where the package can still be imported

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"{said} (a process may have {limit} of them here; `ulimit -n 4096` allows more)"


def nearest(value: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like `value`, or None where none is alike."""
    matches = get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(what: str, value: object, allowed: Iterable[str], where: str) -> ConfigError:
    """The error for a name that is not one of `allowed`.

    Args:
        what: the kind of thing named, e.g. "fusion" or "key".
        value: what was written.
        allowed: the names that would have been right.
        where: the place of the mistake, e.g. "fusion in experiments/demo/finetune.yaml".
    """
    names = sorted(allowed)
    close = nearest(str(value), names)
    hint = f"; did you mean '{close}'?" if close else ""
    return ConfigError(f"{where}: unknown {what} '{value}', allowed are {', '.join(names) or 'none'}{hint}")


def refuse_unknown_fields(given: Mapping[str, Any], config_class: Any, where: str) -> None:
    """ConfigError for what a transformers configuration class would take in silence.

    That is a key that is none of its fields, and a model type that is not its own.
    """
    older_names = {"rope_theta", "rope_scaling", "torch_dtype"}
    known = {*config_class().to_dict(), *config_class.attribute_map, *older_names}
    for key in given:
        if key not in known:
            raise unknown_name("key", key, known, f"{where}.{key}")
    model_type = given.get("model_type", config_class.model_type)
    if model_type != config_class.model_type:
        raise ConfigError(f"{where}.model_type: expected '{config_class.model_type}', found {model_type!r}")
