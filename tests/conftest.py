"""What has to hold in the process that runs the tests, whoever started it."""

import signal

# A shell that runs this in the background ignores SIGINT, and all that is started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
