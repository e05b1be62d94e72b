"""What happens when memory is short: reclaim and the OOM killer."""
