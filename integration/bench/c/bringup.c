/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bringup once|again BDF...
 *
 * Waits until all these devices are up, and says how many nanoseconds that took. `again` then has the
 * kernel forget them, and says how long it takes to find them and bring them up again.
 *
 * A disk is up when it is there, a network card when its link is, anything else when it answers.
 */

#include "guest.h"

#include <fcntl.h>
#include <glob.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define DEVICES "/sys/bus/pci/devices/"

enum { MOST = 16 };
enum { MASS_STORAGE = 0x01, NETWORK = 0x02 }; /* base classes, PCI Code and ID Assignment */

/* The path of a file of a device, by a pattern; NULL if there is none (yet). */
static const char *file(const char *bdf, const char *pattern)
{
	static char path[256];
	glob_t found;

	snprintf(path, sizeof(path), DEVICES "%s/%s", bdf, pattern);
	if (glob(path, 0, NULL, &found))
		return NULL;
	snprintf(path, sizeof(path), "%s", found.gl_pathv[0]);
	globfree(&found);
	return path;
}

static long number(const char *path)
{
	char text[32] = "";
	int from = path ? open(path, O_RDONLY) : -1;

	/* A carrier can't be read before its interface is up. */
	if (from < 0 || read(from, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(from);
	return strtol(text, NULL, 0);
}

static void tell(const char *path)
{
	int to = open(path, O_WRONLY);

	if (to < 0 || write(to, "1", 1) != 1)
		die(path);
	close(to);
}

static int linked(const char *bdf)
{
	const char *path = file(bdf, "net/*");
	struct ifreq interface = { .ifr_flags = IFF_UP };

	if (!path)
		return 0;
	snprintf(interface.ifr_name, IFNAMSIZ, "%s", strrchr(path, '/') + 1);
	int sock = socket(AF_INET, SOCK_DGRAM, 0);

	if (ioctl(sock, SIOCSIFFLAGS, &interface))
		die(interface.ifr_name);
	close(sock);
	return number(file(bdf, "net/*/carrier")) == 1;
}

static int answers(const char *bdf)
{
	const char *path = file(bdf, "enable");

	if (!path)
		return 0;
	tell(path);
	int bar = open(file(bdf, "resource0"), O_RDWR);
	volatile uint32_t *registers = mmap(NULL, 4096, PROT_READ, MAP_SHARED, bar, 0);

	if (registers == MAP_FAILED || *registers == UINT32_MAX)
		die(bdf);
	munmap((void *)registers, 4096);
	close(bar);
	return 1;
}

static int up(const char *bdf)
{
	switch (number(file(bdf, "class")) >> 16) {
	case MASS_STORAGE:
		return file(bdf, "nvme/*/nvme*") != NULL;
	case NETWORK:
		return linked(bdf);
	default:
		return answers(bdf);
	}
}

static void await(char **bdfs, int count)
{
	int done[MOST] = { 0 }, left = count;

	for (;;) {
		for (int i = 0; i < count; i++)
			if (!done[i] && up(bdfs[i])) {
				done[i] = 1;
				left--;
			}
		if (!left)
			return;
		usleep(1000);
	}
}

static void forget(char **bdfs, int count)
{
	for (int i = 0; i < count; i++)
		tell(file(bdfs[i], "remove"));
}

static void took(uint64_t begun)
{
	uint64_t so_long = now() - begun;

	say(&so_long, 1);
}

int main(int argc, char **argv)
{
	char **bdfs = argv + 2;
	int count = argc - 2;
	uint64_t begun = now();

	if (count < 1 || count > MOST)
		die("usage: bringup once|again BDF...");
	await(bdfs, count);
	took(begun);
	if (!strcmp(argv[1], "again")) {
		forget(bdfs, count);
		begun = now();
		tell("/sys/bus/pci/rescan");
		await(bdfs, count);
		took(begun);
	}
	return 0;
}
