"""``python -m tests.support.versions.server VERSION ...``: a server of another version.

The arguments behind the version are those of ``kernelkeep``. Its keeper is of that version.
"""

from __future__ import annotations

import sys

from tests.support.versions.speaking import speak

if __name__ == "__main__":
    version = sys.argv.pop(1)
    speak(int(version))
    from app.managers.processes.keeper import starting

    starting.MODULE = ("tests.support.versions.keeper", version)  # type: ignore[misc]
    from app.cli import main

    main()
