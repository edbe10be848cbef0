"""`python -m torchadder` is the command `torchadder`."""

import sys

from torchadder.cli import main

if __name__ == "__main__":
    sys.exit(main())
