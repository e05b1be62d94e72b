/* The memory calls: they go to kerneld, whose they are. What Linux reads from the caller's memory travels with the
 * request; what it writes there is copied from the answer. */
#include "../native.h"

#define MAP_FIXED 0x10
#define MMAP_SAME_FILE 0x100000000UL
#define MAP_ANONYMOUS 0x20
#define IOVEC_BYTES 16
#define RLIMIT_NOFILE 7
#define MAX_IOVECS 1024
#define IPC_SET 1
#define SHMID_DS_BYTES 112
#define MINCORE_PAGES 0x10000UL
#define MOST_NODES 32768UL

static long finish(struct thread *t, const struct answer *answer)
{
	(void)t;
	if (answer->signo)
		end_by_sigkill();	/* kerneld has ended the process: the OOM killer, or an oops */
	return answer->ret;
}

/* vfork's child has another program by now, or has ended, before kerneld knows: what is dropped is this thread's alone. */
static void tell_of_child(struct thread *t)
{
	u64 args[6] = {CLONE_LEFT, t->left_child};
	if (t->left_child)
		ask(t, KD_CLONE, args, 0, 0, -1);
	t->left_child = 0;
}

static long call(struct thread *t, long nr, const u64 *args, const void *data, u64 length, int fd)
{
	keys_before_call(t);
	tell_of_child(t);
	t->is_killable = process.has_userfaultfds || nr == NR_process_vm_readv || nr == NR_process_vm_writev;
	struct answer answer = ask(t, nr, args, data, length, fd);
	t->is_killable = 0;
	return finish(t, &answer);
}

/* The loader maps one file segment by segment: kerneld compares the descriptor with the file that was mapped last, and none
 * is sent. It may be another file's by now, or the host may not compare them: ESTALE. */
static long map_same_file(struct thread *t, const u64 *args)
{
	u64 same[6];
	memcpy(same, args, sizeof same);
	same[4] = (u32)args[4] | MMAP_SAME_FILE;
	return call(t, NR_mmap, same, 0, 0, -1);
}

static long do_mmap(struct thread *t, const u64 *args)
{
	long ret;
	if (args[3] & MAP_FIXED)
		table_replaced(args[0], args[1]);
	if (args[3] & MAP_ANONYMOUS)
		return call(t, NR_mmap, args, 0, 0, -1);
	if (args[3] & MAP_FIXED && (int)args[4] == t->mapped_fd && ring_is_watched(t)) {
		ret = map_same_file(t, args);
		if (ret != -ESTALE)
			return ret;
		process.is_not_compared = 1;
	}
	long of_proc = proc_real_file(args[4]);
	ret = call(t, NR_mmap, args, 0, 0, of_proc >= 0 ? (int)of_proc : (int)args[4]);
	if (of_proc >= 0)
		sys1(NR_close, of_proc);
	t->mapped_fd = of_proc < 0 && !process.is_not_compared ? (int)args[4] : -1;
	return ret;
}

static long do_mincore(struct thread *t, const u64 *given)
{
	u64 args[6], pages = (given[1] + PAGE_BYTES - 1) / PAGE_BYTES;
	memcpy(args, given, sizeof args);
	for (u64 done = 0; done < pages || !done; done += MINCORE_PAGES) {
		u64 count = pages - done < MINCORE_PAGES ? pages - done : MINCORE_PAGES;
		args[0] = given[0] + done * PAGE_BYTES;
		args[1] = pages <= MINCORE_PAGES ? given[1] : count * PAGE_BYTES;
		struct answer answer = ask(t, NR_mincore, args, 0, 0, -1);
		if (answer.ret < 0)
			return answer.ret;
		if (user_copy((void *)(given[2] + done), answer.data, answer.length))
			return -EFAULT;
		if (!count)
			break;
	}
	return 0;
}

/* process_vm_readv, process_vm_writev; their iovecs are read as Linux reads them, first ours, then the other's. */
static long do_vm_rw(struct thread *t, long nr, const u64 *args)
{
	u64 local = args[2], remote = args[4];
	if (local > MAX_IOVECS || remote > MAX_IOVECS)
		return -EINVAL;
	if (user_copy(t->buffer, (void *)args[1], local * IOVEC_BYTES) ||
	    user_copy(t->buffer + local * IOVEC_BYTES, (void *)args[3], remote * IOVEC_BYTES))
		return -EFAULT;
	return call(t, nr, args, t->buffer, (local + remote) * IOVEC_BYTES, -1);
}

static long do_process_madvise(struct thread *t, const u64 *args)
{
	if (args[2] > MAX_IOVECS)
		return -EINVAL;
	if (user_copy(t->buffer, (void *)args[1], args[2] * IOVEC_BYTES))
		return -EFAULT;
	return call(t, NR_process_madvise, args, t->buffer, args[2] * IOVEC_BYTES, args[0]);
}

/* What a command reads and writes is a structure: only IPC_SET reads one. */
static long do_shmctl(struct thread *t, const u64 *args)
{
	int is_set = (int)args[1] == IPC_SET;
	char status[SHMID_DS_BYTES];
	if (is_set && user_copy(status, (void *)args[2], sizeof status))
		return -EFAULT;
	struct answer answer = ask(t, NR_shmctl, args, status, is_set ? sizeof status : 0, -1);
	if (answer.ret >= 0 && answer.length && user_copy((void *)args[2], answer.data, answer.length))
		return -EFAULT;
	return finish(t, &answer);
}

/* The limits of memory are kerneld's, the others the host's: DATA 2, STACK 3, RSS 5 (it is only shown), MEMLOCK 8, AS 9. */
static int is_memory_limit(u64 resource)
{
	return resource == 2 || resource == 3 || resource == 5 || resource == 8 || resource == 9;
}

static long do_prlimit(struct thread *t, u64 pid, u64 resource, u64 new, u64 old)
{
	u64 pair[2], args[6] = {pid, resource, new, old};
	if (new && user_copy(pair, (void *)new, sizeof pair))
		return -EFAULT;
	struct answer answer = ask(t, NR_prlimit64, args, pair, new ? sizeof pair : 0, -1);
	if (answer.ret < 0)
		return answer.ret;
	return old && user_copy((void *)old, answer.data, sizeof pair) ? -EFAULT : 0;
}

static int limit_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	u64 resource = nr == NR_prlimit64 ? args[1] : args[0];
	int is_own = nr != NR_prlimit64 || !args[0] || args[0] == (u64)sys0(NR_getpid);
	if ((resource & 0xffffffff) == RLIMIT_NOFILE && is_own) {
		u64 new = nr == NR_prlimit64 ? args[2] : nr == NR_setrlimit ? args[1] : 0;
		u64 old = nr == NR_prlimit64 ? args[3] : nr == NR_getrlimit ? args[1] : 0;
		*ret = nr != NR_prlimit64 && !args[1] ? -EFAULT : descriptor_limit(new, old);
		return 1;
	}
	if (!is_memory_limit(resource & 0xffffffff))
		return 0;
	if (nr == NR_prlimit64)
		*ret = do_prlimit(t, args[0], resource, args[2], args[3]);
	else if (nr == NR_getrlimit)
		*ret = args[1] ? do_prlimit(t, 0, resource, 0, args[1]) : -EFAULT;
	else
		*ret = args[1] ? do_prlimit(t, 0, resource, args[1], 0) : -EFAULT;
	return 1;
}

/* getrusage(): the times are the host's, the faults and the most memory kerneld's. Of children all is the host's. */
static long do_getrusage(struct thread *t, const u64 *args)
{
	u64 usage[18], given[6] = {args[0]};
	long ret = sys2(NR_getrusage, args[0], usage);
	if (ret)
		return ret;
	struct answer answer = ask(t, NR_getrusage, given, 0, 0, -1);
	if (!answer.ret) {
		const u64 *ours = (const u64 *)answer.data;
		usage[4] = ours[0];
		usage[8] = ours[1];
		usage[9] = ours[2];
	}
	return user_copy((void *)args[1], usage, sizeof usage) ? -EFAULT : 0;
}

/* A mask of nodes travels in words; one that cannot be read is missed by kerneld, in Linux's order of checks. */
static long set_policy(struct thread *t, long nr, const u64 *args, u64 mask, u64 maxnode)
{
	u64 bytes = (maxnode - 1 + 63) / 64 * 8;
	int is_sent = mask && maxnode - 1 <= MOST_NODES && !user_copy(t->buffer, (void *)mask, bytes);
	return call(t, nr, args, t->buffer, is_sent ? bytes : 0, -1);
}

/* The mask that is told has one word; a longer one is cleared behind it. Source: Linux v6.8 mm/mempolicy.c:copy_nodes_to_user(). */
static long do_get_mempolicy(struct thread *t, const u64 *args)
{
	struct answer answer = ask(t, NR_get_mempolicy, args, 0, 0, -1);
	u64 told[2], bytes = (args[2] - 1 + 63) / 64 * 8;
	static const char zeros[PAGE_BYTES];
	if (answer.ret < 0)
		return answer.ret;
	memcpy(told, answer.data, sizeof told);
	if (args[0] && user_copy((void *)args[0], told, 4))
		return -EFAULT;
	if (!args[1])
		return 0;
	if (bytes > PAGE_BYTES)
		return -EINVAL;
	if (bytes > 8 && user_copy((void *)(args[1] + 8), zeros, bytes - 8))
		return -EFAULT;
	return bytes && user_copy((void *)args[1], &told[1], 8) ? -EFAULT : 0;
}

static int make_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	switch (nr) {
	case NR_mmap:
		*ret = do_mmap(t, args);
		return 1;
	case NR_mremap:
		table_replaced(args[0], args[1]);
		*ret = call(t, nr, args, 0, 0, -1);
		return 1;
	case NR_munmap:
		table_replaced(args[0], args[1]);
		/* fall through */
	case NR_shmget: case NR_shmat: case NR_shmdt: case NR_mprotect: case NR_brk: case NR_msync: case NR_remap_file_pages: case NR_madvise: case NR_mlock: case NR_munlock:
	case NR_mlockall: case NR_munlockall: case NR_mlock2:
	case NR_pkey_alloc: case NR_pkey_free: case NR_pkey_mprotect:
		*ret = call(t, nr, args, 0, 0, -1);
		return 1;
	case NR_mbind:
		*ret = set_policy(t, nr, args, args[3], args[4]);
		return 1;
	case NR_set_mempolicy:
		*ret = set_policy(t, nr, args, args[1], args[2]);
		return 1;
	case NR_get_mempolicy:
		*ret = do_get_mempolicy(t, args);
		return 1;
	case NR_shmctl:
		*ret = do_shmctl(t, args);
		return 1;
	case NR_mincore:
		*ret = do_mincore(t, args);
		return 1;
	case NR_process_vm_readv: case NR_process_vm_writev:
		*ret = do_vm_rw(t, nr, args);
		return 1;
	case NR_process_madvise:
		*ret = do_process_madvise(t, args);
		return 1;
	case NR_getrusage:
		*ret = do_getrusage(t, args);
		return 1;
	case NR_userfaultfd: case NR_ioctl:
		return userfault_call(t, args, nr, ret);
	case NR_getrlimit: case NR_setrlimit: case NR_prlimit64:
		return limit_call(t, args, nr, ret);
	}
	return 0;
}

/* Make a call that is kerneld's: 1 and its result, or 0 where it is none. */
int memory_call(struct thread *t, struct ucontext *uc, const u64 *args, long nr, long *ret)
{
	if (!make_call(t, args, nr, ret))
		return 0;
	keys_after_call(t, uc, nr, args, *ret);
	return 1;
}
