/* Files of /proc: proc.c has the descriptors, proc_text.c what is read by them. */
#pragma once
#include "native.h"

/* WHOLE: kerneld's. STATUS, STAT, LIMITS: mixed. PAGEMAP and MEM are read piece by piece. MISSING: there is no such file. */
enum kind { NO_FILE, WHOLE, PAGEMAP, STATUS, STAT, LIMITS, MEM, MISSING };

int starts(const char *text, const char *with);
struct answer ask_file(struct thread *t, const char *path, u64 offset, u64 length);
void write_file(struct thread *t, int fd, enum kind kind, const char *path);
int sysinfo_call(struct thread *t, const u64 *args, long *ret);
