"""The environment of a kernel's process: chosen by name, never simply inherited.

Only the variables on an allow-list pass from the server to a kernel, so that no secret of the
server (its token, cloud credentials) does. The variables that a client asks for are added to them;
the kernelspec's own come last, and the provisioner applies those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from ...name_patterns import matcher
from ..errors import InvalidEnvironment

__all__ = ["QUIET", "is_code", "kernel_environment", "needs_execute", "without_password"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.()-]*", re.ASCII)

QUIET: Final = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
"""Variables that every kernel gets; all others override them. debugpy, which ipykernel imports,
warns at each start that breakpoints in the interpreter's frozen modules may be missed. This
variable stops that warning and nothing else.
"""

OWN_PREFIX: Final = "KERNELKEEP_"
"""The prefix of variables that hold the server's own options, such as its token, in any case."""

MAX_ENTRY_BYTES: Final = 128 * 1024 - 16
"""Linux refuses to execute a program with a longer entry (MAX_ARG_STRLEN)."""

MAX_TOTAL_BYTES: Final = 512 * 1024
"""Bytes of all names and values of one request; a program's arguments share the same space."""


_CODE: Final = (
    # Variables that the loader of programs and the C library obey.
    *("LD_*", "DYLD_*", "GLIBC_*", "GCONV_PATH", "LOCPATH", "MALLOC_*", "NLSPATH", "LIBPATH"),
    # Where programs are looked for, and which programs are run without being asked for.
    *("PATH", "PATHEXT", "COMSPEC", "SHELL", "EDITOR", "VISUAL", "PAGER", "*_PAGER", "BROWSER"),
    *("BASH_ENV", "BASH_FUNC_*", "BASHOPTS", "SHELLOPTS", "ENV", "IFS", "PS4", "PROMPT_COMMAND"),
    *("ZDOTDIR", "GIT_*", "SSH_ASKPASS", "LESSOPEN", "LESSCLOSE", "MAKEFLAGS", "CC", "CXX"),
    # Interpreters: Python, Jupyter, R, Julia, Node, Perl, Ruby, Java, Lua, and others.
    *("PYTHON*", "JUPYTER_*", "IPYTHON*", "PIP_*", "VIRTUAL_ENV", "CONDA_*", "MAMBA_*", "MPL*"),
    *("R_*", "JULIA_*", "NODE_*", "NPM_*", "PERL*", "RUBY*", "GEM_*", "BUNDLE_*", "LUA_*"),
    *("JAVA_*", "_JAVA_OPTIONS", "JDK_*", "CLASSPATH", "JVM_*", "SCALA_*", "SPARK_*", "DOTNET_*"),
    *("COMPLUS_*", "CORECLR_*", "PHP*", "GO*", "RUST*", "DENO_*", "XEUS_*", "OCAML*", "TCL*"),
    # Where settings are looked for: files of settings can hold commands.
    *("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_*", "TMPDIR", "TEMP", "TMP"),
    *("OPENSSL_*", "CUDA_*", "OMP_TOOL*", "QT_*", "GTK_*", "GIO_*", "GST_*"),
)
"""Variables by which a loader, a shell or an interpreter finds code to run."""


def is_code(name: str) -> bool:
    """Whether a variable of this name can make a process run code of its author's choice."""
    upper = name.upper()  # Windows ignores case, and some libraries look for either
    return matcher(_CODE)(upper)


def needs_execute(names: Iterable[str], allowed: Iterable[str]) -> str | None:
    """The first of these names that only a caller with the right to execute code may set, or None.

    ``allowed`` has patterns for the names that any caller may set. A variable that `is_code` needs
    the right whatever the patterns say.
    """
    is_allowed = matcher(allowed)
    return next((name for name in names if is_code(name) or not is_allowed(name)), None)


def kernel_environment(
    server: Mapping[str, str], allowed: Iterable[str], requested: Mapping[str, str]
) -> dict[str, str]:
    """The variables of ``server`` that match a pattern of ``allowed``, overridden by ``requested``.

    The server's own options are left out whatever the patterns are. Raises `InvalidEnvironment` for
    a requested name or value that no process can be given.
    """
    _check(requested)
    passes = matcher(allowed)
    environment = {
        name: without_password(value) if name.upper().endswith("_PROXY") else value
        for name, value in server.items()
        if passes(name) and not name.upper().startswith(OWN_PREFIX)
    }
    environment.update(requested)
    return environment


def without_password(url: str) -> str:
    """The URL of a proxy without the user name and password in it.

    Kernels may use the server's proxy, but must not learn its credentials.
    """
    start = url.find("://") + 3 if "://" in url else 0
    # Everything up to the last @ is cut, even a slash, which a password may hold: cutting too much
    # breaks a URL, cutting too little tells the password.
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
