"""The files below the root directory, as Jupyter's contents API shows and changes them."""
