/* What a program sees of the names of descriptors under /proc. */
#pragma once
#include "../native.h"

void hide_name(struct thread *t, char *path, int directory);
long view_link(struct thread *t, const char *path, int directory, char *to, long room);
int getdents_call(struct thread *t, const u64 *args, long nr, long *ret);
