/* The gate, for those calls that need more than copies of what their pointers name. */
#pragma once
#include "args.h"

extern const struct row no_pointers;
/* Have the gate make a call on copies; `needs_stub`: it comes back to the stub behind the call. */
void pass_copied(struct thread *t, struct ucontext *uc, long nr, const u64 *args, const u64 *copies, int needs_stub);
long user_call(struct thread *t, long nr, const u64 *args);

/* futex.c */
#define NR_futex_waitv 449
void futex_call(struct thread *t, struct ucontext *uc, long nr, const u64 *args);
int has_lost_futex(struct thread *t, const struct ucontext *uc);
void set_shared_futex(struct thread *t, u64 address, u64 length);

/* vmsplice.c */
#define NR_vmsplice 278
void vmsplice_call(struct thread *t, struct ucontext *uc, const u64 *args);
