/* Reads and writes at every place of a buffer relative to the stub's copy of it: nothing is lost, nothing is too much. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const size_t lengths[] = {1, 7, 8, 9, 63, 64, 65, 1000, 4095, 4096};
static unsigned char text[16384], page[16384] __attribute__((aligned(4096)));

static int is_fill(const unsigned char *from, const unsigned char *to)
{
	while (from < to && *from == 0xee)
		from++;
	return from == to;
}

int main(int argc, char **argv)
{
	int file = open(argv[argc - 1], O_RDWR | O_CREAT | O_TRUNC, 0600), wrong = 0;
	for (size_t i = 0; i < sizeof text; i++)
		text[i] = i * 7 + i / 251;
	if (write(file, text, sizeof text) != sizeof text)
		return 1;
	for (size_t shift = 0; shift < 4096; shift += shift < 80 ? 1 : 509)
		for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
			unsigned char *at = page + 4096 + shift;
			memset(page, 0xee, sizeof page);
			if (pread(file, at, lengths[i], shift) != (ssize_t)lengths[i] || memcmp(at, text + shift, lengths[i]) ||
			    !is_fill(page, at) || !is_fill(at + lengths[i], page + sizeof page))
				wrong += printf("read of %zu at %zu\n", lengths[i], shift) > 0;
			memcpy(at, text + 1, lengths[i]);
			if (pwrite(file, at, lengths[i], shift) != (ssize_t)lengths[i] || pread(file, page, sizeof text, 0) != sizeof text ||
			    memcmp(page, text, shift) || memcmp(page + shift, text + 1, lengths[i]) ||
			    memcmp(page + shift + lengths[i], text + shift + lengths[i], sizeof text - shift - lengths[i]))
				wrong += printf("write of %zu at %zu\n", lengths[i], shift) > 0;
			if (pwrite(file, text, sizeof text, 0) != sizeof text)
				return 2;
		}
	printf("%d wrong\n", wrong);
	return wrong > 0;
}
