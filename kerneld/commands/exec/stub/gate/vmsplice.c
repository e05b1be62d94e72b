/* vmsplice(2). A pipe gets pages of their own with what the program's pages say now: the program's may be taken away while the
 * pipe still has them. The call is the host's, so as many pages go in as the pipe has places, and it waits as it does. */
#include "gate.h"

#define F_GETFL 3
#define O_ACCMODE 3

void vmsplice_call(struct thread *t, struct ucontext *uc, const u64 *args)
{
	static const struct row gives = {NR_vmsplice, 1, {{PAGES, 1, 2, 0, 0}}}, takes = {NR_vmsplice, 1, {{IOVECS, 1, 2, 1, 0}}};
	long flags = sys3(NR_fcntl, args[0], F_GETFL, 0);
	u64 copies[6];
	memcpy(copies, args, sizeof copies);
	bounce_in(t, flags >= 0 && !(flags & O_ACCMODE) ? &takes : &gives, copies);
	pass_copied(t, uc, NR_vmsplice, args, copies, 1);
}
