"""Calls as strace(1) writes them: arguments, results, lines, totals. Pure: takes records, returns text."""
