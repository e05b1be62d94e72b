/* The link exe of /proc: to the host each program inside is the stub. */
#include "proc.h"

/* The process whose link to its program a path in /proc is; 0 for another path. */
static u64 owner_of_exe(const char *path, u64 own)
{
	u64 pid = 0;
	if (starts(path, "self/"))
		return is(path + 5, "exe") ? own : 0;
	if (starts(path, "thread-self/"))
		return is(path + 12, "exe") ? own : 0;
	while (*path >= '0' && *path <= '9')
		pid = pid * 10 + (*path++ - '0');
	return *path == '/' && is(path + 1, "exe") ? pid : 0;
}

/* The host's link leads to the stub, which knows its program. What lets a process read the link lets it read memory too. */
long exe_of(const char *path, char *to)
{
	struct { u64 base, length; } from = {(u64)process.exe, EXE_BYTES}, into = {(u64)to, EXE_BYTES};
	if (!starts(path, "/proc/"))
		return 0;	/* most paths: no call of the host */
	u64 own = sys0(NR_getpid), pid = owner_of_exe(path + 6, own);
	to[0] = to[EXE_BYTES - 1] = 0;
	if (pid == own)
		memcpy(to, process.exe, EXE_BYTES);
	else if (!pid || sys6(NR_process_vm_readv, pid, (long)&into, 1, (long)&from, 1, 0) != EXE_BYTES)
		return 0;
	return to[0] == '/' ? string_length(to) : 0;
}
