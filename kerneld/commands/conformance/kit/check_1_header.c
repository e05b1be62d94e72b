/* The header that `make headers_install` puts into /usr/include/linux. */
#include "kit.h"

#define PLACE .place = "Defining the shadow page table"
#define HINT_INSTALL .hint = "make headers_install INSTALL_HDR_PATH=/usr, or make HEADERS=DIR for this kit"

static void need_header(void)
{
	expect_that(header.is_there, "there is no <linux/shadowpt.h> where this kit was compiled");
	expect_that(!header.is_broken, "a program that includes it and uses its names does not compile: header.errors");
}

CHECK(header_installed, PLACE, .rule = "The UAPI header linux/shadowpt.h is installed, and programs compile with it",
      .did = "compiled a program with #include <linux/shadowpt.h>", .expected = "it is found, and has every name",
      .mistake = "the header lies in include/linux only, or needs a kernel header", HINT_INSTALL, .points = 2)
{
	need_header();
}

CHECK(header_pte, PLACE, .rule = "struct shadow_pte has vaddr, pfn and state_flags, in this order, and nothing else",
      .did = "took sizeof and offsetof of struct shadow_pte", .expected = "three words: 0, 8, 16 of 24 bytes",
      .mistake = "a field was added, or has a narrower type",
      .hint = "The structures are the whole interface: keep other data in include/linux/shadowpt.h", .points = 1)
{
	const int word = sizeof(ulong_t);

	need_header();
	expect_that(header.pte_bytes == 3 * word, "struct shadow_pte has %d bytes", header.pte_bytes);
	for (int at = 0; at < 3; at++)
		expect_that(header.pte_offsets[at] == at * word, "its field %d is at %d", at, header.pte_offsets[at]);
}

CHECK(header_table, PLACE, .rule = "struct user_shadow_pt has start_vaddr, end_vaddr and entries, and nothing else",
      .did = "took sizeof and offsetof of struct user_shadow_pt", .expected = "three words: 0, 8, 16 of 24 bytes",
      .mistake = "a count or a pid was added to the structure",
      .hint = "The pid is an argument of open; keep the rest in the kernel", .points = 1)
{
	const int word = sizeof(ulong_t);

	need_header();
	expect_that(header.table_bytes == 3 * word, "struct user_shadow_pt has %d bytes", header.table_bytes);
	for (int at = 0; at < 3; at++)
		expect_that(header.table_offsets[at] == at * word, "its field %d is at %d", at, header.table_offsets[at]);
}

CHECK(header_flags, PLACE, .rule = "Each state flag has the given value", .did = "read the SPTE_ macros",
      .expected = "the values of the assignment", .mistake = "bits were numbered instead of written as values",
      .hint = "1, 2 and 4 are masks, not positions", .points = 1)
{
	need_header();
	expect_that(header.allocated == abi->allocated, "SPTE_VADDR_ALLOCATED is %lu", header.allocated);
	expect_that(header.anonymous == abi->anonymous, "SPTE_VADDR_ANONYMOUS is %lu", header.anonymous);
	expect_that(header.mapped == abi->mapped, "SPTE_PTE_MAPPED is %lu", header.mapped);
}

CHECK(header_macros, PLACE, .rule = "A macro for each flag tests whether it is set",
      .did = "used is_vaddr_allocated, is_vaddr_anonymous and is_pte_mapped on single flags and on all others",
      .expected = "each is true for its own flag alone", .mistake = "a macro tests another flag, or compares with ==",
      .hint = "(state & FLAG) is the test", .points = 1)
{
	need_header();
	expect_that(header.macros_right, "a macro is true for another flag, or false for its own");
}

CHECK(header_range, PLACE, .rule = "MAX_SPT_RANGE is the longest range, 2,048 pages", .did = "read MAX_SPT_RANGE",
      .expected = "0x800000", .mistake = "the limit was written in pages", .hint = "It is in bytes", .points = 1)
{
	need_header();
	expect_that(header.max_range == MAX_RANGE, "MAX_SPT_RANGE is %#lx", header.max_range);
}
