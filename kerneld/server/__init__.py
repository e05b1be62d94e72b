"""The server: the only layer with sockets, epoll and pidfds.

It turns datagrams into calls of dispatch, and answers into datagrams. It tells the kernel when the connection of a
thread or a real process has ended. It knows nothing about memory.
"""
