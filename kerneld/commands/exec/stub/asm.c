/* What has to be written in the processor's own words: the entry, the way back from handlers, access to the program's
 * memory with a way out where a page cannot be had. */
#include "native.h"

__asm__(".text\n"
	".globl _start\n"
	"_start:\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call start_main\n"
	"	hlt\n"
	/* The handlers' restorer: the host's sigreturn. */
	".globl stub_restorer\n"
	"stub_restorer:\n"
	"	mov $15, %eax\n"
	"	syscall\n"
	/* A thread or a program begins: all that it has to do is in the frame that rsp points behind. */
	".globl begin_with_frame\n"
	"begin_with_frame:\n"
	"	mov %rdi, %rsp\n"
	"	mov $15, %eax\n"
	"	syscall\n"
	"	hlt\n"
	/* run_on(stack, function, argument): never comes back. */
	".globl run_on\n"
	"run_on:\n"
	"	mov %rdi, %rsp\n"
	"	mov %rdx, %rdi\n"
	"	xor %ebp, %ebp\n"
	"	call *%rsi\n"
	"	hlt\n"
	/* clone_on(flags, stack, ptid, ctid, tls, function): the child calls function on its stack, with what lies there. */
	".globl clone_on\n"
	"clone_on:\n"
	"	mov %rcx, %r10\n"
	"	mov $56, %eax\n"
	"	syscall\n"
	"	test %rax, %rax\n"
	"	jz 1f\n"
	"	ret\n"
	"1:	xor %ebp, %ebp\n"
	"	mov (%rsp), %rdi\n"
	"	call *%r9\n"
	"	hlt\n"
	/* clone3_on(arguments, size, function): the same by clone3(). */
	".globl clone3_on\n"
	"clone3_on:\n"
	"	mov %rdx, %r8\n"
	"	mov $435, %eax\n"
	"	syscall\n"
	"	test %rax, %rax\n"
	"	jz 1f\n"
	"	ret\n"
	"1:	xor %ebp, %ebp\n"
	"	mov (%rsp), %rdi\n"
	"	call *%r8\n"
	"	hlt\n"
	".globl user_access_start\n"
	"user_access_start:\n"
	".globl bare_user_copy\n"
	"bare_user_copy:\n"
	/* Where the target lies up to 63 bytes behind the source, modulo a page, AMD's processors copy byte after byte. */
	"	mov %edi, %eax\n"
	"	sub %esi, %eax\n"
	"	test $0xfc0, %eax\n"
	"	jz 1f\n"
	"	mov %rdx, %rcx\n"
	"	rep movsb\n"
	"	xor %eax, %eax\n"
	"	ret\n"
	"1:	mov %rdx, %rcx\n"
	"	shr $3, %rcx\n"
	"	rep movsq\n"
	"	mov %edx, %ecx\n"
	"	and $7, %ecx\n"
	"	rep movsb\n"
	"	xor %eax, %eax\n"
	"	ret\n"
	".globl bare_user_strlen\n"
	"bare_user_strlen:\n"
	"	xor %eax, %eax\n"
	"1:	cmpb $0, (%rdi,%rax)\n"
	"	je 2f\n"
	"	inc %rax\n"
	"	jmp 1b\n"
	"2:	ret\n"
	".globl bare_touch_read\n"
	"bare_touch_read:\n"
	"	movb (%rdi), %al\n"
	"	xor %eax, %eax\n"
	"	ret\n"
	".globl bare_touch_write\n"
	"bare_touch_write:\n"
	"	lock orb $0, (%rdi)\n"
	"	xor %eax, %eax\n"
	"	ret\n"
	".globl user_access_end\n"
	"user_access_end:\n"
	".globl user_access_failed\n"
	"user_access_failed:\n"
	"	mov $-1, %rax\n"
	"	ret\n");

void *memcpy(void *to, const void *from, size_t length)
{
	void *start = to;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
	return start;
}

void *memset(void *to, int value, size_t length)
{
	void *start = to;
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
	return start;
}

extern long bare_user_copy(void *to, const void *from, u64 length), bare_user_strlen(const char *text);
extern long bare_touch_read(const void *p), bare_touch_write(void *p);

/* The accesses for a system call ask the program's PKRU. */
long user_copy(void *to, const void *from, u64 length)
{
	keys_open(this_thread());
	long ret = bare_user_copy(to, from, length);
	keys_close(this_thread());
	return ret;
}

long user_strlen(const char *text)
{
	keys_open(this_thread());
	long ret = bare_user_strlen(text);
	keys_close(this_thread());
	return ret;
}

/* Have every page of a range in the TLB, as far as that goes; -1 where it does not go to its end. */
long touch(u64 start, u64 length, int write)
{
	if (!length)
		return 0;
	u64 last = start + length - 1;
	if (last < start || last >= USER_END)
		last = USER_END - 1;
	long ret = 0;
	keys_open(this_thread());
	for (u64 p = start; p <= last && !ret; p = (p & -PAGE_BYTES) + PAGE_BYTES)
		ret = write ? bare_touch_write((void *)p) : bare_touch_read((void *)p);
	keys_close(this_thread());
	return ret;
}
