/* SPDX-License-Identifier: BSD-3-Clause */
/* As much of the vfio-user wire format as a benchmark's client and floor take, and their sockets. */

#ifndef WIRE_H
#define WIRE_H

#include "common.h"

#include <sys/socket.h>
#include <sys/un.h>

enum { VERSION = 1, DMA_MAP, DMA_UNMAP, GET_REGION_INFO = 5, REGION_READ = 9, REGION_WRITE = 10 };
enum { REPLY = 1, KIND_AND_ERROR = 0x2f, READ_AND_WRITE = 3, BARS = 6 };
enum { MOST = 4096 }; /* bytes of the longest message that is expected */

struct header {
	uint16_t id, command;
	uint32_t size, flags, error;
};

struct region_info {
	uint32_t argsz, flags, index, cap_offset;
	uint64_t size, offset;
};

struct access {
	struct header header;
	uint64_t offset;
	uint32_t region, count, data;
} __attribute__((packed));

static inline struct sockaddr_un address(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(a.sun_path))
		die(path);
	strcpy(a.sun_path, path);
	return a;
}

static inline void send_all(int sock, const void *data, size_t size)
{
	for (const char *at = data; size;) {
		ssize_t sent = send(sock, at, size, MSG_NOSIGNAL);

		if (sent < 0)
			die("send");
		at += sent;
		size -= (size_t)sent;
	}
}

static inline void receive_all(int sock, void *data, size_t size)
{
	errno = 0;
	if (size && recv(sock, data, size, MSG_WAITALL) != (ssize_t)size)
		die("recv");
}

#endif
