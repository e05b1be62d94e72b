/*
 * A process in the middle of an execve that does not end: it holds exec_update_lock (Linux: fs/exec.c:exec_mmap()) and
 * waits for the mmap_lock of its old address space. Its parent holds that while the server of FILE does not answer.
 *
 * Says "r" when it is ready. A byte on stdin: hold the lock. One on descriptor FD: begin the execve, and say the pid.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE 4096

static char *mapped;
static char number[16];
static char *const no_strings[] = {NULL};

static void *hold(void *unused)
{
    char byte;

    (void)unused;
    if (read(0, &byte, 1) == 1)
        mmap(mapped, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    char byte;
    int fd;

    if (argc != 3 || (fd = open(argv[1], O_RDWR)) < 0)
        return 1;
    mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        return 1;
    mapped[0] = 'A';
    memset(number, ' ', sizeof(number));
    if (write(1, "r", 1) != 1 || pthread_create(&thread, NULL, hold, NULL))
        return 1;
    if (read(atoi(argv[2]), &byte, 1) != 1)
        return 1;
    if (vfork() == 0) {
        snprintf(number, sizeof(number), "%d\n", getpid());
        if (write(1, number, strlen(number)) > 0)
            execve("/bin/true", no_strings, no_strings);
        _exit(1);
    }
    return 0;
}
