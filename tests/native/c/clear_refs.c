/* /proc/PID/clear_refs: which pages count as used, before and after; the peak of resident memory. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 8UL

static long number_of(const char *file, const void *addr, const char *name)
{
	char line[512];
	unsigned long start, end;
	long value = -1;
	int found = !addr;
	FILE *smaps = fopen(file, "r");

	while (fgets(line, sizeof line, smaps)) {
		if (addr && sscanf(line, "%lx-%lx ", &start, &end) == 2)
			found = start <= (unsigned long)addr && (unsigned long)addr < end;
		if (found && !strncmp(line, name, strlen(name)))
			sscanf(line + strlen(name), "%ld", &value);
	}
	fclose(smaps);
	return value;
}

static void put(const char *what, const char *file, const char *text)
{
	int fd = open(file, O_WRONLY);
	long ret = write(fd, text, strlen(text));

	printf("%s %.20s: %ld %s\n", what, text, ret, ret < 0 ? strerror(errno) : "");
	close(fd);
}

int main(int argc, char **argv)
{
	int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
	static const char *const wrong[] = {"0", "6", "x", "1x", "0x1", " 1 \n", "99999999999", "2\n"};
	char *own = (char *)mmap(0, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + PAGE;
	char *of_file, name[64];

	mprotect(own, PAGES * PAGE, PROT_READ | PROT_WRITE);
	setvbuf(stdout, 0, _IONBF, 0);
	if (ftruncate(fd, PAGES * PAGE))
		return 1;
	of_file = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	for (const char *kind = "1"; kind; kind = *kind == '1' ? "2" : *kind == '2' ? "3" : *kind == '3' ? "4" : 0) {
		memset(own, 1, PAGES * PAGE);
		memset(of_file, 1, PAGES * PAGE);
		put("clear", "/proc/self/clear_refs", kind);
		long used = number_of("/proc/self/smaps", own, "Referenced:");
		long used_of_file = number_of("/proc/self/smaps", of_file, "Referenced:");
		own[3 * PAGE]++;
		of_file[3 * PAGE]++;
		/* A processor may have translations in its TLB yet, and not note an access: only kerneld sees each. */
		if (argc > 2)
			printf("used: %ld %ld", used, used_of_file);
		if (argc > 2)
			printf(", then: %ld %ld, ", number_of("/proc/self/smaps", own, "Referenced:"),
			       number_of("/proc/self/smaps", of_file, "Referenced:"));
		printf("resident %ld %d\n", number_of("/proc/self/smaps", own, "Rss:"), own[3 * PAGE] + of_file[4 * PAGE]);
	}
	for (unsigned long i = 0; i < sizeof wrong / sizeof *wrong; i++)
		put("clear", "/proc/self/clear_refs", wrong[i]);
	char *much = mmap(0, 8UL << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(much, 1, 8UL << 20);
	munmap(much, 8UL << 20);
	long before = number_of("/proc/self/status", 0, "VmHWM:");
	put("peak", "/proc/self/clear_refs", "5");
	printf("%d\n", before - number_of("/proc/self/status", 0, "VmHWM:") > 7000);
	printf("%d %s\n", open("/proc/self/clear_refs", O_RDONLY), strerror(errno));
	/* of the OOM killer */
	put("adj", "/proc/self/oom_score_adj", "1001");
	put("adj", "/proc/self/oom_score_adj", "0x10\n");
	put("adj", "/proc/self/oom_score_adj", "12345678901234567890");
	pid_t child = fork();
	if (!child) {
		printf("child: %ld\n", number_of("/proc/self/oom_score_adj", 0, ""));
		put("child adj", "/proc/self/oom_score_adj", " 500");
		sprintf(name, "/proc/%d/oom_score_adj", getppid());
		put("parent adj", name, "1000");
		printf("%d\n", number_of("/proc/self/oom_score", 0, "") >= 990);
		_exit(0);
	}
	wait(0);
	printf("%ld %d\n", number_of("/proc/self/oom_score_adj", 0, ""), number_of("/proc/self/oom_score", 0, "") >= 1300);
	return 0;
}
