"""``python -m pgn_client`` is the command ``pgn``."""

import sys

from pgn_client.cli import main

sys.exit(main())
