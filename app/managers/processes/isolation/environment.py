"""The environment of a kernel whose user is not the service's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ....name_patterns import matcher

__all__ = ["own_environment"]

_PLACES: Final = (
    *("TMPDIR", "TEMP", "TMP", "SHELL", "XDG_RUNTIME_DIR", "XDG_*_HOME", "PYTHONUSERBASE"),
    *("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"),
    *("MPLCONFIGDIR", "R_LIBS_USER", "R_PROFILE_USER", "R_ENVIRON_USER"),
)
"""Variables that lead to the files of one user."""


def own_environment(
    env: Mapping[str, str], server: Mapping[str, str], *, home: Path, name: str
) -> dict[str, str]:
    """The environment for a kernel of another user, with that user's home and ``name``.

    Variables that lead to places of the service's user (`_PLACES`) are removed; a place that a
    client has set stays.
    """
    is_place = matcher(_PLACES)
    own = {
        variable: value
        for variable, value in env.items()
        # A variable with the server's value counts as inherited. One that a client has set to the
        # same value cannot be told from it, and is of no use to another user anyhow.
        if server.get(variable) != value or not is_place(variable)
    }
    return {**own, "HOME": str(home), "USER": name, "LOGNAME": name}
