"""`python -m tests.hosts`, or `make hosts`: a command of this checkout on another kernel, in a virtual machine."""

import signal
import sys

from tests.hosts import guest
from tests.hosts.command_line import parse
from tests.hosts.trouble import HostsError


def main() -> int:
    """Return the exit status."""

    def say(line: str) -> None:
        print(f"hosts: {line}", file=sys.stderr, flush=True)

    choice = parse(sys.argv[1:])
    try:
        return guest.run(choice, say)
    except HostsError as error:
        say(str(error))
        return 2


if __name__ == "__main__":
    # As Ctrl+C: the guest ends, and what it works on is put away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("hosts: interrupted")
