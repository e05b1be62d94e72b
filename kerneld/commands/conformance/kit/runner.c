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
#include <time.h>
#include <unistd.h>

#define USUAL_SECONDS 30
#define LAST_MS 20000 /* a killed process that is still there after this is stuck in the kernel, also on a busy machine */
#define SETTLE_MS 8

int patience_ms = 2000;
int limit_seconds;
long nr_opens = 10000;
static int report_fd = -1;
static unsigned compared;
static pid_t checking;
static struct timespec patience_began;

static long ms_since(const struct timespec *then)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (at.tv_sec - then->tv_sec) * 1000 + (at.tv_nsec - then->tv_nsec) / 1000000;
}

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
	clock_gettime(CLOCK_MONOTONIC, &patience_began);
}

long ms_of_patience(void)
{
	return ms_since(&patience_began);
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

static int wait_for_end(pid_t pid, int *status, long most_ms)
{
	struct timespec began;

	clock_gettime(CLOCK_MONOTONIC, &began);
	while (waitpid(pid, status, WNOHANG) == 0) {
		if (ms_since(&began) > most_ms)
			return 0;
		pause_ms(1);
	}
	return 1;
}

struct verdict run_check(const struct check *check)
{
	int usual = check->seconds ? check->seconds : USUAL_SECONDS;
	int seconds = limit_seconds ? limit_seconds : usual, status = 0, ends[2], has_word;
	struct verdict verdict = { .kind = NO_VERDICT };
	struct pollfd heard;
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
	heard = (struct pollfd){ ends[0], POLLIN, 0 };
	has_word = poll(&heard, 1, seconds * 1000) > 0 &&
		   read(ends[0], &verdict, sizeof(verdict)) == (ssize_t)sizeof(verdict);
	close(ends[0]);
	if (!has_word) {
		verdict.kind = FAILED;
		snprintf(verdict.saw, sizeof(verdict.saw), "nothing for %d s: a call hangs, or never ends", seconds);
	}
	/* The exit of the process is a part of the check: the kernel cleans up. */
	if (has_word && !wait_for_end(pid, &status, seconds * 1000L))
		has_word = 0;
	kill(-pid, SIGKILL);
	if (!has_word)
		kill(pid, SIGKILL);
	if (!has_word && !wait_for_end(pid, &status, LAST_MS)) {
		verdict.kind = FAILED;
		snprintf(verdict.saw, sizeof(verdict.saw), "process %d cannot be killed: it is stuck in the kernel", (int)pid);
	} else if (!has_word && WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) {
		verdict.kind = FAILED;
		snprintf(verdict.saw, sizeof(verdict.saw), "the check's process died of signal %d (%s)", WTERMSIG(status),
			 strsignal(WTERMSIG(status)));
	} else if (verdict.kind == PASSED && (!verdict.compared || !WIFEXITED(status) || WEXITSTATUS(status))) {
		verdict.kind = FAILED;
		snprintf(verdict.saw, sizeof(verdict.saw), "the check did not come to its end (status %#x)", status);
	}
	return verdict;
}
