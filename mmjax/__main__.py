"""``python -m mmjax``: the same as the command ``mmjax``."""

import sys

from mmjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
