/* What the check's process writes to a puppet. */
#ifndef SHADOWPT_ORDERS_H
#define SHADOWPT_ORDERS_H

enum order { CALL, OPEN, WRITE, READ, FORK, EXEC, READ_INTO, MALLOC, FREE, GROW_STACK, HAMMER, WAIT, THREAD, THREAD_EXIT,
	     DIE, MMAP_FILE };

struct request {
	long order, args[8];
};

void run_puppet(int fd, int child_fd) __attribute__((noreturn));

#endif
