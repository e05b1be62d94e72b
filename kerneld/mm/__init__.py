"""Memory management: frames, address spaces, faults. It knows no task, no socket and no byte of the wire."""
