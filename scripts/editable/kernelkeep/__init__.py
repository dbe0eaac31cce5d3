"""What an editable install has as ``kernelkeep``: the modules of app/, under that name."""

from app import __path__ as __path__
from app import __version__ as __version__
