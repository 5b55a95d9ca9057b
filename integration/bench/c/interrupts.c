/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * interrupts COUNT BAR OFFSET EVENTFD
 *
 * Has QEMU's edu interrupt, and reads its eventfd: writes how many nanoseconds each took, from the
 * store to the register until the eventfd was read, as 64-bit integers. BAR and EVENTFD are inherited
 * descriptors; OFFSET is where the device's BAR 0 starts in the former.
 */

#include "common.h"

#include <sys/mman.h>

enum { RAISE = 0x60 / 4, ACKNOWLEDGE = 0x64 / 4, PAGE = 4096 };
enum { WARM_UP = 50 };

int main(int argc, char **argv)
{
	if (argc != 5)
		die("usage: interrupts COUNT BAR OFFSET EVENTFD");
	int count = atoi(argv[1]), eventfd = atoi(argv[4]);
	off_t offset = (off_t)strtoull(argv[3], NULL, 10);
	volatile uint32_t *bar = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[2]), offset);
	uint64_t fired;

	if (bar == MAP_FAILED)
		die("BAR");
	for (int turn = -WARM_UP; turn < count; turn++) {
		uint64_t begun = now(), took;

		bar[RAISE] = 1;
		if (read(eventfd, &fired, sizeof(fired)) != sizeof(fired))
			die("eventfd");
		took = now() - begun;
		errno = 0;
		if (fired != 1)
			die("number of interrupts");
		bar[ACKNOWLEDGE] = 1;
		if (turn >= 0)
			fwrite(&took, sizeof(took), 1, stdout);
	}
	return fflush(stdout) ? 1 : 0;
}
