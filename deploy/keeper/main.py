"""``python -m kernelkeep_keeper``; see `kernelkeep_keeper.keeper`."""

from .keeper.__main__ import start

__all__ = ["start"]

if __name__ == "__main__":
    start()
