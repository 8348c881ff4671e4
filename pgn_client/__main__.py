"""Run the command ``pgn`` as ``python -m pgn_client``."""

import sys

from pgn_client.cli import main

sys.exit(main())
