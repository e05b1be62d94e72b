"""The daemon's outside: the only place with sockets, epoll and pidfds.

It turns datagrams into calls of dispatch and answers into datagrams, and tells the kernel when a thread's connection
or a real process has ended. It knows nothing of memory.
"""
