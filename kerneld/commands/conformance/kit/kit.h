/*
 * shadowpt-check: does a kernel have the shadow page table that the assignment asks for? What all files of the kit share.
 *
 *   main.c     the options, the TAP output, the log that is read after a reboot
 *   runner.c   one check in a process of its own, with a time limit; what a check says of what it saw
 *   clock.c    the time that counts for a limit, on a busy machine too
 *   calls.c    the system calls of each semester, and what the table must show
 *   order.c    what a check tells the processes that are watched; puppet.c is in those processes, and does it
 *   check_*.c  the checks. A check is described where it is made: CHECK(name, …) { … }
 *
 * A check passes only if its process came to its end, and has compared at least one thing.
 */
#ifndef SHADOWPT_KIT_H
#define SHADOWPT_KIT_H

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>

typedef unsigned long ulong_t;

/* ---- The calls ---- */

struct spte {
	ulong_t vaddr, pfn, state;
};

struct table {
	ulong_t start, end;
	volatile struct spte *entries;
};

enum semester { F24 = 1, F25 = 2, F23 = 4, EVERY = F24 | F25 | F23, HAS_START = F24 | F25, HAS_CONTENTS = F24 | F23 };

struct abi {
	const char *name;
	enum semester semester;
	long open, close, start, stop, contents;        /* the numbers; -1: the semester has no such call */
	ulong_t allocated, anonymous, mapped, writeable; /* flags; `writeable` are those that are not compared */
};

extern const struct abi *abi;
extern long page_bytes;

#define PAGE ((ulong_t)page_bytes)
#define ALLOCATED (abi->allocated)
#define ANONYMOUS (abi->allocated | abi->anonymous)
#define MAPPED (abi->mapped)
#define MAX_PAGES 2048UL
#define MAX_RANGE 0x800000UL

/* Each returns 0 or -errno. In f23 open also starts, and start and stop do nothing. */
long sp_open(pid_t target, void *table);
long sp_close(void);
long sp_start(void);
long sp_stop(void);
long sp_contents(ulong_t pfn, void *buffer);

/* ---- The table of this process ---- */

extern struct table now; /* what this process has opened, or tried to open last */

void *fresh(ulong_t pages);                                /* memory that nobody has touched */
long try_open(pid_t target, ulong_t start, ulong_t pages); /* open over fresh entries */
void open_table(pid_t target, ulong_t start, ulong_t pages);
void watch(pid_t target, ulong_t start, ulong_t pages); /* open and start */
void close_table(void);
/* Each entry of the pages has this state, its own address, and the frame that /proc/PID/pagemap says (0: unmapped). */
void expect(pid_t target, ulong_t vaddr, ulong_t pages, ulong_t state);
void expect_soon_open(const char *after);               /* the table is free again: this process can open and close it */
ulong_t pagemap_pfn(pid_t pid, ulong_t vaddr);          /* 0: no frame, or the frame is hidden */
int pagemap_is_present(pid_t pid, ulong_t vaddr);
void expect_truth(pid_t target);                        /* the whole table is what maps and pagemap of the target say */
volatile struct spte *entry_of(ulong_t vaddr);
void need_pfns(void);                                   /* skip the check where frame numbers are hidden */
const char *state_text(ulong_t state);

/* ---- The time that counts ---- */

#define LOOK_MS 20 /* who waits looks at least so often */

struct stopwatch {
	struct timespec began, looked;
	double counted;
};

void start_watch(struct stopwatch *watch);
long ms_counted(struct stopwatch *watch);       /* since the start, what a process could have run */
long ms_elapsed(const struct stopwatch *watch); /* since the start, by the clock on the wall */
int is_load_known(void);                        /* 0: then all time counts */

/* ---- What a check says ---- */

void expect_ret(long got, long wanted, const char *what);
void expect_failure(long got, const char *what);           /* any errno but ENOSYS */
void expect_one_of(long got, long first, long second, const char *what);
void expect_that(int is_true, const char *format, ...) __attribute__((format(printf, 2, 3)));
void failed(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void skipped(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
const char *errno_text(int error);
int is_in_time(void);                                      /* 1 until the patience for one comparison is over */
void begin_patience(void);
long ms_of_patience(void);                                 /* that count since then */
void settle(void);                                         /* what is not to happen had its time to happen */

/* ---- Processes ---- */

struct puppet {
	pid_t pid;
	int fd, child_fd;
};

#define WINDOW 0x2000000000UL /* where puppets map: free in every process, also with 39-bit addresses */
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

struct puppet new_puppet(void);
long p_call(struct puppet *p, long nr, ...); /* a system call with up to six arguments; 0 or more, or -errno */
long p_open(struct puppet *p, pid_t target, ulong_t start, ulong_t pages, int then_start);
ulong_t p_mmap(struct puppet *p, ulong_t vaddr, ulong_t pages, int prot, int flags);
ulong_t p_mmap_file(struct puppet *p, ulong_t vaddr, ulong_t pages, int prot, int flags);
void p_munmap(struct puppet *p, ulong_t vaddr, ulong_t pages);
void p_write(struct puppet *p, ulong_t vaddr, ulong_t pages, int byte); /* the whole of each page */
void p_read(struct puppet *p, ulong_t vaddr, ulong_t pages);
struct puppet p_fork(struct puppet *p);
void p_exec(struct puppet *p);
void p_read_into(struct puppet *p, ulong_t vaddr); /* read(2) fills one byte there */
ulong_t p_malloc(struct puppet *p, ulong_t bytes);
void p_free(struct puppet *p, ulong_t at);
void p_grow_stack(struct puppet *p, ulong_t bytes);
void p_hammer(struct puppet *p, ulong_t vaddr, ulong_t pages, int threads, int rounds); /* begins; p_wait ends */
void p_wait(struct puppet *p);
pid_t p_thread(struct puppet *p);               /* the tid of a thread that does nothing */
void p_start_thread_exit(struct puppet *p);     /* exit_group() by a thread that is not the first */
void p_die(struct puppet *p, int how);          /* how: a signal's number, 0 for exit */
void end_puppet(struct puppet *p);              /* SIGKILL, and wait */
extern char own_path[4096]; /* of this program, for execve */
void serve_puppet(int fd, int child_fd) __attribute__((noreturn));
void range_of(pid_t pid, const char *name, ulong_t *start, ulong_t *end); /* of a mapping, by its name in maps */

/* ---- The checks ---- */

struct check {
	const char *name, *place, *rule, *did, *expected, *mistake, *hint;
	void (*run)(void);
	const char *file;
	int line, points, seconds, semesters;
	int is_extra; /* beyond the assignment: a failure is a TODO of TAP */
};

/* `place` is a heading of the assignment. seconds: the limit of time that counts, 0 for the usual one; semesters: 0 for every one. */
#define CHECK(id, ...)                                                                                           \
	static void id##_run(void);                                                                              \
	static const struct check id##_check = { .name = #id, .run = id##_run, .file = __FILE__, .line = __LINE__, \
						 __VA_ARGS__ };                                                  \
	static const struct check *const id##_place __attribute__((used, section("shadowpt_checks"))) = &id##_check; \
	static void id##_run(void)

struct verdict {
	enum { NO_VERDICT, PASSED, FAILED, SKIPPED } kind;
	unsigned compared;
	char saw[1024];
};

struct verdict run_check(const struct check *check);
extern int patience_ms; /* how long a comparison waits to become true */
extern int limit_seconds; /* of every check; 0: each its own */
extern long nr_opens;   /* of the checks that repeat */

/* ---- The student's header: header.c, compiled apart, so that a header that does not compile is one failed check ---- */

struct header {
	int is_there, is_broken;
	int pte_bytes, pte_offsets[3], table_bytes, table_offsets[3];
	ulong_t allocated, anonymous, mapped, max_range;
	int macros_right;
};

extern const struct header header;

#endif
