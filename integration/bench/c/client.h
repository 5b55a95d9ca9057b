/* SPDX-License-Identifier: BSD-3-Clause */
/* The client's side: connect, agree on a version, find a register, access it. */

#ifndef CLIENT_H
#define CLIENT_H

#include "wire.h"

/* A server that was only just started has so long to listen, in milliseconds. */
enum { PATIENCE = 10000 };

static inline int connected(const char *path)
{
	struct sockaddr_un to = address(path);
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	for (int left = PATIENCE; connect(sock, (struct sockaddr *)&to, sizeof(to)); left--) {
		if (!left || (errno != ENOENT && errno != ECONNREFUSED))
			die(path);
		usleep(1000);
	}
	return sock;
}

/* The payload of the reply to a message, which must be no error. */
static inline void ask(int sock, uint16_t command, const void *payload, uint32_t size, void *reply)
{
	struct header h = { .command = command, .size = sizeof(h) + size };
	char whole[MOST];

	memcpy(whole, &h, sizeof(h));
	memcpy(whole + sizeof(h), payload, size);
	send_all(sock, whole, h.size);
	receive_all(sock, &h, sizeof(h));
	if ((h.flags & KIND_AND_ERROR) != REPLY || h.size < sizeof(h) || h.size > MOST)
		die("reply");
	receive_all(sock, reply, h.size - sizeof(h));
}

static inline void negotiate(int sock)
{
	static const char ours[] = "\0\0\0\0{\"capabilities\":{\"max_msg_fds\":8}}";
	char theirs[MOST];

	ask(sock, VERSION, ours, sizeof(ours), theirs);
}

/* The first BAR that can be read and written: each server has its own device. */
static inline uint32_t a_bar(int sock)
{
	union {
		struct region_info info;
		char room[MOST];
	} reply;

	for (uint32_t bar = 0; bar < BARS; bar++) {
		struct region_info wanted = { .argsz = sizeof(wanted), .index = bar };

		ask(sock, GET_REGION_INFO, &wanted, sizeof(wanted), &reply);
		if (reply.info.size >= 8 && (reply.info.flags & READ_AND_WRITE) == READ_AND_WRITE)
			return bar;
	}
	errno = 0;
	die("no BAR that can be read and written");
	return 0;
}

/* Bytes of an access's message, and of its reply. */
static inline size_t asked(uint16_t command)
{
	return sizeof(struct access) - (command == REGION_READ ? 4 : 0);
}

static inline size_t answered(uint16_t command)
{
	return sizeof(struct access) - (command == REGION_WRITE ? 4 : 0);
}

/* Fill in `count` messages of 4 bytes, one behind the other; returns their size. */
static inline size_t accesses(char *to, uint16_t command, uint32_t bar, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		/* Reads at 0, writes at 4: registers that do nothing, in the devices that we know. */
		struct access a = {
			{ (uint16_t)i, command, (uint32_t)asked(command), 0, 0 },
			command == REGION_READ ? 0 : 4, bar, 4, 1,
		};

		memcpy(to + i * asked(command), &a, asked(command));
	}
	return count * asked(command);
}

static inline void check(const char *replies, uint16_t command, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct header h;

		memcpy(&h, replies + i * answered(command), sizeof(h));
		errno = 0;
		if (h.id != i || h.size != answered(command) || (h.flags & KIND_AND_ERROR) != REPLY)
			die("reply to an access");
	}
}

#endif
