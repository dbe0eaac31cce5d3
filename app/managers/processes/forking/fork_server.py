"""The program of a fork server: an interpreter that has imported ipykernel, and forks kernels.

It is run by path, by the interpreter of a kernelspec, which need not have this service installed:
so it imports nothing of `app`. Its one argument besides the modules to preload is the abstract name
of a SOCK_SEQPACKET socket to connect to, behind ``@``. Every packet on it is one JSON object.
`app.managers.processes.forking.link` is at the other end:

    service -> {"fork": N} and descriptors: the order, as a JSON file; its output; its directory;
               a pipe, at which the kernel waits for a byte before it begins
    server  -> {"ready": true} | {"refused": TEXT}
    server  -> {"forked": N, "pid": PID} | {"failed": N, "error": TEXT} | {"outdated": N}

The keeper runs the server, and is the parent of its kernels: who forked them ends at once, and the
keeper adopts orphans. A kernel for which no byte comes ends: nobody else would know of it.

A server is outdated when an interpreter that is started now could be another one than this:
packages were installed, upgraded or removed meanwhile. It forks no kernel then (`Origins`).

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

# What a kernel imports while it starts, in one version of its packages or another.
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
    """Serves in the parent; in each child `serve` returns what that child is to be."""

    def __init__(self, control: socket.socket, origins: Origins) -> None:
        self._control = control
        self._origins = origins

    def serve(self) -> dict[str, Any]:
        """Fork on request. Does not return in the parent: it exits when the service is gone."""
        while True:
            order = self._on_packet()
            if order is not None:
                return order

    def _on_packet(self) -> dict[str, Any] | None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, 4096, 4)
        except ConnectionResetError:
            packet = b""
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
        # The order is read by the child alone: nothing of one kernel is ever in another's memory.
        pid = fork_away()
        if pid:
            self._say(forked=number, pid=pid)
            return None
        try:
            return self._leave_home(order, output, directory, leave)
        except BaseException as error:  # nothing may lead a child back to the parent's loop
            os.write(output, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)

    def _leave_home(self, order: int, output: int, directory: int, leave: int) -> dict[str, Any]:
        """In the child: let go of what is the server's, and read what this process is to be."""
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

    They are the interpreter; the directories of packages, whose entries come and go with each
    package that is installed, upgraded or removed; and the files of the modules that are imported.
    Python's own modules change with the interpreter. Make it before anything is imported, and
    `note_modules` afterwards.
    """

    def __init__(self) -> None:
        import site

        directories = {*site.getsitepackages(), *(entry for entry in sys.path if is_of_site(entry))}
        if site.ENABLE_USER_SITE:  # it need not be there yet
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
            if type(path) is not str or name == "__main__":  # that one is the service's
                continue
            if not path.startswith(library) or is_of_site(path):
                files.add(path)
        self._modules = joined(sorted(files))
        self._seen[1] = state_of(self._modules)

    def have_changed(self) -> bool:
        """Whether a process that is started now could be another one."""
        return self._seen != [state_of(self._places), state_of(self._modules)]


def is_of_site(path: str) -> bool:
    """Whether packages are installed here, or this is a file of one."""
    return not {"site-packages", "dist-packages"}.isdisjoint(path.split(os.sep))


def joined(paths: list[str]) -> bytes:
    """Paths in one object: what the server counts references on is copied for each kernel."""
    return b"\0".join(map(os.fsencode, paths))


def state_of(paths: bytes) -> int:
    """A number that is another one when a file or directory has changed, has come or gone."""
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
    """Fork a process whose parent has ended already. Raises `OSError`."""
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
        except BaseException:  # as where the kernel leaves home
            os._exit(1)
        os._exit(0)
    os.close(told)
    os.waitpid(parent, 0)
    number = os.read(numbers, 20)
    os.close(numbers)
    if not number:
        raise OSError("there can be no further process")
    return int(number)


def say(control: socket.socket, **message: Any) -> None:
    """Tell the service something, unless it is gone."""
    try:
        control.send(json.dumps(message).encode())
    except OSError:
        os._exit(0)


def preload(modules: list[str]) -> None:
    """Import what kernels need and what their spec asks for. Raises `Refused`."""
    for name in MODULES:
        import_checked(name, "")
    for name in LIKELY:
        try:
            importlib.import_module(name)
        except ImportError:  # this version of ipykernel does without it
            continue
        except Exception as error:
            raise refusal(name, error) from None
    check("ipykernel")
    for name in modules:
        import_checked(name, "the preload ")
        check(f"the preload {name}")


def import_checked(name: str, what: str) -> None:
    """Import a module, which may do anything. Raises `Refused`."""
    try:
        importlib.import_module(name)
    except BaseException as error:
        raise refusal(f"{what}{name}", error) from None


def refusal(what: str, error: BaseException) -> Refused:
    """Why there is no fork server: something cannot be imported."""
    text = f"{type(error).__name__}: {error}"
    return Refused(f"{what} cannot be imported: {text[:300]}")


def check(who: str) -> None:
    """Raise `Refused` if this process holds what no fork survives."""
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
    """ipykernel's application, made but not initialised, with a quick way to read usual arguments.

    To parse them goes through every class and option that there is: a tenth of a start.
    """
    from ipykernel import kernelapp
    from traitlets.config import Config

    # Of the same name, which is that of its logger and of its section in config files.
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
    """Make this child a process of its own, as if it had just been executed."""
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
    """Forget what was drawn at random, or found out, before the fork.

    The generators of `random` and `tempfile` see to it themselves; `uuid` and `secrets` ask the
    operating system each time.
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
    # ipykernel would end when its parent is not the process that this names; 1 is none to watch.
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
    gc.collect()
    gc.freeze()
    say(control, ready=True)
    wanted = ForkServer(control, origins).serve()
    become({**wanted, "program": program})
    del wanted, control, origins
    app.launch_instance()
    leave()


def connected(where: str) -> socket.socket:
    """A connection to the service, which waits at this address."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        control.connect("\0" + where[1:])
    except OSError:  # it has ended meanwhile
        os._exit(0)
    return control


def leave() -> None:
    """Exit as an interpreter does, but do not take apart, object by object, what is shared.

    That would copy all of the memory that the fork server lent, to free it.
    """
    # In this order: Py_FinalizeEx.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # closed, or nobody reads it
            continue
    os._exit(0)


if __name__ == "__main__":
    main()
