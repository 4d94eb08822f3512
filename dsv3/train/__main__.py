"""``python -m dsv3.train``: the same as ``dsv3 train``, for launchers that want a module."""

import sys

from dsv3.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
