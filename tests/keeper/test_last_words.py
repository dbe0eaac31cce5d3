"""What is left of the output of processes that really died: the lines that say why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app.keeper.last_words import MAX_CHARS, MAX_LINES, last_words

NOTE = """\
NOTE: When using the `ipython kernel` entry point, Ctrl-C will not work.

To exit, you will have to explicitly quit this process, by either sending
"quit" from a client, or using Ctrl-\\ in UNIX-like environments.

To read more about this, see https://github.com/ipython/ipython/issues/2049


To connect another client to this kernel, use:
    --existing /state/runtime/kernel-1cc39859-217e-4240-919d-33f28a504570.json
"""

FROZEN = """\
0.00s - Debugger warning: It seems that frozen modules are being used, which may
0.00s - make the debugger miss breakpoints. Please pass -Xfrozen_modules=off
0.00s - to python to disable frozen modules.
0.00s - Note: Debugging will proceed. Set PYDEVD_DISABLE_FILE_VALIDATION=1 to disable this validation.
"""  # noqa: E501

CRASHED = """\
free(): invalid pointer
Fatal Python error: Aborted

Thread 0x00007f2a1b7fe700 (most recent call first):
  File "/usr/lib/python3.11/selectors.py", line 468 in select
  ...

Current thread 0x00007f2a2d074040 (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/home/first.py", line 3 in inner
  File "/home/first.py", line 4 in outer
  File "/home/first.py", line 5 in <module>

Extension modules: zmq.backend.cython._zmq, numpy.core._multiarray_umath (total: 2)
"""


def wrote(*arguments: str) -> str:
    """What a Python process that is given these writes until it ends, unasked or not."""
    done = subprocess.run(
        [sys.executable, "-I", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
        env={"PATH": os.defpath},
    )
    assert done.returncode
    return done.stdout.decode()


CHAINED = """
print("loading", flush=True)
def read():
    return {}["licence"]
try:
    read()
except KeyError as error:
    raise ValueError("no licence\\nask your administrator") from error
"""

THREADS = """
import ctypes, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("begun", flush=True)
ctypes.string_at(0)
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-c", "import sys; sys.exit('no licence')"), ["no licence"]),
        (("-c", "raise RuntimeError('no licence')"), ["RuntimeError: no licence"]),
        (("-c", "import gone"), ["ModuleNotFoundError: No module named 'gone'"]),
        (("-c", "print('last'); import os; os.write(1, b'words'); os._exit(3)"), ["words"]),
        (
            ("-c", CHAINED),
            [
                "loading",
                "KeyError: 'licence'",
                "The above exception was the direct cause of the following exception:",
                "ValueError: no licence",
                "ask your administrator",
            ],
        ),
        (("-c", "import os; os._exit(3)"), []),
    ],
)
def test_a_python_that_ends_leaves_its_exception(
    arguments: tuple[str, ...], words: list[str]
) -> None:
    assert last_words(wrote(*arguments)).splitlines() == words


def test_a_missing_module_is_named() -> None:
    words = last_words(wrote("-m", "gone"))

    assert words.endswith("No module named gone")
    assert len(words.splitlines()) == 1


def test_a_crash_leaves_its_cause_and_where_it_was() -> None:
    said = wrote("-X", "faulthandler", "-c", THREADS)

    before, cause, *frames = last_words(said).splitlines()

    assert (before, cause) == ("begun", "Fatal Python error: Segmentation fault")
    assert [frame.split(" in ")[1] for frame in frames] == ["string_at", "<module>"]


def test_of_a_crash_with_many_threads_the_one_that_crashed_is_kept() -> None:
    assert last_words(CRASHED).splitlines() == [
        "free(): invalid pointer",
        "Fatal Python error: Aborted",
        '  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at',
        '  File "/home/first.py", line 3 in inner',
        '  File "/home/first.py", line 4 in outer',
    ]


@pytest.mark.parametrize("noise", [NOTE, FROZEN, NOTE + FROZEN, FROZEN + NOTE])
def test_what_kernels_always_write_is_left_out(noise: str) -> None:
    assert last_words(noise) == ""
    assert last_words(noise + "out of paper\n") == "out of paper"
    assert last_words("out of paper\n" + noise) == "out of paper"
    assert last_words(noise[: len(noise) // 2] if noise is NOTE else "") == ""


def test_what_looks_like_a_traceback_and_is_none_is_left() -> None:
    said = 'note\n    indented\n  File "x", line 3\n    x = = 3\n        ^\nSyntaxError: invalid\n'

    assert last_words(said) == said.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n \n",
        "Traceback (most recent call last):\n",
        'Traceback (most recent call last):\n  File "x',
    ],
)
def test_nothing_is_left_of_nothing(text: str) -> None:
    assert last_words(text) == ""


def test_they_are_bounded() -> None:
    many = "\n".join(f"line {number}" for number in range(1000))

    assert last_words(many).splitlines() == [f"line {n}" for n in range(1000 - MAX_LINES, 1000)]
    assert last_words(many, 2) == "line 998\nline 999"
    assert last_words("x" * 100_000) == "…" + "x" * MAX_CHARS
