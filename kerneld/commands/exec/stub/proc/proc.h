/* Views of files of /proc and /sys: proc.c has the descriptors, proc_text.c what is read by them. */
#pragma once
#include "../native.h"

#define MOST_NAME 128		/* of the host's for a file */
#define MOST_VALUE 0xf000UL	/* bytes that are written to a setting at once */

/* WHOLE: kerneld's. SETTING: likewise, and it may be written. STATUS, STAT, LIMITS: mixed. PAGEMAP and MEM are read piece by
 * piece. MISSING: there is no such file. */
enum kind { NO_FILE, WHOLE, SETTING, PAGEMAP, STATUS, STAT, LIMITS, MEM, MISSING };

int starts(const char *text, const char *with);
int is(const char *a, const char *b);
int is_of_system(int fd);	/* it is a file of /proc or /sys */
long name_of(int fd, char *name, long room);
long view_name(const char *memory_file, char *to, long room);	/* the host's name of the file that a view stands for; its length, 0 for no view */
char *value_buffer(struct thread *t);	/* where ask_write() finds what is to be written */
long ask_write(struct thread *t, const char *path, u64 offset, u64 length);
u64 host_kilobytes(const char *name);	/* a line of the host's meminfo */
void write_file(struct thread *t, int fd, enum kind kind, const char *path, const char *host);	/* kerneld's and the host's path */
