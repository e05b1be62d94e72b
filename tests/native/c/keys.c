/* Protection keys: the calls, what PKRU denies the program and the kernel on its behalf, and PKRU across handlers, threads,
 * fork and execve; memory that can only be executed. On a processor without keys it says so. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096

static sigjmp_buf out;
static volatile unsigned in_handler;
static volatile int opens;	/* the handler opens the key in the frame, and the access is made again */

static unsigned rdpkru(void)
{
	unsigned value, high;
	__asm__ volatile(".byte 0x0f, 0x01, 0xee" : "=a"(value), "=d"(high) : "c"(0));
	return value;
}

static void wrpkru(unsigned value)
{
	__asm__ volatile(".byte 0x0f, 0x01, 0xef" : : "a"(value), "c"(0), "d"(0) : "memory");
}

static unsigned *pkru_in(ucontext_t *context)
{
	unsigned a, offset, c, d;
	__cpuid_count(0xd, 9, a, offset, c, d);
	return (unsigned *)((char *)context->uc_mcontext.fpregs + offset);
}

static void on_fault(int signo, siginfo_t *info, void *context)
{
	in_handler = rdpkru();
	printf("  signal %d code %d key %d, PKRU in the frame %#x\n", signo, info->si_code,
	       info->si_code == 4 ? (int)info->si_pkey : -1, *pkru_in(context));
	if (!opens)
		siglongjmp(out, 1);
	opens = 0;
	*pkru_in(context) = 0;
}

static void load(const char *what, volatile char *at)
{
	unsigned pkru = rdpkru();
	printf("load %s\n", what);
	if (!sigsetjmp(out, 1))
		printf("  %d\n", *at);
	wrpkru(pkru);
}

static void store(const char *what, volatile char *at)
{
	unsigned pkru = rdpkru();
	printf("store %s\n", what);
	if (!sigsetjmp(out, 1)) {
		*at = 7;
		printf("  done\n");
	}
	wrpkru(pkru);
}

static void result(const char *what, long ret)
{
	printf("%s: %ld %s\n", what, ret, ret < 0 ? strerror(errno) : "");
}

static void key_line(const char *what, const void *at)
{
	char line[256];
	unsigned long start = 0, end = 0, low, high;
	FILE *smaps = fopen("/proc/self/smaps", "r");
	while (fgets(line, sizeof line, smaps)) {
		if (sscanf(line, "%lx-%lx ", &low, &high) == 2)
			start = low, end = high;
		if ((unsigned long)at >= start && (unsigned long)at < end && !strncmp(line, "ProtectionKey", 13))
			printf("%s %s", what, line);
	}
	fclose(smaps);
}

static void execute_only(void)
{
	static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};	/* mov $42, %eax; ret */
	char *page = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int ends[2];
	memcpy(page, code, sizeof code);
	result("mprotect X", mprotect(page, PAGE, PROT_EXEC));
	printf("PKRU %#x, call %d\n", rdpkru(), ((int (*)(void))page)());
	key_line("X", page);
	load("X", page);
	store("X", page);
	printf("call %d\n", ((int (*)(void))page)());
	result("mlock X", mlock(page, PAGE));
	if (pipe(ends))
		exit(8);
	result("write X", write(ends[1], page, 4));
	wrpkru(0);
	load("X with PKRU 0", page);
	result("write X with PKRU 0", write(ends[1], page, 4));
	result("mmap X", -(mmap(0, PAGE, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED));
	printf("PKRU %#x\n", rdpkru());
	result("mprotect RX", mprotect(page, PAGE, PROT_READ | PROT_EXEC));
	load("RX", page);
	key_line("RX", page);
}

static void the_kernel_for_it(char *page, int key)
{
	unsigned all = rdpkru() & ~(3U << 2 * key), closed = all | 1U << 2 * key, unwritable = all | 2U << 2 * key;
	static char other[PAGE] = "hello";
	struct iovec local = {page, 8}, remote = {other, 8};
	int ends[2], *futex = (int *)page;
	if (pipe(ends))
		exit(8);
	wrpkru(all);
	*futex = 5;
	for (int i = 0; i < 3; i++) {
		wrpkru(i == 0 ? all : i == 1 ? unwritable : closed);
		printf("PKRU %#x\n", rdpkru());
		result("  write", write(ends[1], page, 6));
		result("  pread", pread(open("/proc/self/exe", 0), page, 4, 0));
		result("  pipe", write(ends[1], "abcdef", 6));
		result("  read", read(ends[0], page, 6));
		result("  getcwd", -(syscall(SYS_getcwd, page, PAGE) < 0));
		result("  wake", syscall(SYS_futex, futex, FUTEX_WAKE, 1, 0, 0, 0));
		result("  wait", syscall(SYS_futex, futex, FUTEX_WAIT, 5000, 0, 0, 0));
		result("  open", -(open(page, 0) < 0));
		result("  process_vm_readv", process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
		result("  sigprocmask", sigprocmask(SIG_BLOCK, 0, (sigset_t *)page));
		result("  populate", madvise(page, PAGE, 23));
		result("  mlock", mlock(page, PAGE));
	}
	wrpkru(all);
}

static void *thread(void *page)
{
	printf("thread: PKRU %#x\n", rdpkru());
	load("in a thread", page);
	wrpkru(0);
	load("in a thread that opens it", page);
	return 0;
}

static void with_a_key(char **argv)
{
	pthread_t id;
	int status, key = pkey_alloc(0, 0);
	char *page = mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	result("pkey_alloc", key);
	printf("PKRU %#x\n", rdpkru());
	page[0] = page[PAGE] = 9;
	result("pkey_mprotect", pkey_mprotect(page, 2 * PAGE, PROT_READ | PROT_WRITE, key));
	key_line("keyed", page);
	load("open", page);
	store("open", page + 1);
	wrpkru(rdpkru() | 2U << 2 * key);
	load("without writing", page);
	store("without writing", page + 1);
	wrpkru(rdpkru() | 1U << 2 * key);
	load("closed", page);
	load("closed, never touched", page + 2 * PAGE - 1);
	load("behind it", page + 2 * PAGE);
	printf("in the handler: PKRU %#x\n", in_handler);
	opens = 1;
	printf("the handler opens it: %d, PKRU %#x\n", *(volatile char *)page, rdpkru());
	wrpkru(0x55555554);
	pthread_create(&id, 0, thread, page);
	pthread_join(id, 0);
	printf("after the thread: PKRU %#x\n", rdpkru());
	fflush(stdout);
	if (!fork()) {
		printf("child: PKRU %#x\n", rdpkru());
		load("in the child", page);
		wrpkru(0);
		load("in the child that opens it", page);
		store("in the child that opens it", page);
		fflush(stdout);
		execl("/proc/self/exe", argv[0], "again", (char *)0);
		_exit(9);
	}
	wait(&status);
	printf("child's status %d\n", status);
	wrpkru(0x55555554);
	the_kernel_for_it(page, key);
	result("pkey_free", pkey_free(key));
	key_line("freed", page);
	result("pkey_mprotect of the freed", pkey_mprotect(page, PAGE, PROT_READ, key));
	wrpkru(0x55555554);
	load("whose key is freed", page);
	result("pkey_mprotect to 0", pkey_mprotect(page, PAGE, PROT_READ, 0));
	load("with key 0 again", page);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
	int key, count = 0, sum = 0;
	setvbuf(stdout, 0, _IOFBF, 1 << 16);
	key = pkey_alloc(0, 0);
	if (key < 0) {
		printf("no keys\n");
		return 0;
	}
	pkey_free(key);
	if (argc > 1) {
		printf("after execve: key %d, PKRU %#x\n", key, rdpkru());
		return 0;
	}
	wrpkru(0x55555554);
	sigaction(SIGSEGV, &action, 0);
	execute_only();
	with_a_key(argv);
	while ((key = pkey_alloc(0, 3)) > 0)
		count++, sum += key;
	result("no key left", key);
	printf("%d keys, sum %d, PKRU %#x\n", count, sum, rdpkru());
	return 0;
}
