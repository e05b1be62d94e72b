"""The contract between a traced kernel and its readers: the events with their fields, the records, the ring, the
request.

The kernel packs records (`kerneld.trace`), and a reader unpacks them (`shared.trace.reader`). They share only this
package. Nothing here imports the kernel or numpy.
"""
