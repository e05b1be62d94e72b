/* Vector and tile registers are live while pages come, a handler runs, and a child is made. */
#include <asm/prctl.h>
#include <cpuid.h>
#include <immintrin.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGES 32
#define TILE_DATA 18

static char *fresh(void)
{
	return mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static char *page;

/* The handler spoils every vector register that it can, and repairs. */
__attribute__((target("avx2"))) static void repair(int signo)
{
	(void)signo;
	__asm__ volatile("vpcmpeqd %%ymm0, %%ymm0, %%ymm0\n vpxor %%ymm1, %%ymm1, %%ymm1\n"
			 "vpxor %%ymm7, %%ymm7, %%ymm7\n vpxor %%ymm15, %%ymm15, %%ymm15" ::: "xmm0", "xmm1", "xmm7", "xmm15");
	mprotect(page, 4096, PROT_READ | PROT_WRITE);
}

/* Load, fault in many ways, store: in one asm statement, so that the compiler keeps nothing elsewhere. */
#define ROUND(register, bytes, move)                                                                                  \
	do {                                                                                                          \
		char *memory = fresh();                                                                               \
		unsigned char in[bytes], out[bytes];                                                                  \
		page = fresh();                                                                                       \
		mprotect(page, 4096, PROT_NONE);                                                                      \
		for (int i = 0; i < bytes; i++)                                                                       \
			in[i] = i * 7 + 1;                                                                            \
		__asm__ volatile(move " %[in], %%" register "\n"                                                      \
				 "mov %[memory], %%rcx\n"                                                             \
				 "1: " move " %%" register ", 8(%%rcx)\n" /* faults */                                \
				 "add $4096, %%rcx\n"                                                                 \
				 "cmp %[end], %%rcx\n"                                                                \
				 "jb 1b\n"                                                                            \
				 "movb $1, (%[page])\n" /* SIGSEGV, which repairs */                                  \
				 "mov $39, %%eax\n"                                                                   \
				 "syscall\n"                                                                          \
				 move " %%" register ", %[out]"                                                       \
				 : [out] "=m"(out)                                                                    \
				 : [in] "m"(in), [memory] "r"(memory), [end] "r"(memory + PAGES * 4096), [page] "r"(page) \
				 : "rax", "rcx", "r11", "memory");                                                    \
		printf("%s %s, in memory %s\n", register, memcmp(in, out, bytes) ? "lost" : "kept",                   \
		       memcmp(in, memory + 5 * 4096 + 8, bytes) ? "lost" : "kept");                                   \
	} while (0)

static void tiles(void)
{
	static unsigned char in[1024], out[1024];
	struct { unsigned char palette, start, reserved[14]; unsigned short columns[16]; unsigned char rows[16]; } shape = {1};
	unsigned eax, ebx, ecx, edx;
	if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx >> 24 & 1) ||
	    syscall(SYS_arch_prctl, 0x1023, TILE_DATA)) {
		printf("no tiles\n");
		return;
	}
	char *memory = fresh();
	shape.columns[0] = 64;
	shape.rows[0] = 16;
	for (int i = 0; i < 1024; i++)
		in[i] = i * 3 + 1;
	__asm__ volatile(".byte 0xc4,0xe2,0x78,0x49,0x00" : : "a"(&shape) : "memory");		/* ldtilecfg (rax) */
	__asm__ volatile(".byte 0xc4,0xe2,0x7b,0x4b,0x04,0x18" : : "a"(in), "b"(64L) : "memory");	/* tileloadd (rax,rbx), tmm0 */
	memset(memory, 5, PAGES * 4096);
	page = fresh();
	mprotect(page, 4096, PROT_NONE);
	*(volatile char *)page = 1;
	__asm__ volatile(".byte 0xc4,0xe2,0x7a,0x4b,0x04,0x18" : : "a"(out), "b"(64L) : "memory");	/* tilestored tmm0, (rax,rbx) */
	__asm__ volatile(".byte 0xc4,0xe2,0x78,0x49,0xc0");					/* tilerelease */
	printf("tiles %s\n", memcmp(in, out, 1024) ? "lost" : "kept");
}

int main(void)
{
	int status;
	signal(SIGSEGV, repair);
	setvbuf(stdout, 0, _IONBF, 0);
	ROUND("xmm7", 16, "movdqu");
	if (__builtin_cpu_supports("avx2")) {
		ROUND("ymm0", 32, "vmovdqu");
		ROUND("ymm15", 32, "vmovdqu");
	}
	if (__builtin_cpu_supports("avx512f"))
		ROUND("zmm31", 64, "vmovdqu64");
	tiles();
	if (!fork()) {
		if (__builtin_cpu_supports("avx2"))
			ROUND("ymm7", 32, "vmovdqu");
		_exit(3);
	}
	wait(&status);
	printf("child %d\n", WEXITSTATUS(status));
	return 0;
}
