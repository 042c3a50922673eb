/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The least that saving pages can cost: read each page, pack it with libzstd at level 1 as makedumpfile does, write
 * the result. No zero test, no filter, no headers, no descriptors, nothing made durable.
 *
 * loop CORE OFFSETS OUT: OFFSETS holds the places of the pages in CORE, 64 bits each, in the order of the machine.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

enum { PAGE = 4096, RUN = 256, OUT = 1 << 20 };

static void die(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	static char pages[RUN * PAGE], out[OUT + 2 * PAGE];
	static uint64_t at[RUN];
	size_t used = 0, left;

	if (argc != 4)
		return 2;
	int core = open(argv[1], O_RDONLY);
	FILE *offsets = fopen(argv[2], "rb");
	int target = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (core < 0 || !offsets || target < 0)
		die("open");
	ZSTD_CCtx *context = ZSTD_createCCtx();
	while ((left = fread(at, sizeof(at[0]), RUN, offsets)) > 0) {
		/* Pages that lie together are read together. */
		for (size_t first = 0, next; first < left; first = next) {
			for (next = first + 1; next < left && at[next] == at[next - 1] + PAGE; next++)
				;
			size_t size = (next - first) * PAGE;
			if (pread(core, pages, size, (off_t)at[first]) != (ssize_t)size)
				die("pread");
			for (size_t place = 0; place < size; place += PAGE) {
				size_t packed = ZSTD_compressCCtx(context, out + used, 2 * PAGE, pages + place, PAGE, 1);
				if (ZSTD_isError(packed) || packed >= PAGE) {
					memcpy(out + used, pages + place, PAGE);
					packed = PAGE;
				}
				used += packed;
				if (used >= OUT) {
					if (write(target, out, used) != (ssize_t)used)
						die("write");
					used = 0;
				}
			}
		}
	}
	if (write(target, out, used) != (ssize_t)used)
		die("write");
	return 0;
}
