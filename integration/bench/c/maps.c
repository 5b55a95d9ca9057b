/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * maps SIZE ROUNDS TURNS COUNT,COUNT... PARTY...
 *
 * Each party comes to have COUNT maps of SIZE bytes, then a larger COUNT. At each, by rounds and
 * party by party, some of them are taken away, in random order, and made again, in another: by
 * DMA_MAP and DMA_UNMAP if PARTY is the path of a socket, by VFIO's ioctls if it is the number of an
 * inherited descriptor of a container. For each COUNT, round and party it writes how many nanoseconds
 * TURNS unmaps and TURNS maps took: 64-bit integers.
 *
 * Maps are of one memfd, of huge pages if they are as large, which those that need more share; their
 * IOVAs are next to each other.
 */

#include "client.h"

#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { MOST_MAPS = 65535, MOST_TURNS = 1 << 16, MOST_PARTIES = 8, WARM_UP = 16, WINDOW = 32 };
static const uint64_t FILE_SIZE = 256 << 20; /* as much as all maps of 4 KiB take */
static const uint64_t HUGE = 2 << 20;
static const uint64_t FIRST_IOVA = 1ull << 32;

struct map_message {
	struct header header;
	uint32_t argsz, flags;
	uint64_t offset, address, size;
};

struct unmap_message {
	struct header header;
	uint32_t argsz, flags;
	uint64_t address, size;
};

struct party {
	int sock, container; /* one of them is -1 */
};

static int memory;
static char *memory_here;
static uint64_t size;

static void replied(const struct party *p)
{
	struct header h;
	char payload[MOST];

	if (p->sock < 0)
		return;
	receive_all(p->sock, &h, sizeof(h));
	errno = h.error;
	if ((h.flags & KIND_AND_ERROR) != REPLY || h.size < sizeof(h) || h.size > MOST)
		die("reply");
	receive_all(p->sock, payload, h.size - sizeof(h)); /* some repeat what they were asked */
}

static void send_with_memory(int sock, const void *message, size_t length)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .header = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec data = { (void *)message, length };
	struct msghdr m = {
		.msg_iov = &data, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control.room),
	};

	memcpy(CMSG_DATA(&control.header), &memory, sizeof(memory));
	if (sendmsg(sock, &m, MSG_NOSIGNAL) != (ssize_t)length)
		die("sendmsg");
}

static void ask_to_map(const struct party *p, uint64_t number)
{
	uint64_t offset = number * size % FILE_SIZE, iova = FIRST_IOVA + number * size;

	if (p->sock < 0) {
		struct vfio_iommu_type1_dma_map m = {
			sizeof(m), VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
			(uintptr_t)memory_here + offset, iova, size,
		};

		if (ioctl(p->container, VFIO_IOMMU_MAP_DMA, &m))
			die("VFIO_IOMMU_MAP_DMA");
		return;
	}
	struct map_message m = {
		{ (uint16_t)number, DMA_MAP, sizeof(m), 0, 0 },
		sizeof(m) - sizeof(m.header), READ_AND_WRITE, offset, iova, size,
	};

	send_with_memory(p->sock, &m, sizeof(m));
}

static void map(const struct party *p, uint64_t number)
{
	ask_to_map(p, number);
	replied(p);
}

static void unmap(const struct party *p, uint64_t number)
{
	uint64_t iova = FIRST_IOVA + number * size;

	if (p->sock < 0) {
		struct vfio_iommu_type1_dma_unmap u = { .argsz = sizeof(u), .iova = iova, .size = size };

		errno = 0;
		if (ioctl(p->container, VFIO_IOMMU_UNMAP_DMA, &u) || u.size != size)
			die("VFIO_IOMMU_UNMAP_DMA");
		return;
	}
	struct unmap_message u = {
		{ (uint16_t)number, DMA_UNMAP, sizeof(u), 0, 0 }, sizeof(u) - sizeof(u.header), 0, iova, size,
	};

	send_all(p->sock, &u, sizeof(u));
	replied(p);
}

/* As fast as may be: nobody looks at the clock. */
static void fill(const struct party *p, const uint32_t *numbers, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		ask_to_map(p, numbers[i]);
		if (i >= WINDOW)
			replied(p);
	}
	for (uint32_t i = 0; i < count && i < WINDOW; i++)
		replied(p);
}

typedef void action(const struct party *, uint64_t number);

static void each(action *do_, const struct party *p, const uint32_t *numbers, uint32_t count,
		 uint64_t *took)
{
	for (uint32_t i = 0; i < count; i++) {
		uint64_t begun = now();

		do_(p, numbers[i]);
		took[i] = now() - begun;
	}
}

static uint32_t below(uint32_t limit)
{
	static uint64_t state = 1;

	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((state >> 32) % limit);
}

/* Put any of `count` numbers, in any order, into the first `picked` places. */
static void shuffle(uint32_t *numbers, uint32_t count, uint32_t picked)
{
	for (uint32_t i = 0; i < picked; i++) {
		uint32_t j = i + below(count - i), other = numbers[i];

		numbers[i] = numbers[j];
		numbers[j] = other;
	}
}

static void again(const struct party *p, uint32_t *numbers, uint32_t count, uint32_t turns,
		  uint64_t *unmaps, uint64_t *maps)
{
	for (uint32_t done = 0, some; done < turns; done += some) {
		some = count < turns - done ? count : turns - done;
		shuffle(numbers, count, some);
		each(unmap, p, numbers, some, unmaps + done);
		shuffle(numbers, some, some);
		each(map, p, numbers, some, maps + done);
	}
}

static struct party party(const char *name)
{
	struct party p = { -1, -1 };

	if (strchr(name, '/')) {
		p.sock = connected(name);
		negotiate(p.sock);
	} else {
		p.container = atoi(name);
	}
	return p;
}

int main(int argc, char **argv)
{
	static uint32_t numbers[MOST_MAPS];
	static uint64_t took[2 * MOST_TURNS];
	struct party parties[MOST_PARTIES];
	int number = argc - 5;
	uint32_t have = 0;

	if (number < 1 || number > MOST_PARTIES)
		die("usage: maps SIZE ROUNDS TURNS COUNT,COUNT... PARTY...");
	int rounds = atoi(argv[2]);
	uint32_t turns = (uint32_t)atoi(argv[3]);

	if (turns < 1 || turns > MOST_TURNS)
		die("TURNS");
	size = strtoull(argv[1], NULL, 10);
	memory = memfd_create("ram", MFD_CLOEXEC | (size < HUGE ? 0 : MFD_HUGETLB));
	if (memory < 0 || ftruncate(memory, (off_t)FILE_SIZE))
		die("memfd");
	memory_here = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory, 0);
	if (memory_here == MAP_FAILED)
		die("mmap");
	for (int i = 0; i < number; i++)
		parties[i] = party(argv[5 + i]);
	for (char *at = argv[4]; *at; at += *at == ',') {
		uint32_t count = (uint32_t)strtoul(at, &at, 10), more = count - have;

		if (count <= have || count > MOST_MAPS)
			die("COUNT");
		for (uint32_t i = have; i < count; i++)
			numbers[i] = i;
		shuffle(numbers + have, more, more);
		for (int i = 0; i < number; i++)
			fill(&parties[i], numbers + have, more);
		have = count;
		for (int turn = 0; turn < rounds * number; turn++) {
			const struct party *p = &parties[turn % number];

			again(p, numbers, count, WARM_UP, took, took + turns); /* others had the caches */
			again(p, numbers, count, turns, took, took + turns);
			fwrite(took, sizeof(*took), 2 * turns, stdout);
		}
	}
	return fflush(stdout) ? 1 : 0;
}
