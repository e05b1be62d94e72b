"""The user-space API: numbers, flags, structures and limits, with Linux's (x86-64, v6.8) names and values.

One module a header: `syscalls` (asm/unistd_64.h), `mman` (linux/mman.h), `signals` (asm-generic/siginfo.h), `resource`
(asm-generic/resource.h), `shadowpt` (linux/shadowpt.h), `page` (asm/page_types.h).
"""
