/* What the host's system calls read and write of the program's memory; the table is in args.c. */
#pragma once
#include "../native.h"

/* BYTES: so many. BITS: so many bits as an argument says, in words. BY: an argument's value times so many bytes. DATA: so
 * many as an argument says, of a buffer. GOT: room for as many, of which the result says how many have
 * been written. AT: as many as the word says that another argument, which must be named before, points at.
 * PAGES: iovecs, whose pages the host keeps. NAME: a string, of which only so many bytes are read. MSGBUF: a System V message, the length of whose text an argument says. */
enum how { NONE, BYTES, BITS, BY, DATA, GOT, AT, STRING, NAME, IOVECS, MSGHDR, MMSGHDR, SIGMASK, MSGBUF, SIGEVENT, PAGES };
struct pointer { unsigned char how, argument, other, write; uint16_t bytes; };
#define MOST_POINTERS 5
struct row { uint16_t nr; unsigned char known; struct pointer pointers[MOST_POINTERS]; };

const struct row *find_row(long nr, const u64 *args, struct row *own);
int may_wait(long nr);
