/* Plays a kernel with the calls 462 to 466, in the place of libc's syscall(): each says yes and does nothing, but start
 * hangs (BROKEN=hang), is slow (BROKEN=slow) or crashes its caller (BROKEN=die). STAT names a file in the place of
 * /proc/stat: how busy the machine says it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

long syscall(long nr, ...)
{
	static long (*real)(long, ...);
	const char *how = getenv("BROKEN");
	long a[6];
	va_list args;

	va_start(args, nr);
	for (int at = 0; at < 6; at++)
		a[at] = va_arg(args, long);
	va_end(args);
	if (nr == 464 && how && strcmp(how, "hang") == 0)
		for (;;)
			pause();
	if (nr == 464 && how && strcmp(how, "slow") == 0)
		usleep(600000);
	if (nr == 464 && how && strcmp(how, "die") == 0)
		raise(SIGSEGV);
	if (nr >= 462 && nr <= 466)
		return 0;
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "syscall");
	return real(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

FILE *fopen(const char *path, const char *mode)
{
	static FILE *(*real)(const char *, const char *);
	const char *stat = getenv("STAT");

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "fopen");
	return real(stat && strcmp(path, "/proc/stat") == 0 ? stat : path, mode);
}
