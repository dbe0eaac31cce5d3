"""The environment of a kernel's process: chosen by name, never simply inherited.

The server's own environment reaches a kernel by an allow-list only, so that no secret of the server
(its token, cloud credentials) does. What a client asks for is added to that; the kernelspec's own
entries come last and are applied by the provisioner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

from ..errors import InvalidEnvironment

__all__ = ["QUIET", "is_code", "kernel_environment", "needs_execute", "without_password"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.()-]*", re.ASCII)

QUIET: Final = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
"""What kernels get before all else. debugpy, which ipykernel imports, warns at each start that the
interpreter's frozen modules have no files to set breakpoints in; this stops that and nothing else.
"""

OWN_PREFIX: Final = "KERNELKEEP_"
"""Of the server's own options, the token among them; upper and lower case make no difference."""

MAX_ENTRY_BYTES: Final = 128 * 1024 - 16
"""Linux refuses to execute a program with a longer entry (MAX_ARG_STRLEN)."""

MAX_TOTAL_BYTES: Final = 512 * 1024
"""Names and values of one request together; a program's arguments share the same space."""


_CODE: Final = (
    # What the loader of programs obeys, and the C library.
    *("LD_*", "DYLD_*", "GLIBC_*", "GCONV_PATH", "LOCPATH", "MALLOC_*", "NLSPATH", "LIBPATH"),
    # Where programs are looked for, and which are run without being asked for.
    *("PATH", "PATHEXT", "COMSPEC", "SHELL", "EDITOR", "VISUAL", "PAGER", "*_PAGER", "BROWSER"),
    *("BASH_ENV", "BASH_FUNC_*", "BASHOPTS", "SHELLOPTS", "ENV", "IFS", "PS4", "PROMPT_COMMAND"),
    *("ZDOTDIR", "GIT_*", "SSH_ASKPASS", "LESSOPEN", "LESSCLOSE", "MAKEFLAGS", "CC", "CXX"),
    # Interpreters: Python, Jupyter, R, Julia, Node, Perl, Ruby, Java, Lua, and others.
    *("PYTHON*", "JUPYTER_*", "IPYTHON*", "PIP_*", "VIRTUAL_ENV", "CONDA_*", "MAMBA_*", "MPL*"),
    *("R_*", "JULIA_*", "NODE_*", "NPM_*", "PERL*", "RUBY*", "GEM_*", "BUNDLE_*", "LUA_*"),
    *("JAVA_*", "_JAVA_OPTIONS", "JDK_*", "CLASSPATH", "JVM_*", "SCALA_*", "SPARK_*", "DOTNET_*"),
    *("COMPLUS_*", "CORECLR_*", "PHP*", "GO*", "RUST*", "DENO_*", "XEUS_*", "OCAML*", "TCL*"),
    # Where files that hold settings, and so commands, are looked for.
    *("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_*", "TMPDIR", "TEMP", "TMP"),
    *("OPENSSL_*", "CUDA_*", "OMP_TOOL*", "QT_*", "GTK_*", "GIO_*", "GST_*"),
)
"""Variables by which a loader, a shell or an interpreter finds code to run."""


def is_code(name: str) -> bool:
    """Whether a variable of this name has code run in a process that has it."""
    upper = name.upper()  # Windows knows no difference, and some libraries look for both
    return any(fnmatchcase(upper, pattern) for pattern in _CODE)


def needs_execute(names: Iterable[str], allowed: Iterable[str]) -> str | None:
    """The first of the names that only somebody who may execute code may set; None if all may.

    ``allowed`` are patterns; none of them allows a variable that `is_code`.
    """
    patterns = list(allowed)
    return next(
        (
            name
            for name in names
            if is_code(name) or not any(fnmatchcase(name, pattern) for pattern in patterns)
        ),
        None,
    )


def kernel_environment(
    server: Mapping[str, str], allowed: Iterable[str], requested: Mapping[str, str]
) -> dict[str, str]:
    """What of ``server`` matches a pattern of ``allowed``, then ``requested``.

    The server's own options are left out whatever is allowed. Raises `InvalidEnvironment` for a
    name or value that no process can be given.
    """
    _check(requested)
    patterns = list(allowed)
    environment = {
        name: without_password(value) if name.upper().endswith("_PROXY") else value
        for name, value in server.items()
        if not name.upper().startswith(OWN_PREFIX)
        and any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    environment.update(requested)
    return environment


def without_password(url: str) -> str:
    """The address of a proxy without the name and the password that it is used with.

    Clients may be given a proxy, but not what it knows the server by.
    """
    start = url.find("://") + 3 if "://" in url else 0
    # Whatever stands before the last @, a slash in the password too: too much rather than too
    # little.
    at = url.rfind("@")
    return url if at < start else url[:start] + url[at + 1 :]


def _check(requested: Mapping[str, str]) -> None:
    total = 0
    for name, value in requested.items():
        shown = f"{name[:40]!r}"
        if not _NAME.fullmatch(name):
            raise InvalidEnvironment(f"env: {shown} is not a name for an environment variable")
        if "\0" in value:
            raise InvalidEnvironment(f"env: the value of {shown} holds a NUL character")
        try:
            size = len(name) + 1 + len(value.encode())
        except UnicodeEncodeError:
            raise InvalidEnvironment(f"env: the value of {shown} is not valid Unicode") from None
        if size > MAX_ENTRY_BYTES:
            raise InvalidEnvironment(f"env: {shown} is larger than {MAX_ENTRY_BYTES} bytes")
        total += size
    if total > MAX_TOTAL_BYTES:
        raise InvalidEnvironment(f"env: all entries are larger than {MAX_TOTAL_BYTES} bytes")
