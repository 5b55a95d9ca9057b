/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * timed read|write|hello BATCH ROUNDS COUNT SOCKET...
 *
 * Asks each server in turn, COUNT batches of BATCH messages a round, and writes how many nanoseconds
 * each batch took: 64-bit integers, by round, then server. `hello` is a connection, and its VERSION.
 */

#include "client.h"

enum { MOST_BATCH = 64, MOST_SERVERS = 8 };
enum { WARM_UP = 50 }; /* batches before each round: the other server had the caches */
enum { REST = 2000 };  /* µs between two connections: putting a device back is no part of them */

struct server {
	const char *path;
	int sock;
	char messages[MOST_BATCH * sizeof(struct access)];
	size_t size;
};

static uint64_t greet(const struct server *s)
{
	uint64_t begun, took;
	int sock;

	usleep(REST);
	begun = now();
	sock = connected(s->path);
	negotiate(sock);
	took = now() - begun;
	close(sock);
	return took;
}

static uint64_t access_all(const struct server *s, uint16_t command, unsigned batch)
{
	char replies[MOST_BATCH * sizeof(struct access)];
	uint64_t begun = now(), took;

	send_all(s->sock, s->messages, s->size);
	receive_all(s->sock, replies, batch * answered(command));
	took = now() - begun;
	check(replies, command, batch);
	return took;
}

int main(int argc, char **argv)
{
	struct server servers[MOST_SERVERS];
	int count = argc - 5;

	if (count < 1 || count > MOST_SERVERS)
		die("usage: timed read|write|hello BATCH ROUNDS COUNT SOCKET...");
	int hello = !strcmp(argv[1], "hello");
	uint16_t command = strcmp(argv[1], "write") ? REGION_READ : REGION_WRITE;
	unsigned batch = (unsigned)atoi(argv[2]);
	int rounds = atoi(argv[3]), turns = atoi(argv[4]);

	if (batch < 1 || batch > MOST_BATCH)
		die("BATCH");
	for (int i = 0; i < count; i++) {
		struct server *s = &servers[i];

		s->path = argv[5 + i];
		if (hello)
			continue;
		s->sock = connected(s->path);
		negotiate(s->sock);
		s->size = accesses(s->messages, command, a_bar(s->sock), batch);
	}
	for (int round = 0; round < rounds; round++)
		for (int i = 0; i < count; i++)
			for (int turn = hello ? 0 : -WARM_UP; turn < turns; turn++) {
				const struct server *s = &servers[i];
				uint64_t took = hello ? greet(s) : access_all(s, command, batch);

				if (turn >= 0)
					fwrite(&took, sizeof(took), 1, stdout);
			}
	return fflush(stdout) ? 1 : 0;
}
