"""The program of a fork server: an interpreter that has imported ipykernel, and forks kernels.

The interpreter of a kernelspec runs this file by its path. That interpreter need not have this
service installed, so the program imports nothing of `app`. Its first argument is ``@`` and the
abstract name of a SOCK_SEQPACKET socket to connect to; the others are the modules to preload. Every
packet on the socket is one JSON object. `app.managers.processes.forking.link` is at the other end:

    service -> {"fork": N} and descriptors: the order, as a JSON file; its output; its directory;
               a pipe, at which the kernel waits for a byte before it begins
    server  -> {"ready": true} | {"refused": TEXT}
    server  -> {"forked": N, "pid": PID} | {"failed": N, "error": TEXT} | {"outdated": N}

The keeper runs the server, and becomes the parent of its kernels: a process between the two forks
each kernel and ends at once, and orphans go to the keeper. A kernel for which no byte comes ends,
since no server knows it.

A server is outdated if packages were installed, upgraded or removed since it was started: a new
interpreter could import other code than this one has. It then forks no kernel (`Origins`).

The server ends when its socket does.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import socket
import sys
import threading
from importlib.util import find_spec
from typing import Any

MODULES = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell")

# Modules that a kernel imports while it starts; which of them depends on ipykernel's version.
LIKELY = (
    *("ipykernel.debugger", "IPython.core.completerlib", "IPython.core.debugger"),
    *(
        "IPython.core.logger",
        "IPython.core.oinspect",
        "IPython.extensions.storemagic",
        "IPython.utils.wildcard",
    ),
    *("faulthandler", "pdb", "psutil", "pwd", "resource", "sqlite3", "tornado.platform.asyncio"),
    *("comm", "uuid", "tempfile", "multiprocessing.process"),
)


class Refused(Exception):
    """No kernel can be forked from this process; the text says why."""


class ForkServer:
    """The fork server's loop. In the parent it never returns; in each child `serve` returns."""

    def __init__(self, control: socket.socket, origins: Origins) -> None:
        self._control = control
        self._origins = origins

    def serve(self) -> dict[str, Any]:
        """Fork on request; returns the order in each child. The parent exits with the service."""
        while True:
            order = self._on_packet()
            if order is not None:
                return order

    def _on_packet(self) -> dict[str, Any] | None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, 4096, 4)
        except ConnectionResetError:
            packet = b""
        # Not `sys.exit`: what the imported modules do at exit is for kernels, and may hang.
        if not packet:
            os._exit(0)
        request = json.loads(packet)
        try:
            order, output, directory, leave = descriptors
            if self._origins.have_changed():
                self._say(outdated=request["fork"])
                return None
            return self._fork(request["fork"], order, output, directory, leave)
        except (OSError, ValueError) as error:
            self._say(failed=request["fork"], error=str(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return None

    def _fork(
        self, number: int, order: int, output: int, directory: int, leave: int
    ) -> dict[str, Any] | None:
        # Only the child reads the order, so nothing of one kernel ever is in another's memory.
        pid = fork_away()
        if pid:
            self._say(forked=number, pid=pid)
            return None
        try:
            return self._leave_home(order, output, directory, leave)
        except BaseException as error:  # an error must not lead a child back into the parent's loop
            os.write(output, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)

    def _leave_home(self, order: int, output: int, directory: int, leave: int) -> dict[str, Any]:
        """In the child: take the kernel's directory and output, and read the order."""
        os.setsid()
        os.fchdir(directory)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(nothing)
        self._control.close()
        with os.fdopen(os.dup(order), "rb") as file:
            wanted: dict[str, Any] = json.loads(file.read())
        wanted["leave"] = os.dup(leave)
        return wanted

    def _say(self, **message: Any) -> None:
        say(self._control, **message)


class Origins:
    """The files that this process is made of, and whether they are still the same.

    The files are the interpreter, the directories of packages, and the files of imported modules.
    Each package that is installed, upgraded or removed changes the entries of a directory; Python's
    own modules change with the interpreter. Make this before anything is imported, and call
    `note_modules` afterwards: a package that changes between the two is noticed, too.
    """

    def __init__(self) -> None:
        import site

        directories = {*site.getsitepackages(), *(entry for entry in sys.path if is_of_site(entry))}
        if site.ENABLE_USER_SITE:  # the directory may be made later
            directories.add(site.getusersitepackages())
        environment = os.path.join(sys.prefix, "pyvenv.cfg")
        self._places = joined([sys.executable, environment, *sorted(directories)])
        self._modules = b""
        self._seen = [state_of(self._places), 0]

    def note_modules(self) -> None:
        """Note the files of all modules that are imported by now."""
        library = os.path.dirname(os.__file__) + os.sep
        files = set()
        for name, module in [*sys.modules.items()]:
            path = getattr(module, "__file__", None)
            if type(path) is not str or name == "__main__":  # this file is the service's own
                continue
            if not path.startswith(library) or is_of_site(path):
                files.add(path)
        self._modules = joined(sorted(files))
        self._seen[1] = state_of(self._modules)

    def have_changed(self) -> bool:
        """Whether an interpreter that is started now could import other code than this one has."""
        return self._seen != [state_of(self._places), state_of(self._modules)]


def is_of_site(path: str) -> bool:
    """Whether a path is a directory of installed packages, or lies in one."""
    return not {"site-packages", "dist-packages"}.isdisjoint(path.split(os.sep))


def joined(paths: list[str]) -> bytes:
    """Paths in one object. Each kernel that counts references on objects copies their memory."""
    return b"\0".join(map(os.fsencode, paths))


def state_of(paths: bytes) -> int:
    """A hash over the state of files; it differs when one of them has changed, come or gone."""
    state = 0
    for path in paths.split(b"\0"):
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            state = hash((state, None))
        else:
            state = hash((state, found.st_ino, found.st_size, found.st_mtime_ns))
    return state


def fork_away() -> int:
    """Fork a process and end its parent; returns its id, or 0 within it. Raises `OSError`."""
    numbers, told = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            pid = os.fork()
            if pid == 0:
                os.close(numbers)
                os.close(told)
                return 0
            os.write(told, b"%d" % pid)
        except BaseException:  # an error must not lead this process back into the server's loop
            os._exit(1)
        os._exit(0)
    # The process between ends at once. When it has ended the number is in the pipe, or never will
    # be: this server's copy of the write end is closed, and the child has closed its own.
    os.close(told)
    os.waitpid(parent, 0)
    number = os.read(numbers, 20)
    os.close(numbers)
    if not number:
        raise OSError("there can be no further process")
    return int(number)


def say(control: socket.socket, **message: Any) -> None:
    """Send the service a message; exit if the service is gone."""
    try:
        control.send(json.dumps(message).encode())
    except OSError:
        os._exit(0)


def preload(modules: list[str]) -> None:
    """Import the modules that kernels need and those that their spec names. Raises `Refused`."""
    for name in MODULES:
        import_checked(name, "")
    for name in LIKELY:
        try:
            importlib.import_module(name)
        except ImportError:  # this version of ipykernel does not have or need the module
            continue
        except Exception as error:
            raise refusal(name, error) from None
    check("ipykernel")
    for name in modules:
        import_checked(name, "the preload ")
        check(f"the preload {name}")


def import_checked(name: str, what: str) -> None:
    """Import a module, which may raise anything. Raises `Refused`."""
    try:
        importlib.import_module(name)
    except BaseException as error:
        raise refusal(f"{what}{name}", error) from None


def refusal(what: str, error: BaseException) -> Refused:
    """The refusal to serve because a module cannot be imported."""
    text = f"{type(error).__name__}: {error}"
    return Refused(f"{what} cannot be imported: {text[:300]}")


def check(who: str) -> None:
    """Raise `Refused` if this process has threads, sockets or an event loop: no fork has them."""
    if len(os.listdir("/proc/self/task")) > 1:
        raise Refused(f"{who} starts a thread")
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if int(descriptor) != CONTROL and target.startswith(("socket:", "anon_inode:[eventpoll]")):
            raise Refused(f"{who} opens a socket or an event loop")


def kernel_app() -> Any:
    """ipykernel's application, made but not initialised, that reads the usual arguments quickly.

    traitlets' parser goes through every class and option: that takes a tenth of a kernel's start.
    """
    from ipykernel import kernelapp
    from traitlets.config import Config

    # The class keeps its name, for its logger and its section in config files are named after it.
    class IPKernelApp(kernelapp.IPKernelApp):
        def parse_command_line(self, argv: list[str] | None = None) -> None:
            argv = sys.argv[1:] if argv is None else argv
            if len(argv) != 2 or argv[0] != "-f":
                super().parse_command_line(argv)
                return
            self.argv = argv
            self.cli_config = Config({"IPKernelApp": {"connection_file": argv[1]}})
            self.update_config(self.cli_config)

    IPKernelApp.instance()
    return IPKernelApp


def become(wanted: dict[str, Any]) -> None:
    """Give this child its environment, limits and arguments, and wait for the byte to begin."""
    gc.enable()
    os.environ.clear()
    os.environ.update(wanted["env"])
    if wanted["limits"]:
        import resource

        for name, value in wanted["limits"].items():
            number = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (value, value))
    import time

    time.tzset()
    sys.argv = [wanted["program"], *wanted["arguments"]]
    sys.orig_argv = wanted["command"]
    draw_new_numbers()
    if not os.read(wanted["leave"], 1):
        os._exit(1)
    os.close(wanted["leave"])


def draw_new_numbers() -> None:
    """Replace random numbers and other values that the parent has and all its forks would share.

    `random` and the names of `tempfile` are seeded anew by themselves after a fork; `uuid` and
    `secrets` ask the operating system each time.
    """
    import multiprocessing.process
    import tempfile

    tempfile.tempdir = None
    multiprocessing.process.current_process().authkey = os.urandom(32)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


CONTROL = -1


def main() -> None:
    """Import, serve, and in each child run a kernel."""
    global CONTROL
    control = connected(sys.argv[1])
    CONTROL = control.fileno()
    # The directory of this file is no place to import from.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    # ipykernel ends when its parent is not the process that this variable names, unless it is 1.
    os.environ["JPY_PARENT_PID"] = "1"
    gc.disable()
    origins = Origins()
    try:
        preload(sys.argv[2:])
    except Refused as refused:
        say(control, refused=str(refused))
        os._exit(1)
    launcher = find_spec("ipykernel_launcher")
    program = launcher.origin if launcher is not None else "ipykernel_launcher"
    app = kernel_app()
    origins.note_modules()
    # In this order: garbage would be frozen, too. A collection in a kernel does not look at frozen
    # objects, so their memory stays shared.
    gc.collect()
    gc.freeze()
    say(control, ready=True)
    wanted = ForkServer(control, origins).serve()
    become({**wanted, "program": program})
    del wanted, control, origins
    app.launch_instance()
    leave()


def connected(where: str) -> socket.socket:
    """A connection to the service, which listens at this address; exits if the service is gone."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        control.connect("\0" + where[1:])
    except OSError:  # it has ended meanwhile
        os._exit(0)
    return control


def leave() -> None:
    """Exit as an interpreter does, but do not destroy the objects.

    To free them would copy all of the memory that is shared with the fork server.
    """
    # This is the order of `Py_FinalizeEx`.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # the stream is closed, or its pipe has no reader
            continue
    os._exit(0)


if __name__ == "__main__":
    main()
