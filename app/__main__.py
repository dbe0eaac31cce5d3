"""``python -m app``, or ``python -m kernelkeep``, is the ``kernelkeep`` command."""

from .cli import main

if __name__ == "__main__":
    main()
