/*
 * libkerneld: a C program as a process of kerneld's. One header, one file, C11, nothing but libc on Linux/x86-64.
 *
 *     cc -I shared/include -I shared/c program.c shared/c/kerneld.c
 *
 * A `struct kd` is one connection: one thread of one process. Functions return what the libc function or system call of
 * that name returns: -1 with errno set where they fail. Errnos of the connection itself: ENOENT or ECONNREFUSED (no
 * daemon), ECONNRESET (the daemon went away, or let this process go), EPROTO (it speaks another ABI, or nonsense),
 * EMSGSIZE (more than one datagram holds), ENOTCONN (not connected).
 *
 * Nothing here allocates, locks or prints: every function may be called from a signal handler, as long as no other call
 * with the same `struct kd` is under way. A handler must not longjmp out of a call. Threads connect each for themselves,
 * with their tid.
 *
 * A fatal signal of the simulated machine (SIGSEGV, SIGBUS, SIGKILL) ends the real process with that real signal. One
 * that rt_sigaction has said to be caught (KD_SIGNAL_CAUGHT) is in `kd->signal` after the call, and PKRU is what it was
 * before it, as if a handler had run and returned.
 */
#ifndef KERNELD_H
#define KERNELD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KD_ABI_VERSION 1
#define KD_MAX_DATAGRAM 131072 /* longest datagram to the daemon, in bytes */
#define KD_MAX_REPLY 409600    /* longest answer */
#define KD_MAX_INLINE 65536    /* most bytes that one load, store or procread moves; kd_load and kd_store go on */
#ifndef KD_MAX_BATCH
#define KD_MAX_BATCH 64 /* most calls of one kd_run */
#endif
#define KD_MAX_FDS 16          /* most descriptors beside one datagram, each way */

/* Requests that have no Linux number. The others are Linux's: <sys/syscall.h>, and <linux/shadowpt.h>. */
enum kd_nr {
	KD_ATTACH = 0x1000,
	KD_LOAD = 0x1001,
	KD_STORE = 0x1002,
	KD_TOUCH = 0x1003,
	KD_PROCREAD = 0x1004,
	KD_RAM = 0x1005,
	KD_CLONE = 0x1006,
	KD_RDPKRU = 0x1007,
	KD_WRPKRU = 0x1008,
	KD_RING = 0x100e,
	KD_RING_BELL = 0x100f
};
enum kd_access { KD_READ = 0, KD_WRITE = 1, KD_FETCH = 2 };
enum kd_disposition { KD_SIGNAL_DEFAULT = 0, KD_SIGNAL_IGNORE = 1, KD_SIGNAL_CAUGHT = 2 };
enum kd_layout { KD_LAYOUT_F24 = 0, KD_LAYOUT_F23 = 23, KD_LAYOUT_F25_PART1 = 251 };

/* attach, fourth argument: this program's memory is its real one, and that is what others inspect. */
#define KD_ATTACH_HOST 1
/* shadowpt_open, fourth argument: a target that is no process of kerneld's is served from the host's page tables. */
#define KD_OPEN_HOST 1

struct kd_request { uint32_t size; uint32_t nr; uint64_t args[6]; };
struct kd_reply { uint32_t size; int32_t signo; int64_t ret; };
/* si_addr is a macro of <signal.h>. pkey: the protection key of a SEGV_PKUERR; pkru: what PKRU was before the signal. */
struct kd_siginfo { int32_t code; int32_t fatal; uint64_t addr; uint32_t pkey; uint32_t pkru; };

struct user_shadow_pt; /* <linux/shadowpt.h> */

/* The signal that the last call raised; signo 0: none. */
struct kd_signal { int signo; struct kd_siginfo info; };

/* The open shadow table, as it lies in this process; entries is NULL where none is. */
struct kd_table {
	char *entries;
	size_t table_bytes;              /* whole pages */
	const volatile uint64_t *sequence; /* odd while the kernel is changing the table */
	int prot, sharing;               /* what close puts back: PROT_ bits, MAP_PRIVATE or MAP_SHARED */
	uint64_t dev, ino;               /* of the mapping: what is no longer it is left alone at close */
};

/* Memory in which calls go to the daemon without a system call, while it looks there. */
struct kd_ring {
	volatile uint64_t *words; /* NULL: none */
	uint64_t number;          /* of the last datagram in it */
	unsigned exchanges;       /* by the socket; after some a ring is asked for */
	unsigned misses, skip;    /* answers in a row that came late; how many next datagrams go by the socket */
};

struct kd {
	int fd;
	pid_t pid;          /* of the process that attached: no other may use the connection */
	char path[108];
	unsigned char *answer; /* KD_MAX_REPLY bytes */
	struct kd_signal signal;
	struct kd_table table;
	int check_owner;    /* the path is one that nobody chose: see is_trusted() */
	struct kd_ring ring;
};
#define KD_INIT { -1, 0, { 0 }, NULL, { 0, { 0, 0, 0, 0, 0 } }, { NULL, 0, NULL, 0, 0, 0, 0 }, 0, { NULL, 0, 0, 0, 0 } }

/* One call of a batch. Set what goes in, zero the rest. */
struct kd_call {
	uint32_t nr;
	uint64_t args[6];
	const void *in;       /* inline data of the request */
	size_t in_bytes;
	void *out;            /* where the reply's inline data goes; what does not fit is dropped */
	size_t out_bytes;
	int64_t ret;          /* what Linux returns: >= 0, or -errno */
	size_t out_got;       /* how many bytes of inline data came */
};

/* Connect and attach. `path` NULL: $KERNELD_SOCKET, else the user's own. kd_attach says everything: a thread's tid (0: the
   main one), the token of a clone (0: none), KD_ATTACH_ flags. */
int kd_connect(struct kd *kd, const char *path);
int kd_attach(struct kd *kd, const char *path, pid_t tid, uint64_t token, uint64_t flags);
/* Leave: the connection ends, and an open table's memory is private again. */
void kd_disconnect(struct kd *kd);
/* Drop what a fork has copied, without touching the parent's table: for the child. */
void kd_forget(struct kd *kd);

/* Run `nr` calls as one datagram, in order; a signal ends the batch. `fds` travel beside it and are consumed in order.
   Up to `*nr_fds_out` descriptors that come back go to `fds_out`, the caller's to close. Returns the number of replies:
   each call's own outcome is its `ret`. */
int kd_run_fds(struct kd *kd, struct kd_call *calls, size_t nr, const int *fds, size_t nr_fds, int *fds_out,
	       size_t *nr_fds_out);
int kd_run(struct kd *kd, struct kd_call *calls, size_t nr);
/* One call. kd_raw returns Linux's value or -errno, as the instruction does; kd_syscall sets errno, as libc does. */
long kd_raw(struct kd *kd, uint32_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f);
long kd_syscall(struct kd *kd, uint32_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f);

/* The processor: any length. Returns the bytes (kd_touch: the pages) done; fewer, or -1 with EFAULT for none, where a
   caught signal stopped it. Addresses are the simulated machine's. */
ssize_t kd_load(struct kd *kd, uint64_t vaddr, void *to, size_t length);
ssize_t kd_store(struct kd *kd, uint64_t vaddr, const void *from, size_t length);
ssize_t kd_touch(struct kd *kd, uint64_t vaddr, size_t length, enum kd_access access);

/* Read at most `length` bytes of a file of kerneld's /proc, from `offset`; 0 at its end. */
ssize_t kd_procread(struct kd *kd, const char *path, uint64_t offset, void *to, size_t length);

/* Memory, as mmap(2) and the rest; the address where mmap fails is UINT64_MAX. kd_brk is the raw call. */
uint64_t kd_mmap(struct kd *kd, uint64_t addr, size_t length, int prot, int flags, int fd, off_t offset);
int kd_munmap(struct kd *kd, uint64_t addr, size_t length);
int kd_mprotect(struct kd *kd, uint64_t addr, size_t length, int prot);
uint64_t kd_brk(struct kd *kd, uint64_t addr);

/* Memory protection keys: pkey_alloc(2), pkey_free(2), pkey_mprotect(2), pkey_get(3), pkey_set(3), and the instructions
   RDPKRU and WRPKRU, which are SIGILL where the machine has no keys. PKRU is this connection's own. */
int kd_pkey_alloc(struct kd *kd, unsigned long flags, unsigned long rights);
int kd_pkey_free(struct kd *kd, int pkey);
int kd_pkey_mprotect(struct kd *kd, uint64_t addr, size_t length, int prot, int pkey);
int kd_pkey_get(struct kd *kd, int pkey);
int kd_pkey_set(struct kd *kd, int pkey, unsigned rights);
long kd_rdpkru(struct kd *kd);
int kd_wrpkru(struct kd *kd, uint32_t pkru);

/* Fork the real and the simulated process; 0 in the child, whose `kd` is its own connection. The table is the parent's.
   kd_exit ends both. */
pid_t kd_fork(struct kd *kd);
void kd_exit(struct kd *kd, int status) __attribute__((noreturn));

/* The shadow page table: what <linux/shadowpt.h> describes. open takes a layout and KD_OPEN_ flags, and updates dest. */
int kd_shadowpt_open(struct kd *kd, pid_t target, struct user_shadow_pt *dest, enum kd_layout layout, uint64_t flags);
int kd_shadowpt_close(struct kd *kd);
int kd_shadowpt_start(struct kd *kd);
int kd_shadowpt_stop(struct kd *kd);
int kd_shadowpt_page_contents(struct kd *kd, uint64_t pfn, void *page);
/* Fall 2025's first part, in place of that table: `size` bytes at `dest`, whole pages, where each page fault of the target
   stores its address at index (vaddr % size) / sizeof(unsigned long). kd_shadowpt_close closes it. */
int kd_faults_open(struct kd *kd, pid_t target, void *dest, size_t size, uint64_t flags);
/* Copy `bytes` of the open table as they were at one moment; EAGAIN where it does not stand still. */
int kd_snapshot(struct kd *kd, void *entries, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif /* KERNELD_H */
