/* execve as the loader makes it: open the program, follow `#!`, and have kerneld lay it out. */
#include "native.h"

#define AT_EACCESS 0x200
#define AT_EMPTY_PATH 0x1000
#define AT_EXECVE_CHECK 0x10000
#define X_OK 1
#define O_CLOEXEC 02000000
#define BINPRM_BYTES 256
#define MAX_SCRIPTS 5
#define INLINE_BYTES 60000
#define MFD_CLOEXEC 1
#define NR_stat 4
#define NR_fstat 5
#define NR_pread64 17
#define PT_INTERP 3
#define S_IFMT 0170000
#define S_IFREG 0100000
#define AT_EXECFN 31
#define MOST_AUXV 20		/* as many as every kernel takes */
#define ARGUMENTS 0x6a4000000000UL
#define MOST_SHOWN 0x200000UL
#define PR_SET_MM 35
#define PR_SET_MM_MAP 14

/* Ask the host whether it would execute a file: one that is open for writing is ETXTBSY. Hosts before v6.14 do not know
 * this question. Source: Linux v6.14 fs/exec.c:do_open_execat(), AT_EXECVE_CHECK. */
static long ask_host(long fd)
{
	static const char *const none[] = {"", 0};
	long ret = sys5(NR_execveat, fd, "", none, none + 1, AT_EMPTY_PATH | AT_EXECVE_CHECK);
	return ret == -EINVAL ? 0 : ret;
}

static long check_regular(long ret, const u64 *status)
{
	return !ret && (((const u32 *)status)[6] & S_IFMT) != S_IFREG ? -EACCES : ret;
}

/* Open a file that is to be executed; a descriptor or -errno. Another kind of file is not opened: a FIFO would wait. A path of
 * no characters is the working directory here. */
static long open_program(const char *path, int is_asked)
{
	u64 status[18];
	long ret = *path ? check_regular(sys2(NR_stat, path, status), status) : -EACCES, fd = ret ? ret : sys4(NR_openat, AT_FDCWD, path, O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	ret = check_regular(sys2(NR_fstat, fd, status), status);
	if (!ret)
		ret = sys4(NR_faccessat2, AT_FDCWD, path, X_OK, AT_EACCESS);
	if (!ret && is_asked)
		ret = ask_host(fd);
	if (!ret)
		return fd;
	sys1(NR_close, fd);
	return ret;
}

static int is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* Where the line of a script ends, or 0 where the path of its interpreter has no end in the bytes that count: what is behind
 * them of an argument is left out. */
static char *end_of_line(char *head)
{
	char *end = head + 2, *last = head + BINPRM_BYTES - 1, *p = head + 2;
	while (end <= last && *end && *end != '\n')
		end++;
	if (end <= last && *end)
		return end;
	while (is_blank(*p))
		p++;
	while (p < end && !is_blank(*p))
		p++;
	return p <= last ? last : 0;
}

/* Cut `#! interpreter argument` up in place; behind what was read there are zeros.
 * Source: Linux v6.8 fs/binfmt_script.c:load_script(). */
static long parse_script(char *head, char **interpreter, char **argument)
{
	char *p = head + 2, *end = end_of_line(head);
	if (!end)
		return -ENOEXEC;
	while (end > p && is_blank(end[-1]))
		end--;
	*end = 0;
	while (is_blank(*p))
		p++;
	if (p == end)
		return -ENOEXEC;
	*interpreter = p;
	while (*p && !is_blank(*p))
		p++;
	*argument = *p ? p : 0;
	while (is_blank(*p))
		*p++ = 0;
	if (*argument)
		*argument = p;
	return 0;
}

struct scripts { char heads[MAX_SCRIPTS + 1][BINPRM_BYTES + 1]; const char *before[2 * MAX_SCRIPTS + 1]; int count; };

/* Follow scripts to a program that is none; `before` is what comes before the arguments, last first. `is_asked`: it can still
 * be refused, and the host is asked. `is_lost`: an interpreter would not find it. */
static long resolve(const char *path, struct scripts *scripts, int is_asked, int is_lost)
{
	scripts->count = 0;
	for (int depth = 0;; depth++) {
		char *head = scripts->heads[depth], *interpreter, *argument;
		long fd = open_program(path, is_asked);
		if (fd < 0)
			return fd;
		memset(head, 0, sizeof scripts->heads[0]);
		long length = sys4(NR_pread64, fd, head, BINPRM_BYTES, 0);
		if (length < 2 || head[0] != '#' || head[1] != '!') {
			/* ELF, x86-64 */
			if (length >= 20 && *(u32 *)head == 0x464c457f && *(uint16_t *)(head + 18) == 62)
				return fd;
			sys1(NR_close, fd);
			return -ENOEXEC;
		}
		sys1(NR_close, fd);
		if (depth == MAX_SCRIPTS)
			return -ELOOP;
		long ret = parse_script(head, &interpreter, &argument);
		if (!ret && is_lost)
			ret = -ENOENT;
		if (ret)
			return ret;
		/* The path of an interpreter that is a script stands there already: as the first argument, which gives way to it. */
		if (!depth)
			scripts->before[scripts->count++] = path;
		if (argument)
			scripts->before[scripts->count++] = argument;
		scripts->before[scripts->count++] = interpreter;
		path = interpreter;
	}
}

struct program_header { u32 type, flags; u64 offset, vaddr, paddr, filesz, memsz, align; };

/* Open the interpreter that an ELF file names, as this process finds it: in its directory, below its root. 0 or -errno;
 * *interpreter is -1 if there is none, or if the file is damaged, of which kerneld knows what is to be said.
 * Source: Linux v6.8 fs/binfmt_elf.c:load_elf_binary(). */
static long open_interpreter(int fd, int is_asked, int *interpreter)
{
	struct { u64 ident[4], phoff, shoff; u32 flags; uint16_t ehsize, phentsize, phnum, rest[3]; } head;
	struct program_header headers[PAGE_BYTES / sizeof(struct program_header)], *at = headers;
	char path[PAGE_BYTES];
	*interpreter = -1;
	if (sys4(NR_pread64, fd, &head, sizeof head, 0) != sizeof head || head.phentsize != sizeof *at ||
	    head.phnum > sizeof headers / sizeof *at)
		return 0;
	long bytes = head.phnum * sizeof *at;
	if (sys4(NR_pread64, fd, headers, bytes, head.phoff) != bytes)
		return 0;
	while (at < headers + head.phnum && at->type != PT_INTERP)
		at++;
	if (at == headers + head.phnum || at->filesz < 2 || at->filesz > sizeof path ||
	    sys4(NR_pread64, fd, path, at->filesz, at->offset) != (long)at->filesz || path[at->filesz - 1])
		return 0;
	long opened = open_program(path, is_asked);
	if (opened >= 0)
		*interpreter = opened;
	return opened < 0 ? opened : 0;
}

/* Tell whether a program could be executed: 0 or -errno. `is_lost`: by its path nobody finds it after that. kerneld reads what
 * the file says, and that of its interpreter. */
long check_program(struct thread *t, const char *path, int is_lost)
{
	struct scripts scripts;
	int fds[2];
	long ret = resolve(path, &scripts, 1, is_lost);
	if (ret < 0)
		return ret;
	fds[0] = ret;
	ret = open_interpreter(fds[0], 1, &fds[1]);
	u64 has = fds[1] >= 0, args[6] = {0, 0, 0, EXEC_CHECK | (has ? EXEC_INTERPRETER_FD : 0)};
	if (!ret)
		ret = ask_two(t, NR_execve, args, 0, 0, fds, 1 + has).ret;
	sys1(NR_close, fds[0]);
	if (has)
		sys1(NR_close, fds[1]);
	return ret;
}

struct strings { int fd; char *inline_end; char bytes[INLINE_BYTES]; };

static void add(struct strings *strings, const char *text)
{
	u64 length = string_length(text) + 1;
	if (strings->fd < 0 && (u64)(strings->bytes + INLINE_BYTES - strings->inline_end) < length) {
		strings->fd = sys2(NR_memfd_create, "strings", MFD_CLOEXEC);
		sys3(NR_write, strings->fd, strings->bytes, strings->inline_end - strings->bytes);
	}
	if (strings->fd >= 0) {
		sys3(NR_write, strings->fd, text, length);
	} else {
		memcpy(strings->inline_end, text, length);
		strings->inline_end += length;
	}
}

static void note_exe(long fd)
{
	char link[32] = "/proc/self/fd/";
	char *end = link + 14;
	if (fd >= 100)
		*end++ = '0' + fd / 100 % 10;
	if (fd >= 10)
		*end++ = '0' + fd / 10 % 10;
	*end++ = '0' + fd % 10;
	*end = 0;
	long length = sys3(NR_readlink, link, process.exe, sizeof process.exe - 1);
	process.exe[length > 0 ? length : 0] = 0;
}

long load_program(struct thread *t, const char *path, const char *name, char **argv, u64 *entry)
{
	struct scripts scripts;
	static struct strings strings;
	strings.fd = -1;
	strings.inline_end = strings.bytes;
	long fd = resolve(path, &scripts, !process.is_started, 0);
	int fds[3] = {fd}, count = 1, interpreter;
	long ret = fd < 0 ? fd : open_interpreter(fd, !process.is_started, &interpreter);
	if (ret < 0)
		return ret;
	note_exe(fd);
	if (scripts.count)
		scripts.before[0] = name;	/* the interpreter finds the script by the program's own descriptor */
	u64 argc = 0, envc = 0;
	for (int i = scripts.count - 1; i >= 0; i--, argc++)
		add(&strings, scripts.before[i]);
	if (scripts.count && *argv)
		argv++;		/* argv[0] has given way to the interpreter and the script's path */
	for (; *argv; argv++, argc++)
		add(&strings, *argv);
	for (argv++; *argv; argv++, envc++)
		add(&strings, *argv);
	add(&strings, name);
	if (strings.fd >= 0)
		fds[count++] = strings.fd;
	if (interpreter >= 0)
		fds[count++] = interpreter;
	u64 flags = EXEC_COUNTED | EXEC_ENTRY | EXEC_AUXV | (strings.fd >= 0 ? EXEC_STRINGS_FD : 0) |
		    (interpreter >= 0 ? EXEC_INTERPRETER_FD : 0);
	struct request request = {.nr = NR_execve, .args = {0, move_vdso(), process.minsigstksz, flags, argc, envc}};
	u64 length = strings.fd >= 0 ? 0 : strings.inline_end - strings.bytes;
	struct answer answer = go_native(t, 0, &request, strings.bytes, length, fds, count);
	while (count)
		sys1(NR_close, fds[--count]);
	if (answer.ret == 0)
		memcpy(entry, answer.data, 16);
	if (process.is_started && answer.signo)
		end_by_sigkill();	/* the OOM killer */
	if (process.is_started && answer.ret)
		end_by_fault(SIGSEGV);	/* Source: Linux v6.8 fs/exec.c:bprm_execve(), behind the point of no return */
	return answer.signo ? -ENOMEM : answer.ret;
}

/* Tell the host what the program's arguments, environment and auxiliary vector are, so that ps and debuggers outside see them. The host reads them in
 * anonymous memory alone, so it gets a copy of the strings at the top of the stack that kerneld has laid out; without that
 * it shows none. */
void tell_arguments(u64 stack)
{
	struct { u64 code[2], data[2], brk[2], stack, args[2], env[2], auxv; u32 auxv_size, exe_fd; } map = {
		.code = {STUB_START, STUB_START + PAGE_BYTES}, .data = {STUB_START, STUB_START + PAGE_BYTES},
		.brk = {STUB_END - PAGE_BYTES, STUB_END - PAGE_BYTES}, .stack = stack, .exe_fd = ~0U,
	};
	static u64 auxv[MOST_AUXV][2];
	u64 argc, word, at = stack + 8;
	u32 pairs = 0;
	if (user_copy(&argc, (void *)stack, 8) || user_copy(&map.args[0], (void *)at, 8))
		return;
	at += (argc + 1) * 8;
	if (user_copy(&map.env[0], (void *)at, 8))
		return;
	do {
		if (user_copy(&word, (void *)at, 8))
			return;
		at += 8;
	} while (word);
	for (u64 pair[2] = {1, 0}; pair[0]; at += 16) {
		if (user_copy(pair, (void *)at, 16))
			return;
		if (pair[0] == AT_EXECFN)
			map.env[1] = pair[1];
		if (pairs < MOST_AUXV)
			memcpy(auxv[pairs++], pair, 16);
	}
	map.auxv = (u64)auxv;
	map.auxv_size = pairs * 16;
	map.args[1] = map.env[0] ? map.env[0] : map.env[1];
	u64 length = map.env[1] - map.args[0], of_args = map.args[1] - map.args[0], room = (length + PAGE_BYTES - 1) & -PAGE_BYTES;
	if (length > MOST_SHOWN || sys6(NR_mmap, ARGUMENTS, room, 3, 0x32, -1, 0) < 0)
		return;
	if (user_copy((void *)ARGUMENTS, (void *)map.args[0], length))
		return;
	map.args[0] = ARGUMENTS;
	map.args[1] = map.env[0] = ARGUMENTS + of_args;
	map.env[1] = ARGUMENTS + length;
	sys5(NR_prctl, PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0);
}
