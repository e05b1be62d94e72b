/* One check in a process of its own, with a time limit; and what a check says of what it saw. */
#define _GNU_SOURCE
#include "kit.h"

#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define USUAL_SECONDS 30
#define LAST_MS 10000 /* a killed process that is still there after this is stuck in the kernel */
#define SETTLE_MS 8

int patience_ms = 2000;
int limit_seconds;
long nr_opens = 10000;
static int report_fd = -1;
static unsigned compared;
static pid_t checking;
static struct stopwatch patience;

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

/* ---- In the process of the check ---- */

static void report(struct verdict *verdict) __attribute__((noreturn));
static void report(struct verdict *verdict)
{
	verdict->compared = compared;
	/* What another process of the check has to say ends that process; the check sees its end. */
	if (getpid() == checking)
		close_table();
	if (write(report_fd, verdict, sizeof(*verdict)) != (ssize_t)sizeof(*verdict))
		_exit(3);
	_exit(0);
}

#define REPORT(what)                                                           \
	do {                                                                   \
		struct verdict verdict = { .kind = what };                     \
		va_list words;                                                 \
		va_start(words, format);                                       \
		vsnprintf(verdict.saw, sizeof(verdict.saw), format, words);    \
		va_end(words);                                                 \
		report(&verdict);                                              \
	} while (0)

void failed(const char *format, ...)
{
	REPORT(FAILED);
}

void skipped(const char *format, ...)
{
	REPORT(SKIPPED);
}

void expect_that(int is_true, const char *format, ...)
{
	compared++;
	if (!is_true)
		REPORT(FAILED);
}

const char *errno_text(int error)
{
	static const struct {
		int error;
		const char *name;
	} names[] = { { EPERM, "EPERM" }, { ESRCH, "ESRCH" }, { ENOMEM, "ENOMEM" }, { EACCES, "EACCES" },
		      { EFAULT, "EFAULT" }, { EBUSY, "EBUSY" }, { EINVAL, "EINVAL" }, { ENOSYS, "ENOSYS" } };
	static char number[24];

	for (size_t at = 0; at < sizeof(names) / sizeof(names[0]); at++)
		if (names[at].error == error)
			return names[at].name;
	snprintf(number, sizeof(number), "errno %d", error);
	return number;
}

static const char *result_text(long ret)
{
	static char texts[2][64];
	static int turn;
	char *text = texts[turn++ & 1];

	if (ret < 0)
		snprintf(text, sizeof(texts[0]), "-%s", errno_text((int)-ret));
	else
		snprintf(text, sizeof(texts[0]), "%ld", ret);
	return text;
}

void expect_ret(long got, long wanted, const char *what)
{
	if (got == -EBUSY && wanted != -EBUSY)
		failed("%s returns -EBUSY: a table is open that nobody closed, or the kernel has not cleaned up", what);
	expect_that(got == wanted, "%s returns %s, not %s", what, result_text(got), result_text(wanted));
}

void expect_failure(long got, const char *what)
{
	expect_that(got < 0 && got != -ENOSYS, "%s returns %s, not an error", what, result_text(got));
}

void expect_one_of(long got, long first, long second, const char *what)
{
	expect_that(got == first || got == second, "%s returns %s, not %s or %s", what, result_text(got),
		    result_text(first), result_text(second));
}

void begin_patience(void)
{
	start_watch(&patience);
}

long ms_of_patience(void)
{
	return ms_counted(&patience);
}

int is_in_time(void)
{
	if (ms_of_patience() >= patience_ms)
		return 0;
	pause_ms(1);
	return 1;
}

void settle(void)
{
	pause_ms(SETTLE_MS);
}

static void run_here(const struct check *check, int fd) __attribute__((noreturn));
static void run_here(const struct check *check, int fd)
{
	struct rlimit none = { 0, 0 };
	struct verdict passed = { .kind = PASSED };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setpgid(0, 0);
	setrlimit(RLIMIT_CORE, &none);
	signal(SIGPIPE, SIG_IGN);
	report_fd = fd;
	checking = getpid();
	check->run();
	report(&passed);
}

/* ---- In the process that waits ---- */

static void __attribute__((format(printf, 2, 3))) fail_with(struct verdict *verdict, const char *format, ...)
{
	va_list words;

	verdict->kind = FAILED;
	va_start(words, format);
	vsnprintf(verdict->saw, sizeof(verdict->saw), format, words);
	va_end(words);
}

static int wait_for_end(pid_t pid, int *status, long most_ms)
{
	struct stopwatch watch;

	start_watch(&watch);
	while (waitpid(pid, status, WNOHANG) == 0) {
		if (ms_counted(&watch) >= most_ms)
			return 0;
		pause_ms(1);
	}
	return 1;
}

enum answer { WORD, SILENCE, GONE };

/* Wait for the verdict of a check. GONE: its process ended without one. */
static enum answer hear(int fd, struct verdict *verdict, long most_ms)
{
	struct pollfd heard = { fd, POLLIN, 0 };
	struct stopwatch watch;

	start_watch(&watch);
	while (poll(&heard, 1, LOOK_MS) == 0)
		if (ms_counted(&watch) >= most_ms) {
			fail_with(verdict, "nothing for %ld s, in which it could have run for %ld s: a call hangs, or never ends",
				  ms_elapsed(&watch) / 1000, most_ms / 1000);
			return SILENCE;
		}
	return read(fd, verdict, sizeof(*verdict)) == (ssize_t)sizeof(*verdict) ? WORD : GONE;
}

/* What the end of the process says, if it is not the one that this program made. */
static void judge_end(struct verdict *verdict, int status, int is_killed)
{
	int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;

	if (signal && !(is_killed && signal == SIGKILL))
		fail_with(verdict, "the check's process died of signal %d (%s)", signal, strsignal(signal));
	else if (verdict->kind == PASSED && is_killed)
		fail_with(verdict, "the check was done, but the end of its process hangs");
	else if (verdict->kind == NO_VERDICT || (verdict->kind == PASSED && (!verdict->compared || status)))
		fail_with(verdict, "the check did not come to its end (status %#x)", (unsigned)status);
}

struct verdict run_check(const struct check *check)
{
	int usual = check->seconds ? check->seconds : USUAL_SECONDS;
	long most_ms = (limit_seconds ? limit_seconds : usual) * 1000L;
	int status = 0, ends[2], is_killed;
	struct verdict verdict = { .kind = NO_VERDICT };
	enum answer answer;
	pid_t pid;

	fflush(NULL);
	if (pipe(ends) || (pid = fork()) < 0) {
		verdict.kind = SKIPPED;
		snprintf(verdict.saw, sizeof(verdict.saw), "no process for the check: %s", strerror(errno));
		return verdict;
	}
	if (pid == 0) {
		close(ends[0]);
		run_here(check, ends[1]);
	}
	close(ends[1]);
	answer = hear(ends[0], &verdict, most_ms);
	close(ends[0]);
	/* The exit of the process is a part of the check: the kernel cleans up. */
	is_killed = answer == SILENCE || !wait_for_end(pid, &status, most_ms);
	kill(-pid, SIGKILL);
	if (is_killed) {
		kill(pid, SIGKILL);
		if (!wait_for_end(pid, &status, LAST_MS)) {
			fail_with(&verdict, "process %d cannot be killed: it is stuck in the kernel", (int)pid);
			return verdict;
		}
	}
	judge_end(&verdict, status, is_killed);
	return verdict;
}
