/* shadowpt_page_contents: the bytes of a frame that the target maps in the range. */
#define _GNU_SOURCE
#include "kit.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PLACE .place = "shadowpt_page_contents", .semesters = HAS_CONTENTS
#define OTHER_USER 65534L

static char buffer[4096];

/* A target with 8 pages of 'a' to 'h' at WINDOW, of which `pages` are watched. */
static struct puppet lettered(ulong_t pages)
{
	struct puppet target = new_puppet();

	need_pfns();
	p_mmap(&target, WINDOW, 8, RW, ANON);
	for (int at = 0; at < 8; at++)
		p_write(&target, WINDOW + (ulong_t)at * PAGE, 1, 'a' + at);
	watch(target.pid, WINDOW, pages);
	expect(target.pid, WINDOW, pages, ANONYMOUS | MAPPED);
	return target;
}

static ulong_t pfn_of(struct puppet *target, ulong_t page)
{
	ulong_t pfn = pagemap_pfn(target->pid, WINDOW + page * PAGE);

	expect_that(pfn != 0, "pagemap has no frame for page %lu", page);
	return pfn;
}

CHECK(contents_right, PLACE, .rule = "The buffer gets the bytes of the page", .did = "asked for the frames of 8 pages with different bytes",
      .expected = "0, and all 4,096 bytes of each", .mistake = "another page is mapped or copied, or less than a page", .hint = "kmap_local_pfn(pfn), copy_to_user(…, PAGE_SIZE)",
      .points = 2)
{
	struct puppet target = lettered(8);

	for (ulong_t page = 0; page < 8; page++) {
		memset(buffer, 0, sizeof(buffer));
		expect_ret(sp_contents(pfn_of(&target, page), buffer), 0, "page_contents");
		for (ulong_t at = 0; at < sizeof(buffer); at++)
			expect_that(buffer[at] == (char)('a' + page), "byte %lu of page %lu is %#x", at, page, buffer[at]);
	}
}

CHECK(contents_fresh, PLACE, .rule = "The bytes are those of the moment of the call", .did = "asked, had the target write other bytes, and asked again",
      .expected = "the new bytes", .mistake = "the page is copied once, at start", .hint = "Read the frame at each call", .points = 1)
{
	struct puppet target = lettered(8);

	expect_ret(sp_contents(pfn_of(&target, 0), buffer), 0, "page_contents");
	p_write(&target, WINDOW, 1, 'z');
	expect_ret(sp_contents(pfn_of(&target, 0), buffer), 0, "page_contents");
	expect_that(buffer[0] == 'z' && buffer[4095] == 'z', "the bytes are still %#x", buffer[0]);
}

CHECK(contents_not_mapped, PLACE, .rule = "A frame that the target does not map is refused", .did = "asked for a frame of another process",
      .expected = "an error", .mistake = "any frame of the machine can be read", .hint = "Look for the pfn in the table first", .points = 2)
{
	struct puppet target = lettered(8), other = new_puppet();

	p_mmap(&other, WINDOW, 1, RW, ANON);
	p_write(&other, WINDOW, 1, 's');
	expect_failure(sp_contents(pfn_of(&other, 0), buffer), "page_contents of another process's frame");
	end_puppet(&target);
}

CHECK(contents_outside, PLACE, .rule = "A frame that the target maps outside the range is refused", .did = "watched 4 of 8 pages, and asked for the frame of page 5",
      .expected = "an error", .mistake = "all of the target's frames are allowed", .hint = "The range of the table is the limit", .points = 1)
{
	struct puppet target = lettered(4);

	expect_failure(sp_contents(pfn_of(&target, 5), buffer), "page_contents of a page outside the range");
}

CHECK(contents_after_unmap, PLACE, .rule = "The frame must be mapped now", .did = "asked for the frame of a page that the target had unmapped",
      .expected = "an error", .mistake = "a frame that was mapped once stays allowed", .hint = "Look at the current table", .points = 1)
{
	struct puppet target = lettered(8);
	ulong_t pfn = pfn_of(&target, 2);

	p_munmap(&target, WINDOW + 2 * PAGE, 1);
	expect(target.pid, WINDOW + 2 * PAGE, 1, 0);
	expect_failure(sp_contents(pfn, buffer), "page_contents of an unmapped frame");
}

CHECK(contents_wild, PLACE, .rule = "A number that is no frame is refused", .did = "asked for the frames 0, 2^52 and 2^64 - 1",
      .expected = "an error for each, and no crash", .mistake = "pfn_to_page() of any number", .hint = "Look for the pfn in the table first", .points = 1)
{
	struct puppet target = lettered(8);

	expect_failure(sp_contents(0, buffer), "page_contents of frame 0");
	expect_failure(sp_contents(1UL << 52, buffer), "page_contents of frame 2^52");
	expect_failure(sp_contents(~0UL, buffer), "page_contents of frame 2^64 - 1");
	end_puppet(&target);
}

CHECK(contents_closed, PLACE, .rule = "Without an open table there are no contents", .did = "closed the table, and asked for a frame that the target still maps",
      .expected = "an error", .mistake = "only the caller's rights are checked", .hint = "The table must be active", .points = 1)
{
	struct puppet target = lettered(8);
	ulong_t pfn = pfn_of(&target, 0);

	expect_ret(sp_close(), 0, "close");
	expect_failure(sp_contents(pfn, buffer), "page_contents after close");
}

CHECK(contents_eperm, PLACE, .rule = "A caller without superuser rights gets no contents", .did = "asked as another user than root for a mapped frame",
      .expected = "-EPERM", .mistake = "the rights are only checked in open", .hint = "The same check as in open", .points = 1)
{
	struct puppet target = lettered(8), other = new_puppet();
	ulong_t at;

	if (geteuid())
		skipped("only root can become another user");
	at = p_mmap(&other, 0, 1, RW, ANON);
	if (p_call(&other, SYS_setuid, OTHER_USER, 0L, 0L, 0L, 0L, 0L))
		skipped("there is no user 65534 here: this is a user namespace");
	expect_ret(p_call(&other, abi->contents, pfn_of(&target, 0), at, 0L, 0L, 0L, 0L), -EPERM, "page_contents by uid 65534");
}

CHECK(contents_bad_buffer, PLACE, .rule = "An invalid buffer is an error", .did = "asked with the buffers NULL and 8", .expected = "an error, and no crash",
      .mistake = "memcpy() to a user's pointer", .hint = "copy_to_user()", .points = 1)
{
	struct puppet target = lettered(8);

	expect_failure(sp_contents(pfn_of(&target, 0), NULL), "page_contents into NULL");
	expect_failure(sp_contents(pfn_of(&target, 0), (void *)8), "page_contents into 8");
}
