/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * disk read|write sequential|random SIZE COUNT DEVICE
 *
 * Moves SIZE bytes COUNT times, past the page cache, and says how many nanoseconds each took. What is
 * random is the same each time.
 */

#include "guest.h"

#include <fcntl.h>

enum { PAGE = 4096 };

int main(int argc, char **argv)
{
	if (argc != 6)
		die("usage: disk read|write sequential|random SIZE COUNT DEVICE");
	int writes = !strcmp(argv[1], "write"), random = !strcmp(argv[2], "random");
	size_t size = strtoul(argv[3], NULL, 10);
	long count = atol(argv[4]);
	int disk = open(argv[5], O_DIRECT | (writes ? O_WRONLY : O_RDONLY));
	long places = disk < 0 || !size ? 0 : lseek(disk, 0, SEEK_END) / (long)size;
	uint64_t *took = room(count);
	char *data = aligned_alloc(PAGE, size);

	if (!places || !data)
		die(argv[5]);
	memset(data, 0x5a, size);
	for (long i = -WARM_UP; i < count; i++) {
		off_t at = (random ? rand() : i + WARM_UP) % places * (off_t)size;
		uint64_t begun = now();
		ssize_t moved = writes ? pwrite(disk, data, size, at) : pread(disk, data, size, at);
		uint64_t end = now();

		if (moved != (ssize_t)size)
			die(argv[1]);
		if (i >= 0)
			took[i] = end - begun;
	}
	return say(took, count);
}
