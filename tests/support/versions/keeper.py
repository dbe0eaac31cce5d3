"""``python -m tests.support.versions.keeper VERSION STATE_DIR``: a keeper of another version."""

from __future__ import annotations

import sys

from tests.support.versions.speaking import speak

if __name__ == "__main__":
    speak(int(sys.argv.pop(1)))
    from app.keeper.main import main

    main()
