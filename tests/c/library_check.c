/* What libkerneld promises, checked from C against a real daemon. Ends with 0, or says which line does not hold. */
#define _GNU_SOURCE
#include <kerneld.h>
#include <linux/shadowpt.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define BASE 0x2000000000UL
#define RW (PROT_READ | PROT_WRITE)
#define HERE(what) require((what), #what, __LINE__)

static struct kd kd = KD_INIT;

static void require(int holds, const char *what, int line)
{
	if (holds)
		return;
	fprintf(stderr, "library_check.c:%d: %s (errno %d: %s)\n", line, what, errno, strerror(errno));
	exit(1);
}

static void map(uint64_t at, size_t pages)
{
	HERE(kd_mmap(&kd, at, pages * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
}

static void calls(void)
{
	static unsigned char wrote[200000], got[200000];

	HERE(kd_syscall(&kd, SYS_getpid, 0, 0, 0, 0, 0, 0) == getpid());
	HERE(kd_raw(&kd, 9999, 0, 0, 0, 0, 0, 0) == -ENOSYS);
	HERE(kd_syscall(&kd, 9999, 0, 0, 0, 0, 0, 0) == -1 && errno == ENOSYS);
	HERE(kd_mmap(&kd, 1, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == UINT64_MAX && errno == EINVAL);
	HERE(kd_brk(&kd, 0) != UINT64_MAX);
	map(BASE, 64);
	for (size_t i = 0; i < sizeof(wrote); i++)
		wrote[i] = (unsigned char)(i * 7 + i / 4096);
	HERE(kd_store(&kd, BASE + 123, wrote, sizeof(wrote)) == sizeof(wrote));
	HERE(kd_load(&kd, BASE + 123, got, sizeof(got)) == sizeof(got) && memcmp(wrote, got, sizeof(got)) == 0);
	HERE(kd_touch(&kd, BASE, 64 * PAGE, KD_WRITE) == 64);
	HERE(kd_mprotect(&kd, BASE, PAGE, PROT_NONE) == 0 && kd_munmap(&kd, BASE, 64 * PAGE) == 0);
	HERE(kd_munmap(&kd, BASE + 1, PAGE) == -1 && errno == EINVAL);
}

static void batches(void)
{
	char got[5] = "";
	char path[] = "self/maps", text[8192];
	struct kd_call calls[4] = {
		{ .nr = SYS_mmap, .args = { BASE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, UINT64_MAX, 0 } },
		{ .nr = KD_STORE, .args = { BASE + 9, 5 }, .in = "hello", .in_bytes = 5 },
		{ .nr = KD_LOAD, .args = { BASE + 9, 5 }, .out = got, .out_bytes = 5 },
		{ .nr = KD_PROCREAD, .args = { 0, sizeof(text) }, .in = path, .in_bytes = sizeof(path) - 1, .out = text,
		  .out_bytes = sizeof(text) },
	};
	struct kd_call large = { .nr = KD_STORE, .in = text, .in_bytes = KD_MAX_DATAGRAM };

	HERE(kd_run(&kd, calls, 4) == 4);
	HERE(calls[0].ret == (int64_t)BASE && calls[1].ret == 5 && calls[2].ret == 5 && memcmp(got, "hello", 5) == 0);
	HERE(calls[3].ret > 0 && calls[3].out_got == (size_t)calls[3].ret && memmem(text, calls[3].out_got, "2000000000", 10));
	HERE(kd_run(&kd, calls, 0) == -1 && errno == EINVAL && kd_run(&kd, calls, KD_MAX_BATCH + 1) == -1);
	HERE(kd_run(&kd, &large, 1) == -1 && errno == EMSGSIZE && kd.fd >= 0);
	/* A reply longer than there is room for is cut. */
	calls[2].out_bytes = 2;
	HERE(kd_run(&kd, &calls[2], 1) == 1 && calls[2].ret == 5 && calls[2].out_got == 2);
}

static void signals(void)
{
	char got[2 * PAGE];
	struct kd_call calls[2] = { { .nr = KD_TOUCH, .args = { BASE + PAGE, 1, KD_READ } }, { .nr = SYS_getpid } };

	HERE(kd_syscall(&kd, SYS_rt_sigaction, SIGSEGV, KD_SIGNAL_CAUGHT, 0, 0, 0, 0) == 0);
	HERE(kd_store(&kd, BASE + PAGE - 3, "abc", 3) == 3);
	HERE(kd_load(&kd, BASE + PAGE - 3, got, sizeof(got)) == 3 && memcmp(got, "abc", 3) == 0);
	HERE(kd.signal.signo == SIGSEGV && kd.signal.info.addr == BASE + PAGE && kd.signal.info.code == 1);
	HERE(kd_load(&kd, BASE + PAGE, got, 1) == -1 && errno == EFAULT);
	HERE(kd_run(&kd, calls, 2) == 1 && calls[1].ret == -ECANCELED && kd.signal.signo == SIGSEGV);
	HERE(kd_syscall(&kd, SYS_rt_sigaction, SIGSEGV, KD_SIGNAL_DEFAULT, 0, 0, 0, 0) == 0);
}

/* A handler's PKRU is the one of a new program; what the program had is set again after it. */
static void keys(void)
{
	char got[1];
	int key = kd_pkey_alloc(&kd, 0, 2);
	uint64_t at = BASE + 0x100000;
	long before = kd_rdpkru(&kd);

	HERE(before == ((0x55555554 & ~(3 << 2 * key)) | 2 << 2 * key) && kd_pkey_get(&kd, key) == 2);
	map(at, 1);
	HERE(kd_pkey_mprotect(&kd, at, PAGE, RW, key) == 0 && kd_load(&kd, at, got, 1) == 1);
	HERE(kd_syscall(&kd, SYS_rt_sigaction, SIGSEGV, KD_SIGNAL_CAUGHT, 0, 0, 0, 0) == 0);
	HERE(kd_store(&kd, at, "x", 1) == -1 && errno == EFAULT && kd.signal.signo == SIGSEGV);
	HERE(kd.signal.info.code == 4 && kd.signal.info.addr == at && kd.signal.info.pkey == (uint32_t)key);
	HERE(kd.signal.info.pkru == (uint32_t)before && kd_rdpkru(&kd) == before && kd.signal.signo == 0);
	HERE(kd_pkey_set(&kd, key, 0) == 0 && kd_store(&kd, at, "x", 1) == 1);
	HERE(kd_load(&kd, at + PAGE, got, 1) == -1 && kd.signal.info.code == 1 && kd.signal.info.pkey == 0);
	HERE(kd_pkey_get(&kd, key) == 0);
	HERE(kd_pkey_set(&kd, 16, 0) == -1 && errno == EINVAL && kd_pkey_get(&kd, -1) == -1 && kd_pkey_set(&kd, 1, 4) == -1);
	HERE(kd_wrpkru(&kd, 0x55555554) == 0 && kd_load(&kd, at, got, 1) == -1 && kd.signal.info.pkey == (uint32_t)key);
	HERE(kd_pkey_free(&kd, key) == 0 && kd_pkey_free(&kd, key) == -1 && errno == EINVAL);
	HERE(kd_pkey_mprotect(&kd, at, PAGE, RW, -1) == 0 && kd_munmap(&kd, at, PAGE) == 0);
	HERE(kd_syscall(&kd, SYS_rt_sigaction, SIGSEGV, KD_SIGNAL_DEFAULT, 0, 0, 0, 0) == 0);
}

static void forks(void)
{
	char got[5];
	int status;
	pid_t child = kd_fork(&kd);

	HERE(child >= 0);
	if (child == 0) {
		HERE(kd.pid == getpid() && kd_load(&kd, BASE + 9, got, 5) == 5 && memcmp(got, "hello", 5) == 0);
		HERE(kd_store(&kd, BASE + 9, "child", 5) == 5);
		kd_exit(&kd, 5);
	}
	HERE(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
	HERE(kd_load(&kd, BASE + 9, got, 5) == 5 && memcmp(got, "hello", 5) == 0);
	child = kd_fork(&kd);
	if (child == 0) {
		kd_touch(&kd, BASE + PAGE, 1, KD_WRITE);
		_exit(0);
	}
	HERE(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	child = fork();
	if (child == 0) {
		HERE(kd_syscall(&kd, SYS_getpid, 0, 0, 0, 0, 0, 0) == -1 && errno == EPERM);
		_exit(0);
	}
	HERE(waitpid(child, &status, 0) == child && status == 0);
}

static void table(void)
{
	struct shadow_pte *memory = mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), copy[4];
	struct user_shadow_pt dest = { BASE - PAGE, BASE + 3 * PAGE, memory };
	unsigned char page[PAGE];
	int status;
	pid_t child;

	HERE(kd_shadowpt_close(&kd) == -1 && errno == EINVAL);
	HERE(kd_shadowpt_open(&kd, getpid(), NULL, KD_LAYOUT_F24, 0) == -1 && errno == EFAULT);
	HERE(kd_shadowpt_open(&kd, getpid(), &dest, (enum kd_layout)7, 0) == -1 && errno == EINVAL);
	HERE(kd_shadowpt_open(&kd, getpid(), &dest, KD_LAYOUT_F24, 0) == 0 && dest.entries == memory);
	HERE(kd_shadowpt_open(&kd, getpid(), &dest, KD_LAYOUT_F24, 0) == -1 && errno == EBUSY);
	HERE(memory[1].vaddr == 0 && kd_shadowpt_start(&kd) == 0);
	HERE(memory[1].vaddr == BASE && memory[1].state_flags == 7 && memory[0].state_flags == 0);
	HERE(kd_snapshot(&kd, copy, sizeof(copy)) == 0 && memcmp(copy, memory, sizeof(copy)) == 0);
	HERE(kd_snapshot(&kd, copy, 2 * PAGE) == -1 && errno == EINVAL);
	HERE(kd_shadowpt_page_contents(&kd, memory[1].pfn, page) == 0 && memcmp(page + 9, "hello", 5) == 0);
	HERE(kd_shadowpt_page_contents(&kd, 0, page) == -1 && errno == EINVAL);
	map(BASE + PAGE, 1);
	HERE(memory[2].state_flags == 3 && kd_shadowpt_stop(&kd) == 0);
	child = fork();
	if (child == 0) {
		/* A write to the kernel's table is a real SIGSEGV. */
		signal(SIGSEGV, SIG_DFL);
		*(volatile unsigned long *)&memory[0].pfn = 1;
		_exit(0);
	}
	HERE(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	HERE(kd_shadowpt_close(&kd) == 0 && memory[1].vaddr == 0);
	memory[0].pfn = 5;
	HERE(kd_shadowpt_close(&kd) == -1 && errno == EINVAL && memory[0].pfn == 5);
	/* What the program has put in the table's place is left alone by close. */
	HERE(munmap(memory, PAGE) == 0);
	dest.entries = mmap(memory, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	HERE(kd_shadowpt_open(&kd, getpid(), &dest, KD_LAYOUT_F24, 0) == 0 && munmap(dest.entries, PAGE) == 0);
	HERE(mmap(dest.entries, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == dest.entries);
	dest.entries[0].pfn = 77;
	HERE(kd_shadowpt_close(&kd) == 0 && dest.entries[0].pfn == 77);
}

int main(void)
{
	char long_path[200];
	int before, after;

	memset(long_path, 'x', sizeof(long_path));
	long_path[199] = 0;
	HERE(kd_connect(&kd, long_path) == -1 && errno == ENAMETOOLONG);
	HERE(kd_connect(&kd, "/nonexistent/kerneld.sock") == -1 && errno == ENOENT);
	HERE(kd_syscall(&kd, SYS_getpid, 0, 0, 0, 0, 0, 0) == -1 && errno == ENOTCONN);
	before = dup(0);
	HERE(kd_connect(&kd, NULL) == 0);
	calls();
	batches();
	signals();
	keys();
	forks();
	table();
	kd_disconnect(&kd);
	after = dup(0);
	HERE(after == before + 1);
	return 0;
}
