"""Finds logins in addresses, which must be neither shown nor stored."""

import re

_LOGIN = re.compile(r"([a-z][\w+.-]*://)(.*)@", re.IGNORECASE | re.DOTALL)
SQLITE = "sqlite:///"
"""Prefix of an address whose rest is a path, in which an @ does not end a login."""


def without_login(address: str) -> str:
    """Returns the address with ... in place of a login, so that it may be shown."""
    return address if address.startswith(SQLITE) else _LOGIN.sub(r"\1...@", address)


def has_password(address: str) -> bool:
    """Returns whether the login of an address has a password, as in s3://name:password@bucket."""
    server = address.partition("://")[2].partition("/")[0]
    return ":" in server.rpartition("@")[0]


def refuse_login(address: str, key: str) -> None:
    """Raises ValueError for a server's address with a login; the message does not contain the login.

    Args:
        key: name of the field that holds the address, for the message.
    """
    shown = without_login(address)
    if shown != address:
        raise ValueError(
            f"{key}: {shown} contains a login, and addresses are stored and shown; remove it, and export "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
