/* The options, the TAP output, and the log that tells after a reboot which check was running when the kernel stopped. */
#define _GNU_SOURCE
#include "kit.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define EXIT_MISSING 4 /* kselftest's status for "skipped" */
#define MAX_CHECKS 256

static const struct abi abis[] = {
	{ "f24", F24, 462, 463, 464, 465, 466, 1, 2, 4, 0 },
	{ "f25", F25, 467, 468, 469, 470, -1, 1, 2, 4, 0 },
	{ "f23", F23, 451, 452, -1, -1, 453, 1, 2, 8, 4 | 16 },
};

extern const struct check *const __start_shadowpt_checks[], *const __stop_shadowpt_checks[];
static const struct check *checks[MAX_CHECKS];
static int nr_checks;
char own_path[4096];
static const char *log_path = "shadowpt-check.log";
static int log_fd = -1;
static char killer[64]; /* the check that was running when the kernel stopped */

static int in_order(const void *one, const void *other)
{
	const struct check *a = *(const struct check *const *)one, *b = *(const struct check *const *)other;
	int files = strcmp(a->file, b->file);

	return files ? files : a->line - b->line;
}

/* The linker keeps no order of the variables of a file: the lines of the sources do. */
static void collect_checks(void)
{
	for (const struct check *const *at = __start_shadowpt_checks; at < __stop_shadowpt_checks; at++)
		if (nr_checks < MAX_CHECKS)
			checks[nr_checks++] = *at;
	qsort(checks, (size_t)nr_checks, sizeof(checks[0]), in_order);
}

static int is_for(const struct check *check, const struct abi *of)
{
	return ((check->semesters ? check->semesters : EVERY) & (int)of->semester) != 0;
}

/* One check a line, its fields separated by tabs: what other programs read. */
static void list_checks(void)
{
	for (int at = 0; at < nr_checks; at++) {
		const struct check *check = checks[at];

		printf("%s\t%d\t%d\t", check->name, check->points, check->is_extra);
		for (size_t of = 0; of < sizeof(abis) / sizeof(abis[0]); of++)
			if (is_for(check, &abis[of]))
				printf("%s ", abis[of].name);
		printf("\t%s\t%s\t%s\t%s\t%s\t%s\n", check->place, check->rule, check->did, check->expected,
		       check->mistake, check->hint);
	}
}

/* Is the check one of the names, separated by commas? NULL: all are. */
static int is_chosen(const struct check *check, const char *only)
{
	size_t length = strlen(check->name);

	if (!is_for(check, abi))
		return 0;
	for (const char *at = only; at; at = strchr(at, ','), at = at ? at + 1 : NULL)
		if (strncmp(at, check->name, length) == 0 && (at[length] == ',' || !at[length]))
			return 1;
	return !only;
}

/* ---- The log ---- */

static void read_boot_id(char *boot, size_t bytes)
{
	FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

	if (!file || !fgets(boot, (int)bytes, file))
		snprintf(boot, bytes, "unknown");
	boot[strcspn(boot, "\n")] = '\0';
	if (file)
		fclose(file);
}

static void note(const char *what, const char *name)
{
	char line[160];
	int length = snprintf(line, sizeof(line), "%s %s\n", what, name);

	if (log_fd >= 0 && (write(log_fd, line, (size_t)length) != length || fsync(log_fd)))
		log_fd = -1;
}

/* A check that began before a reboot and has no end. In the same boot, the run was only interrupted. */
static void read_log(const char *boot)
{
	char word[16], name[64], of_boot[64] = "";
	FILE *file = fopen(log_path, "re");

	while (file && fscanf(file, "%15s %63s", word, name) == 2) {
		if (strcmp(word, "boot") == 0)
			snprintf(of_boot, sizeof(of_boot), "%s", name);
		else if (strcmp(word, "begin") == 0)
			snprintf(killer, sizeof(killer), "%s", name);
		else
			killer[0] = '\0';
	}
	if (file)
		fclose(file);
	if (strcmp(of_boot, boot) == 0)
		killer[0] = '\0';
}

static void open_log(void)
{
	char boot[64];

	read_boot_id(boot, sizeof(boot));
	read_log(boot);
	log_fd = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (log_fd < 0)
		printf("# no log %s (%s): after a crash nobody can tell which check it was\n", log_path, strerror(errno));
	note("boot", boot);
}

/* ---- The run ---- */

static int print_verdict(int number, const struct check *check, const struct verdict *verdict)
{
	int has_failed = verdict->kind == FAILED;

	printf("%sok %d %s", has_failed ? "not " : "", number, check->name);
	if (verdict->kind == SKIPPED)
		printf(" # SKIP %s", verdict->saw);
	else if (has_failed && check->is_extra)
		printf(" # TODO beyond the assignment");
	printf("\n");
	if (has_failed) {
		printf("#   did:      %s\n", check->did);
		printf("#   expected: %s; saw: %s\n", check->expected, verdict->saw);
		printf("#   usual mistake: %s. %s\n", check->mistake, check->hint);
	}
	fflush(stdout);
	return has_failed && !check->is_extra;
}

static int run_all(const char *only)
{
	int failures = 0, passed = 0, number = 0, chosen = 0, points = 0, most = 0;

	for (int at = 0; at < nr_checks; at++)
		chosen += is_chosen(checks[at], only);
	printf("1..%d\n", chosen);
	for (int at = 0; at < nr_checks; at++) {
		const struct check *check = checks[at];
		struct verdict verdict = { .kind = FAILED };

		if (!is_chosen(check, only))
			continue;
		if (strcmp(check->name, killer) == 0 && !only) {
			snprintf(verdict.saw, sizeof(verdict.saw),
				 "the kernel stopped during this check (%s); --only %s runs it again", log_path, check->name);
		} else {
			note("begin", check->name);
			verdict = run_check(check);
			note("end", check->name);
		}
		failures += print_verdict(++number, check, &verdict);
		passed += verdict.kind == PASSED;
		points += verdict.kind == PASSED ? check->points : 0;
		most += check->points;
	}
	note("done", "all");
	printf("# passed %d of %d, points %d of %d, failed %d (%s)\n", passed, chosen, points, most, failures, abi->name);
	return failures != 0;
}

/* ---- Are the calls there? ---- */

static int is_in_kallsyms(void)
{
	FILE *file = fopen("/proc/kallsyms", "re");
	char line[512];
	int found = 0;

	while (file && !found && fgets(line, sizeof(line), file))
		found = strstr(line, "sys_shadowpt_") != NULL;
	if (file)
		fclose(file);
	return found;
}

/* Other kernels have other calls with these numbers (462 is mseal): only a table that opens is proof, or the symbols. */
static int are_calls_there(void)
{
	struct puppet target = new_puppet();
	long ret = try_open(target.pid, WINDOW, 1);
	struct utsname name;

	close_table();
	end_puppet(&target);
	if (ret == 0 || ret == -EBUSY || is_in_kallsyms())
		return 1;
	uname(&name);
	if (ret == -EPERM)
		printf("1..0 # SKIP opening a table is not permitted: run this as root\n");
	else
		printf("1..0 # SKIP the calls of the shadow page table are missing (%s, %ld to %ld) in this kernel: %s %s\n",
		       abi->name, abi->open, abi->semester == F23 ? abi->contents : abi->semester == F25 ? abi->stop : abi->contents,
		       name.sysname, name.release);
	return 0;
}

static const struct abi *find_abi(const char *name)
{
	for (size_t at = 0; at < sizeof(abis) / sizeof(abis[0]); at++)
		if (strcmp(abis[at].name, name) == 0)
			return &abis[at];
	return NULL;
}

static int usage(const char *program)
{
	fprintf(stderr,
		"usage: %s [--abi f24|f25|f23] [--only NAME,NAME] [--list] [--log FILE] [--opens N] [--patience MS] [--limit S]\n"
		"  --abi       the semester: its numbers and flags (f24)\n"
		"  --only      these checks alone\n"
		"  --list      the checks, one a line with tabs: name, points, extra, semesters, place, rule, did, expected,\n"
		"              mistake, hint\n"
		"  --log       the log of checks that began and ended (shadowpt-check.log)\n"
		"  --opens     how often the checks that repeat open a table (10000)\n"
		"  --patience  how long a comparison waits to become true, in milliseconds (2000)\n"
		"  --limit     the time limit of each check, in seconds (that of the check, mostly 30)\n"
		"              Both count only the time in which the check could run: on a busy machine a part of each second.\n"
		"Exit status: 0 all passed, 1 some failed, 2 wrong usage, 4 this kernel has no such calls.\n",
		program);
	return 2;
}

static int is_known(const char *only)
{
	char *names = strdup(only), *save, *name;
	int is_right = 1;

	if (!names)
		return 0;
	for (name = strtok_r(names, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
		int found = 0;

		for (int at = 0; at < nr_checks; at++)
			found |= strcmp(checks[at]->name, name) == 0;
		if (!found) {
			fprintf(stderr, "there is no check '%s' (--list)\n", name);
			is_right = 0;
		}
	}
	free(names);
	return is_right;
}

/* Take one option that has a value; 0 for an option that does not exist. */
static int take_option(const char *option, const char *value, const char **only)
{
	if (strcmp(option, "--abi") == 0)
		return (abi = find_abi(value)) != NULL;
	if (strcmp(option, "--only") == 0)
		return (*only = value) != NULL;
	if (strcmp(option, "--log") == 0)
		return (log_path = value) != NULL;
	if (strcmp(option, "--opens") == 0)
		return (nr_opens = atol(value)) > 0;
	if (strcmp(option, "--patience") == 0)
		return (patience_ms = atoi(value)) > 0;
	if (strcmp(option, "--limit") == 0)
		return (limit_seconds = atoi(value)) > 0;
	return 0;
}

int main(int argc, char **argv)
{
	const char *only = NULL;

	if (readlink("/proc/self/exe", own_path, sizeof(own_path) - 1) < 0)
		return usage(argv[0]);
	page_bytes = sysconf(_SC_PAGESIZE);
	abi = &abis[0];
	collect_checks();
	if (argc == 4 && strcmp(argv[1], "--puppet") == 0) {
		abi = find_abi(argv[3]);
		serve_puppet(atoi(argv[2]), -1);
	}
	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		list_checks();
		return 0;
	}
	for (int at = 1; at < argc; at += 2)
		if (at + 1 == argc || !take_option(argv[at], argv[at + 1], &only))
			return usage(argv[0]);
	if (only && !is_known(only))
		return 2;
	if (!are_calls_there())
		return EXIT_MISSING;
	printf("TAP version 13\n");
	if (!is_load_known())
		printf("# /proc/stat does not tell how busy this machine is: a check that waits for its turn may look like one that hangs\n");
	open_log();
	return run_all(only);
}
