"""Addresses with a name and a password in them, which must neither be shown nor stored."""

import re

_LOGIN = re.compile(r"([a-z][\w+.-]*://)(.*)@", re.IGNORECASE | re.DOTALL)
SQLITE = "sqlite:///"
"""How the address of a database begins whose rest is a path; an @ in it is a letter like others."""


def without_login(address: str) -> str:
    """The address as it may be shown, with ... for what stands before an @."""
    return address if address.startswith(SQLITE) else _LOGIN.sub(r"\1...@", address)


def has_password(address: str) -> bool:
    """Whether what stands before an @ has a password in it, as in s3://name:password@bucket."""
    server = address.partition("://")[2].partition("/")[0]
    return ":" in server.rpartition("@")[0]


def refuse_login(address: str, key: str) -> None:
    """ValueError for the address of a server with a name or a password in it; the sentence does not say them.

    Args:
        key: the field that holds it, as the message calls it.
    """
    shown = without_login(address)
    if shown != address:
        raise ValueError(
            f"{key}: {shown} has a login in it, and addresses are written down and shown; take it out, and export "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
