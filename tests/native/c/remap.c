/* remap_file_pages: pages of a shared mapping in another order; what it refuses. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096

static void result(const char *what, long ret)
{
	printf("%s: %ld %s\n", what, ret, ret < 0 ? strerror(errno) : "");
}

static void show(const char *what, const char *at, int pages)
{
	printf("%s:", what);
	for (int i = 0; i < pages; i++)
		printf(" %c", at[i * PAGE]);
	printf("\n");
}

static void maps(const char *at, int pages)
{
	char line[256];
	unsigned long low, high, offset;
	FILE *file = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, file))
		if (sscanf(line, "%lx-%lx %*s %lx", &low, &high, &offset) == 3 && low < (unsigned long)at + pages * PAGE && high > (unsigned long)at)
			printf("  page %ld, %ld pages, offset %#lx\n", ((long)low - (long)at) / PAGE, (long)(high - low) / PAGE, offset);
	fclose(file);
}

static void of(const char *what, int flags, int fd)
{
	char *at = mmap(0, 6 * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
	printf("%s\n", what);
	for (int i = 0; i < 6; i++)
		at[i * PAGE] = 'a' + i;
	result("one page", remap_file_pages(at, PAGE, 0, 3, 0));
	show("after it", at, 6);
	result("two pages", remap_file_pages(at + 2 * PAGE, 2 * PAGE, 0, 0, 0));
	show("after it", at, 6);
	maps(at, 6);
	at[0] = 'D';
	show("a store shows where the page is too", at, 6);
	result("all of it", remap_file_pages(at + 4 * PAGE, 2 * PAGE, 0, 4, MAP_NONBLOCK));
	result("over other mappings", remap_file_pages(at, 2 * PAGE, 0, 0, 0));
	result("rights", remap_file_pages(at, PAGE, PROT_READ, 0, 0));
	result("no page", remap_file_pages(at, 100, 0, 0, 0));
	result("inside pages", remap_file_pages(at + 5, PAGE + 100, 0, 1, 0));
	result("a wrap", remap_file_pages(at, -PAGE, 0, 0, 0));
	result("an offset that wraps", remap_file_pages(at, PAGE, 0, -1, 0));
	munmap(at + 5 * PAGE, PAGE);
	result("a hole", remap_file_pages(at + 4 * PAGE, 2 * PAGE, 0, 0, 0));
	result("a hole at the start", remap_file_pages(at + 5 * PAGE, PAGE, 0, 0, 0));
	mprotect(at + 4 * PAGE, PAGE, PROT_READ);
	result("read-only", remap_file_pages(at + 4 * PAGE, PAGE, 0, 1, 0));
	show("in the end", at, 5);
	maps(at, 5);
}

static void whole(void)
{
	char *at = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	at[0] = 'x', at[PAGE] = 'y';
	result("the only mapping", remap_file_pages(at, 2 * PAGE, 0, 0, 0));
	show("it keeps its pages", at, 2);
}

int main(void)
{
	char path[] = "/tmp/remap-XXXXXX";
	int memory = memfd_create("m", 0), file = mkstemp(path);
	unlink(path);
	if (ftruncate(memory, 6 * PAGE) || ftruncate(file, 6 * PAGE))
		return 1;
	of("memory file", MAP_SHARED, memory);
	of("file", MAP_SHARED, file);
	of("shared anonymous memory", MAP_SHARED | MAP_ANONYMOUS, -1);
	of("private memory", MAP_PRIVATE | MAP_ANONYMOUS, -1);
	whole();
	return 0;
}
