"""A trace as a file that the Perfetto UI opens: its native format, in the messages that the package `perfetto` has.

Only `kerneld trace --format perfetto` imports this. Answers to Perfetto's protos/perfetto/trace/trace.proto.
"""
