/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * floor SOCKET
 *
 * What a server costs that does nothing: it reads what is there, and sends replies of the right size,
 * all at once. It checks nothing and has no device; no vfio-user server can be faster.
 */

#include "wire.h"

enum { ROOM = 1 << 16 };

static uint32_t answer(const struct header *asked, char *to)
{
	struct header h = *asked;
	size_t payload = h.size - sizeof(h);

	h.flags = REPLY;
	if (h.command == REGION_READ)
		h.size += 4;
	else if (h.command == REGION_WRITE)
		h.size -= 4;
	memcpy(to, &h, sizeof(h));
	memcpy(to + sizeof(h), asked + 1, payload);
	if (h.command == GET_REGION_INFO) {
		struct region_info info = { sizeof(info), READ_AND_WRITE, 0, 0, MOST, 0 };

		memcpy(to + sizeof(h), &info, sizeof(info));
	}
	return h.size;
}

static void serve(int sock)
{
	static char in[ROOM], out[2 * ROOM];
	size_t have = 0;
	ssize_t got;

	while ((got = recv(sock, in + have, sizeof(in) - have, 0)) > 0) {
		size_t at = 0, ready = 0;
		struct header h;

		for (have += (size_t)got; have - at >= sizeof(h); at += h.size) {
			memcpy(&h, in + at, sizeof(h));
			if (h.size < sizeof(h) || h.size > MOST)
				die("message");
			if (have - at < h.size)
				break;
			char whole[MOST] __attribute__((aligned(8)));

			memcpy(whole, in + at, h.size);
			ready += answer((struct header *)whole, out + ready);
		}
		memmove(in, in + at, have -= at);
		send_all(sock, out, ready);
	}
}

int main(int argc, char **argv)
{
	if (argc != 2)
		die("usage: floor SOCKET");
	struct sockaddr_un at = address(argv[1]);
	int listener = socket(AF_UNIX, SOCK_STREAM, 0), sock;

	if (bind(listener, (struct sockaddr *)&at, sizeof(at)) || listen(listener, 8))
		die(argv[1]);
	while ((sock = accept(listener, NULL, NULL)) >= 0) {
		serve(sock);
		close(sock);
	}
	return 0;
}
