"""`python -m inflight_gateway`."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C before anything is served ends it at once, without a traceback

from inflight_gateway.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
