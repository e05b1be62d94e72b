/*
 * linux/shadowpt.h: fall 2025, part 1: calls 467 and 468.
 *
 *     long shadowpt_open(pid_t target, void *dest, size_t size);
 *     long shadowpt_close(void);
 *
 * open maps `size` bytes, whole pages, over untouched memory at `dest`. Each page fault of the target, also one that
 * ends in SIGSEGV, stores its address there, at index (vaddr % size) / sizeof(unsigned long). close gives memory back.
 */
#ifndef _UAPI_LINUX_SHADOWPT_H
#define _UAPI_LINUX_SHADOWPT_H

/* The numbers of the system calls, for syscall(2) */
#ifndef __NR_shadowpt_open
#define __NR_shadowpt_open 467
#endif
#ifndef __NR_shadowpt_close
#define __NR_shadowpt_close 468
#endif

/*
 * The same numbers under the names that programs have for them, and the size of a page. Constants and not macros: a
 * program may #define any of them itself, before this header or after it, whatever it writes for the value. All are of
 * one enumeration: compilers warn where constants of two are compared.
 */
enum {
#ifndef SYS_shadowpt_open
	SYS_shadowpt_open = __NR_shadowpt_open,
#endif
#ifndef SYS_shadowpt_close
	SYS_shadowpt_close = __NR_shadowpt_close,
#endif
#ifndef NR_shadowpt_open
	NR_shadowpt_open = __NR_shadowpt_open,
#endif
#ifndef NR_shadowpt_close
	NR_shadowpt_close = __NR_shadowpt_close,
#endif
#ifndef PAGE_SIZE
	PAGE_SIZE = 4096,
#endif
	SPT_PAGE_SHIFT = 12
};

/* Convenience */
#define SPT_PAGE_SIZE 4096UL
/* Where a table of `size` bytes has a fault at `vaddr` */
#define SPT_FAULT_INDEX(vaddr, size) (((vaddr) % (size)) / sizeof(unsigned long))

#endif /* _UAPI_LINUX_SHADOWPT_H */
