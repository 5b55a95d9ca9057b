/* SPDX-License-Identifier: BSD-3-Clause */
/* Of programs that run in a guest: they are static, and say what they measured on their console. */

#ifndef GUEST_H
#define GUEST_H

#include "common.h"

#include <inttypes.h>

enum { WARM_UP = 3 }; /* what is done before it is measured: code is new to the CPU, or its emulator */

/* One number a line. */
static inline int say(const uint64_t *took, long count)
{
	for (long i = 0; i < count; i++)
		printf("%" PRIu64 "\n", took[i]);
	return fflush(stdout) ? 1 : 0;
}

static inline uint64_t *room(long count)
{
	uint64_t *took = calloc((size_t)count, sizeof(*took));

	if (count < 1 || !took)
		die("COUNT");
	return took;
}

#endif
