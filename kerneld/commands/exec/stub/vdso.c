/* [vdso] and [vvar]: the host's, moved into the stub's range, where kerneld shows no mapping. The program reads the clock there
 * without a system call, as outside; AT_SYSINFO_EHDR tells it where that is. Faults in that code are the program's. */
#include "native.h"

#define MREMAP_MOVE_THERE 3

static u64 number_at(const char *text)
{
	u64 number = 0;
	for (;; text++)
		if (*text >= '0' && *text <= '9')
			number = number * 16 + (*text - '0');
		else if (*text >= 'a' && *text <= 'f')
			number = number * 16 + (*text - 'a' + 10);
		else
			return number;
}

static int ends_with(const char *line, const char *end, const char *name)
{
	u64 length = string_length(name);
	if ((u64)(end - line) < length)
		return 0;
	for (u64 i = 0; i < length; i++)
		if (end[i - length] != name[i])
			return 0;
	return 1;
}

static long read_maps(char *text, u64 room)
{
	long length = 0, got;
	long fd = sys4(NR_openat, -100, "/proc/self/maps", 02000000, 0);
	while (fd >= 0 && (got = sys3(NR_read, fd, text + length, room - 1 - length)) > 0)
		length += got;
	if (fd >= 0)
		sys1(NR_close, fd);
	text[length] = 0;
	return length;
}

/* Move them, and return where [vdso] is; 0 where the host has none, or keeps it. */
u64 move_vdso(void)
{
	static char text[0x4000];
	u64 lowest = 0, vdso = 0;
	read_maps(text, sizeof text);
	for (const char *line = text, *end; *line; line = end + 1) {
		for (end = line; *end && *end != '\n'; end++)
			;
		int is_vdso = ends_with(line, end, "[vdso]");
		if (is_vdso || ends_with(line, end, "[vvar]") || ends_with(line, end, "[vvar_vclock]")) {
			const char *dash = line;
			while (*dash != '-')
				dash++;
			u64 start = number_at(line), length = number_at(dash + 1) - start;
			lowest = lowest ? lowest : start;
			u64 place = VDSO_START + (start - lowest);
			if (sys5(NR_mremap, start, length, length, MREMAP_MOVE_THERE, place) != (long)place)
				return 0;
			vdso = is_vdso ? place : vdso;
		}
		if (!*end)
			break;
	}
	return vdso;
}

/* The vdso is the host's, and that of all programs has the same bytes. A debugger reads it in another. */
long read_vdso(u64 to, u64 length, u64 from)
{
	u64 room = VDSO_END - from;
	length = length < room ? length : room;
	u64 done = copy_out(to, from, length);
	return done ? (long)done : -EIO;
}
