/* The stub's descriptors are nobody's: /proc/PID/fd and /proc/PID/fdinfo of a program inside do not list them, and there are no
 * such names. And the link of a view (proc.c) leads to what it stands for. */
#include "hidden.h"
#include "proc.h"

#define NR_getdents 78
#define NR_getdents64 217
#define MOST_FULL 256

static const char *behind(const char *path, const char *with)
{
	return starts(path, with) ? path + string_length(with) : 0;
}

/* What is behind the directory of descriptors of a program inside, in an absolute path; 0 for another path. */
static const char *behind_directory(struct thread *t, const char *path)
{
	char statm[MOST_NAME];
	const char *p = behind(path, "/proc/"), *at;
	u64 length = 0;
	if ((at = behind(path, "/dev/fd")))
		return !*at || *at == '/' ? at : 0;
	if (!p)
		return 0;
	if ((at = behind(p, "self/")) || (at = behind(p, "thread-self/"))) {
		p = at;
	} else {
		for (; p[length] >= '0' && p[length] <= '9' && length < 10; length++)
			statm[length] = p[length];
		memcpy(statm + length, "/statm", 7);
		if (!length || p[length] != '/')
			return 0;
		p += length + 1;
	}
	if ((at = behind(p, "task/"))) {
		for (p = at; *p >= '0' && *p <= '9';)
			p++;
		if (*p++ != '/')
			return 0;
	}
	at = (at = behind(p, "fdinfo")) ? at : behind(p, "fd");
	if (!at || (*at && *at != '/'))
		return 0;
	return length && ask_file(t, statm, 0, 8).ret < 0 ? 0 : at;
}

/* The number that a name of a descriptor is; -1 for another name. */
static long number_of(const char *name)
{
	long number = 0, digits = 0;
	for (; name[digits] >= '0' && name[digits] <= '9' && digits < 10; digits++)
		number = number * 10 + (name[digits] - '0');
	return digits && !name[digits] ? number : -1;
}

static const char *last_name(const char *path)
{
	const char *last = path;
	for (; *path; path++)
		last = *path == '/' ? path + 1 : last;
	return last;
}

/* Whether a path, from a directory's descriptor, is that of a descriptor of a program inside. */
static int is_descriptor(struct thread *t, const char *path, int directory)
{
	char full[MOST_FULL];
	u64 length = string_length(path), before = 0;
	const char *name;
	if (*path != '/') {
		if (directory != AT_FDCWD)
			before = name_of(directory, full, MOST_FULL);
		else if ((long)(before = sys3(NR_readlink, "/proc/self/cwd", full, MOST_FULL)) < 0)
			return 0;
		if (!before || before + length + 2 > MOST_FULL)
			return 0;
		full[before++] = '/';
	}
	if (before + length + 1 > MOST_FULL)
		return 0;
	memcpy(full + before, path, length + 1);
	name = behind_directory(t, full);
	return name && *name == '/' && last_name(name) == name + 1;
}

/* Spoil a path that names a descriptor of the stub: there is no such name. */
void hide_name(struct thread *t, char *path, int directory)
{
	char *name = (char *)last_name(path);
	long number = number_of(name);
	if (number >= 0 && is_hidden(number) && is_descriptor(t, path, directory))
		*name = 'x';
}

/* readlink() of the descriptor of a view: the length of the name of the host's file; 0 for another link. */
long view_link(struct thread *t, const char *path, int directory, char *to, long room)
{
	char real[MOST_FULL];
	if (number_of(last_name(path)) < 0 || !is_descriptor(t, path, directory))
		return 0;
	long length = sys4(NR_readlinkat, directory, path, real, MOST_FULL - 1);
	if (length <= 0)
		return 0;
	real[length] = 0;
	return view_name(real, to, room);
}

/* Drop what is hidden from a list of names in a directory; the length of the rest. */
static long drop_hidden(char *list, long length, int is_old)
{
	long kept = 0, record;
	for (long at = 0; at < length; at += record) {
		record = *(uint16_t *)(list + at + 16);
		long number = number_of(list + at + (is_old ? 18 : 19));
		if (number >= 0 && is_hidden(number))
			continue;
		for (long i = 0; i < record; i++)	/* what lies before is not needed any more */
			((volatile char *)list)[kept + i] = list[at + i];
		kept += record;
	}
	return kept;
}

/* A directory is read: 1 and the result if it is one of descriptors. */
int getdents_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	char name[MOST_FULL];
	const char *rest;
	if ((nr != NR_getdents && nr != NR_getdents64) || !is_of_system(args[0]) || !name_of(args[0], name, sizeof name))
		return 0;
	rest = behind_directory(t, name);
	if (!rest || *rest)
		return 0;
	do {
		*ret = sys3(nr, args[0], t->buffer, (u32)args[2] < BUFFER_BYTES ? (u32)args[2] : BUFFER_BYTES);
		if (*ret <= 0)
			return 1;
		*ret = drop_hidden(t->buffer, *ret, nr == NR_getdents);
	} while (!*ret);
	if (user_copy((void *)args[1], t->buffer, *ret))
		*ret = -EFAULT;
	return 1;
}
