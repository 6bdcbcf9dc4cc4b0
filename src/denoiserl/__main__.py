"""``python -m denoiserl``: the command line where its script is not on the path."""

import sys

from denoiserl.cli import main

sys.exit(main())
