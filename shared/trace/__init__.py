"""What a traced kernel and its readers agree on: the events with their fields, the records, the ring, the request.

The kernel packs (`kerneld.trace`), a reader unpacks (`shared.trace.reader`), and neither knows more of the other than
what is here. Nothing here imports the kernel or numpy.
"""
