"""``python -m app.keeper STATE_DIR``, or with ``--join``; see `app.keeper.main`, `.joined`."""

from __future__ import annotations

import sys


def start() -> None:
    """Run the keeper. Modules that it can do without are not loaded, for the memory they take."""
    if any(word.startswith("-") for word in sys.argv[1:2]):
        from .joined import main as join

        sys.exit(join())
    try:
        import uvloop  # noqa: F401  (which cannot be imported without ssl)
    except ImportError:
        # asyncio loads ssl if it is there, which takes memory, and does without if it is not.
        sys.modules["ssl"] = None  # type: ignore[assignment]
    from .main import main

    main()


if __name__ == "__main__":
    start()
