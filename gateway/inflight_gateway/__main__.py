"""`python -m inflight_gateway`."""

import sys

from inflight_gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())
