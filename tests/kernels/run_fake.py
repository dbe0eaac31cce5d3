"""Runs the fake kernel as a module, which Python compiles once and not at each of its starts."""

from fake import main  # type: ignore[import-not-found]  # beside this file

main()
