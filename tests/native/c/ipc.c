/* System V semaphores and messages, POSIX message queues, the clock's state: what each call reads and writes, what it refuses,
 * and waits that a signal ends. Each buffer is a page that was never touched. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

union semun { int val; struct semid_ds *buf; unsigned short *array; struct seminfo *info; };
struct message { long type; char text[64]; };

static volatile int alarms, told;

static void result(const char *what, long ret)
{
	printf("%s: %ld %s\n", what, ret, ret < 0 ? strerror(errno) : "");
	fflush(stdout);
}

static void on_alarm(int signo) { (void)signo; alarms++; }
static void on_message(union sigval value) { told = value.sival_int; }

static void *fresh(void)
{
	return mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* The next wait is ended by a signal, which comes again and again. */
static void soon(int on)
{
	struct itimerval often = {{0, on * 100000}, {0, on * 100000}};
	struct sigaction action = {.sa_handler = on_alarm};
	sigaction(SIGALRM, &action, 0);
	setitimer(ITIMER_REAL, &often, 0);
}

static void semaphores(void)
{
	int id = semget(IPC_PRIVATE, 3, 0600), status;
	unsigned short *values = fresh(), given[] = {3, 0, 7};
	struct semid_ds *ds = fresh();
	struct sembuf take = {1, -1, 0}, give = {1, 1, SEM_UNDO}, away = {9, 1, 0};
	struct timespec short_time = {0, 20000000};
	result("SETALL", semctl(id, 0, SETALL, (union semun){.array = given}));
	result("GETALL", semctl(id, 0, GETALL, (union semun){.array = values}));
	printf("%d %d %d, then %d\n", values[0], values[1], values[2], values[3]);
	result("GETALL to nowhere", semctl(id, 0, GETALL, (union semun){.array = (void *)8}));
	result("SETVAL", semctl(id, 2, SETVAL, (union semun){.val = 5}));
	result("GETVAL", semctl(id, 2, GETVAL));
	result("IPC_STAT", semctl(id, 0, IPC_STAT, (union semun){.buf = ds}));
	printf("%lu of mode %o\n", ds->sem_nsems, ds->sem_perm.mode);
	ds->sem_perm.mode = 0640;
	result("IPC_SET", semctl(id, 0, IPC_SET, (union semun){.buf = ds}));
	result("IPC_INFO", semctl(0, 0, IPC_INFO, (union semun){.info = fresh()}) < 0);
	result("semop of one that is not there", semop(id, &away, 1));
	result("semtimedop", semtimedop(id, &take, 1, &short_time));
	soon(1);
	result("semop", semop(id, &take, 1));
	soon(0);
	printf("ended by a signal: %d\n", alarms > 0);
	fflush(stdout);
	if (!fork())
		_exit(semop(id, &give, 1) ? 1 : semctl(id, 1, GETVAL));
	wait(&status);
	printf("a child gives %d, its end takes it back: %d\n", WEXITSTATUS(status), semctl(id, 1, GETVAL));
	result("IPC_RMID", semctl(id, 0, IPC_RMID));
	result("GETALL of none", semctl(id, 0, GETALL, (union semun){.array = values}));
}

static void messages(void)
{
	int id = msgget(IPC_PRIVATE, 0600), status;
	struct message *out = fresh(), *in = fresh();
	struct msqid_ds *ds = fresh();
	out->type = 2;
	strcpy(out->text, "a message");
	result("msgsnd", msgsnd(id, out, 10, 0));
	result("msgsnd of no type", msgsnd(id, in, 10, 0));
	result("msgsnd of too much", msgsnd(id, out, 1 << 20, 0));
	result("msgctl", msgctl(id, IPC_STAT, ds));
	printf("%lu of %lu bytes\n", ds->msg_qnum, ds->__msg_cbytes);
	ds->msg_qbytes = 100;
	result("IPC_SET", msgctl(id, IPC_SET, ds));
	result("MSG_INFO", msgctl(id, MSG_INFO, (struct msqid_ds *)fresh()) < 0);
	memset(in->text, 'x', sizeof in->text);
	result("msgrcv into too little", msgrcv(id, in, 4, 0, 0));
	result("msgrcv of a part", msgrcv(id, in, 4, 0, MSG_NOERROR));
	printf("%ld %.8s\n", in->type, in->text);
	result("msgrcv of none", msgrcv(id, in, 64, 0, IPC_NOWAIT));
	alarms = 0;
	soon(1);
	result("msgrcv", msgrcv(id, in, 64, 0, 0));
	soon(0);
	printf("ended by a signal: %d\n", alarms > 0);
	fflush(stdout);
	if (!fork())
		_exit(msgrcv(id, fresh(), 4096 * 3, 0, 0) == 64 ? 0 : 1);
	result("msgsnd", msgsnd(id, out, 64, 0));
	wait(&status);
	printf("a child: %d\n", status);
	result("msgrcv to nowhere", msgrcv(id, (void *)8, 64, 0, IPC_NOWAIT));
	result("IPC_RMID", msgctl(id, IPC_RMID, 0));
}

static void queues(void)
{
	char name[32], text[16];
	struct mq_attr wanted = {.mq_maxmsg = 4, .mq_msgsize = 16}, *seen = fresh();
	struct sigevent *event = fresh();
	snprintf(name, sizeof name, "/kerneld-%d", getpid());
	mqd_t queue = mq_open(name, O_CREAT | O_RDWR, 0600, &wanted);
	if (queue < 0) {
		result("mq_open", queue);
		return;
	}
	mq_unlink(name);
	result("mq_getattr", mq_getattr(queue, seen));
	printf("%ld %ld\n", seen->mq_maxmsg, seen->mq_msgsize);
	seen->mq_flags = O_NONBLOCK;
	result("mq_setattr", mq_setattr(queue, seen, 0));
	result("mq_receive", mq_receive(queue, text, 16, 0));
	*event = (struct sigevent){.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_message, .sigev_value.sival_int = 5};
	result("mq_notify", mq_notify(queue, event));
	result("mq_notify again", mq_notify(queue, event));
	result("mq_send", mq_send(queue, "hello", 6, 1));
	while (!told)
		usleep(1000);
	printf("told: %d\n", told);
}

int main(void)
{
	struct timex *state = fresh();
	struct timespec now;
	semaphores();
	messages();
	queues();
	printf("adjtimex: %d, ", adjtimex(state) >= 0 && state->tick > 0);
	printf("clock_adjtime: %d, settimeofday of nothing: %d\n", clock_adjtime(CLOCK_REALTIME, state) >= 0, syscall(SYS_settimeofday, 0, 0) == 0);
	return clock_gettime(CLOCK_REALTIME, &now);
}
