/* Signals that come while they are blocked, those that the stub lives by among them: they are pending, and are taken later. A
 * handler that restores the default and sends itself the signal again, as crash reporters do, ends the program by it. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RAISE, KILL, AGAIN, LIKE_A_FAULT, QUEUED, WAYS };
static const char *names[] = {"raise", "kill", "as it came", "like a fault", "queued"};
static int way;

static void send_it(int signo, const siginfo_t *came)
{
	siginfo_t info = {.si_signo = signo, .si_code = way == QUEUED ? SI_QUEUE : SI_KERNEL};
	if (way == AGAIN)
		info = *came;
	if (way == RAISE)
		raise(signo);
	else if (way == KILL)
		kill(getpid(), signo);
	else
		syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), signo, &info);
}

static void tell_pending(int signo)
{
	sigset_t pending;
	sigpending(&pending);
	printf(" pending %d", sigismember(&pending, signo));
	fflush(stdout);
}

static void send_again(int signo, siginfo_t *info, void *unused)
{
	signal(signo, SIG_DFL);
	send_it(signo, info);
	tell_pending(signo);
	(void)unused;
}

static void tell(int signo, siginfo_t *info, void *unused)
{
	printf(" got %d code %d", signo, info->si_code);
	fflush(stdout);
	(void)unused;
}

static void handle(int signo, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
	sigaction(signo, &action, 0);
}

static void in_a_handler(int signo)
{
	handle(signo, send_again);
	raise(signo);
	printf(" not ended");
}

static void blocked(int signo)
{
	const struct timespec now = {0, 0};
	siginfo_t info = {.si_signo = signo, .si_code = SI_KERNEL};
	sigset_t set;
	handle(signo, tell);
	sigemptyset(&set);
	sigaddset(&set, signo);
	sigprocmask(SIG_BLOCK, &set, 0);
	send_it(signo, &info);
	send_it(signo, &info);
	tell_pending(signo);
	if (!fork()) {
		printf(" child:");
		tell_pending(signo);
		_exit(0);
	}
	wait(0);
	memset(&info, 0, sizeof info);
	printf(" taken %d", sigtimedwait(&set, &info, &now));
	printf(" code %d", info.si_code);
	tell_pending(signo);
	send_it(signo, &info);
	printf(" unblocked:");
	fflush(stdout);
	sigprocmask(SIG_UNBLOCK, &set, 0);
	sigprocmask(SIG_BLOCK, &set, 0);
	send_it(signo, &info);
	signal(signo, SIG_IGN);
	handle(signo, tell);
	tell_pending(signo);
	sigprocmask(SIG_UNBLOCK, &set, 0);
}

int main(void)
{
	static const int signals[] = {SIGSEGV, SIGSYS, SIGTRAP, SIGUSR1};
	struct rlimit none = {0, 0};
	setrlimit(RLIMIT_CORE, &none);
	for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
		for (way = 0; way < 2 * WAYS; way++) {
			int status;
			printf("%d %s:", signals[i], names[way % WAYS]);
			fflush(stdout);
			if (!fork()) {
				int is_blocked = way >= WAYS;
				way %= WAYS;
				(is_blocked ? blocked : in_a_handler)(signals[i]);
				fflush(stdout);
				_exit(1);
			}
			wait(&status);
			printf(" status %x\n", status);
		}
	return 0;
}
