"""`python -m hpcrunner`: the same as the installed command."""

import sys

from hpcrunner.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
