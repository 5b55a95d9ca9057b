/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * flood MILLISECONDS SOCKET
 *
 * Reads 4 bytes, one access after the other, from the moment that stdin ends: so many of these start
 * at once. Says "\n" when it is connected, then how many nanoseconds each took: 64-bit integers.
 */

#include "client.h"

enum { MOST_ACCESSES = 1 << 20 };

int main(int argc, char **argv)
{
	static uint64_t took[MOST_ACCESSES];
	char message[sizeof(struct access)], reply[sizeof(struct access)], nothing;
	size_t done = 0;

	if (argc != 3)
		die("usage: flood MILLISECONDS SOCKET");
	int sock = connected(argv[2]);

	negotiate(sock);
	size_t size = accesses(message, REGION_READ, a_bar(sock), 1);

	if (write(STDOUT_FILENO, "\n", 1) != 1 || read(STDIN_FILENO, &nothing, 1) != 0)
		die("start");
	uint64_t begun = now(), at = begun, end = begun + strtoull(argv[1], NULL, 10) * 1000000u;

	while (at < end && done < MOST_ACCESSES) {
		send_all(sock, message, size);
		receive_all(sock, reply, answered(REGION_READ));
		uint64_t after = now();

		check(reply, REGION_READ, 1);
		took[done++] = after - at;
		at = after;
	}
	fwrite(took, sizeof(*took), done, stdout);
	return fflush(stdout) ? 1 : 0;
}
