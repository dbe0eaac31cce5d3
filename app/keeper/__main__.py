"""``python -m app.keeper STATE_DIR``; see `app.keeper.main`."""

from __future__ import annotations

import sys


def start() -> None:
    """Run the keeper without what it does not need."""
    # asyncio loads ssl if it is there, which takes 4 MB, and does without if it is not.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    from .main import main

    main()


if __name__ == "__main__":
    start()
