/* Plays a kernel with the calls 462 to 466, in the place of libc's syscall(): each says yes and does nothing, but start
 * hangs (BROKEN=hang) or crashes its caller (BROKEN=die). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
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
	if (nr == 464 && how && strcmp(how, "die") == 0)
		raise(SIGSEGV);
	if (nr >= 462 && nr <= 466)
		return 0;
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "syscall");
	return real(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}
