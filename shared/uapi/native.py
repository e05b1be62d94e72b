"""What a native program's stub and the kernel say to each other beyond the calls: docs/abi.md, "Native programs"."""

from __future__ import annotations

ATTACH_AGENT = 4
"""Fourth argument of attach: this connection is the agent's of the TLB that the token, the third one, names."""
NATIVE_THREAD = 1
"""First argument of native: a further thread of a native process."""
FAULT_FOR_KERNEL = 1
"""Third argument of fault: the access is made for a system call, so that it fails with EFAULT and raises no signal."""
