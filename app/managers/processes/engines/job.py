"""The program of a job, which the job's own Python runs: it becomes the keeper that came on stdin.

The text of this file comes on the interpreter's stdin (`bundle.program`), so it imports nothing but
the standard library and `pythons`. One line of JSON follows, the order, and then the bytes of the
keeper's zip. An error is written to stderr, in a line that begins with `MARK`.
"""

import json
import os
import sys
import tempfile
from typing import BinaryIO

from ..hosts.pythons import MARK, Failed, check_python

PIPE_BYTES = 2**14
"""How many bytes can be written to a pipe before it is read: any pipe has room for so many."""

RUN = (
    "import runpy, sys; "
    "sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def main(read: BinaryIO) -> None:
    """Become the keeper whose zip follows the order. Does not return: exits if that fails."""
    try:
        check_python()
        line = read.readline()
        if not line:
            raise Failed("host_unreachable", "the connection ended before the order was there")
        order = json.loads(line)
        become(order["module"], bring(read, order["size"]), order["document"].encode())
    except Failed as error:
        tell(error.code, str(error))
    except OSError as error:
        tell("host_unusable", str(error))


def bring(read: BinaryIO, size: int) -> str:
    """Read the zip and store it in a new directory, where others cannot write; returns its path.

    Raises `Failed` and `OSError`.
    """
    data = read.read(size)
    if len(data) != size:
        raise Failed("host_unreachable", "the connection ended before the keeper was there")
    # The directory is 0700. Python imports from the zip for as long as the keeper runs: a user who
    # could write there could have the keeper run any code.
    path = os.path.join(tempfile.mkdtemp(prefix="kernelkeep-"), "keeper.zip")
    with open(path, "wb") as file:
        file.write(data)
    return path


def become(module: str, bundle: str, document: bytes) -> None:
    """Execute the keeper in place of this program. The join document is on its stdin."""
    if len(document) > PIPE_BYTES:
        raise Failed("host_unusable", "the join document is too long")
    # The whole document is written before it is read, by this same process, after the exec. The
    # writing end is closed, so that the keeper reads the end of the document.
    reading, writing = os.pipe()
    os.write(writing, document)
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    os.execv(sys.executable, [sys.executable, "-c", RUN, bundle, module, "--join", "-"])


def tell(code: str, text: str) -> None:
    """Write the error for the server to stderr, and exit."""
    sys.stderr.write(MARK + json.dumps({"failed": code, "text": text}) + "\n")
    sys.exit(1)


if __name__ == "__main__":
    main(sys.stdin.buffer)
