"""Memory that is short: reclaim and the OOM killer."""
