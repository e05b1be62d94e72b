/* Processes that end while threads of theirs begin: each ends with the status that it wants. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void *work(void *nothing)
{
	return nothing;
}

int main(int argc, char **argv)
{
	int count = atoi(argv[argc - 1]), right = 0, status;
	for (int i = 0; i < count; i++) {
		pid_t pid = fork();
		if (!pid) {
			pthread_t thread;
			for (int k = 0; k <= i % 3; k++)
				pthread_create(&thread, 0, work, 0);
			if (i % 4 > 1)
				usleep(i % 400);
			_exit(7);
		}
		waitpid(pid, &status, 0);
		right += WIFEXITED(status) && WEXITSTATUS(status) == 7;
	}
	printf("right: %d\n", right);
	return 0;
}
