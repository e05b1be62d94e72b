/* What the host's system calls read and write of the program's memory: it is faulted in before the call, for the host's
 * kernel knows nothing of kerneld. A call that is in no row is refused with ENOSYS, as by a kernel that lacks it.
 *
 * A row names pointer arguments: which one, whether the host reads (R) or writes (W) there, and how much: so many bytes,
 * an argument's value times so many bytes (by), what an argument points at (at), a string, iovecs, a msghdr. */
#include "native.h"

enum how { NONE, BYTES, BY, AT, STRING, IOVECS, MSGHDR, MMSGHDR };
struct pointer { unsigned char how, argument, other, write; uint16_t bytes; };
struct row { uint16_t nr; unsigned char known; struct pointer pointers[5]; };

#define R(arg, n) {BYTES, arg, 0, 0, n}
#define W(arg, n) {BYTES, arg, 0, 1, n}
#define RBY(arg, other, n) {BY, arg, other, 0, n}
#define WBY(arg, other, n) {BY, arg, other, 1, n}
#define WAT(arg, other) {AT, arg, other, 1, 1}
#define S(arg) {STRING, arg, 0, 0, 0}
#define IOV_R(arg, other) {IOVECS, arg, other, 0, 0}
#define IOV_W(arg, other) {IOVECS, arg, other, 1, 0}
#define MSG_R(arg) {MSGHDR, arg, 0, 0, 0}
#define MSG_W(arg) {MSGHDR, arg, 0, 1, 0}
#define CALL(nr, ...) {nr, 1, {__VA_ARGS__}}
#define PLAIN(nr) {nr, 1, {{0, 0, 0, 0, 0}}}

static const struct row rows[] = {
	CALL(0, WBY(1, 2, 1)), CALL(1, RBY(1, 2, 1)), CALL(2, S(0)), PLAIN(3), CALL(4, S(0), W(1, 144)), CALL(5, W(1, 144)),
	CALL(6, S(0), W(1, 144)), CALL(7, WBY(0, 1, 8)), CALL(17, WBY(1, 2, 1)), CALL(18, RBY(1, 2, 1)),
	CALL(19, IOV_W(1, 2)), CALL(20, IOV_R(1, 2)), CALL(21, S(0)), CALL(22, W(0, 8)),
	CALL(23, W(1, 128), W(2, 128), W(3, 128), W(4, 16)), PLAIN(34), CALL(35, R(0, 16), W(1, 16)),
	CALL(36, W(1, 32)), PLAIN(37), CALL(38, R(1, 32), W(2, 32)), CALL(40, W(2, 8)), CALL(42, RBY(1, 2, 1)),
	CALL(43, W(2, 4), WAT(1, 2)), CALL(44, RBY(1, 2, 1), RBY(4, 5, 1)), CALL(45, WBY(1, 2, 1), W(5, 4), WAT(4, 5)),
	CALL(46, MSG_R(1)), CALL(47, MSG_W(1)), CALL(49, RBY(1, 2, 1)), CALL(51, W(2, 4), WAT(1, 2)),
	CALL(52, W(2, 4), WAT(1, 2)), CALL(53, W(3, 8)), CALL(54, RBY(3, 4, 1)), CALL(55, W(4, 4), WAT(3, 4)),
	CALL(61, W(1, 4), W(3, 144)), PLAIN(62), CALL(63, W(0, 390)), PLAIN(64), CALL(65, RBY(1, 2, 6)), CALL(76, S(0)),
	PLAIN(72), PLAIN(77), CALL(78, WBY(1, 2, 1)), CALL(79, WBY(0, 1, 1)), CALL(80, S(0)), CALL(82, S(0), S(1)), CALL(83, S(0)),
	CALL(84, S(0)), CALL(85, S(0)), CALL(86, S(0), S(1)), CALL(87, S(0)), CALL(88, S(0), S(1)),
	CALL(89, S(0), WBY(1, 2, 1)), CALL(90, S(0)), CALL(92, S(0)), CALL(94, S(0)), CALL(96, W(0, 16), W(1, 8)),
	CALL(97, W(1, 16)), CALL(98, W(1, 144)), CALL(99, W(0, 112)), CALL(100, W(0, 32)), CALL(103, WBY(1, 2, 1)), PLAIN(105),
	PLAIN(106), PLAIN(113), PLAIN(114), CALL(115, WBY(1, 0, 4)), CALL(116, RBY(1, 0, 4)), PLAIN(117),
	CALL(118, W(0, 4), W(1, 4), W(2, 4)), PLAIN(119), CALL(120, W(0, 4), W(1, 4), W(2, 4)), PLAIN(122), PLAIN(123),
	CALL(125, W(0, 8), W(1, 24)), CALL(126, R(0, 8), R(1, 24)), CALL(127, W(0, 8)), CALL(128, R(0, 8), W(1, 128), R(2, 16)),
	CALL(129, R(2, 128)), CALL(130, R(0, 8)), CALL(132, S(0), R(1, 16)), CALL(133, S(0)), PLAIN(135),
	CALL(137, S(0), W(1, 120)), CALL(138, W(1, 120)), CALL(142, R(1, 4)), CALL(143, W(1, 4)), CALL(144, R(2, 4)),
	CALL(148, W(1, 16)), PLAIN(157), PLAIN(158), CALL(160, R(1, 16)), CALL(161, S(0)), PLAIN(162), CALL(165, S(0), S(1), S(2), S(4)),
	CALL(166, S(0)), CALL(170, RBY(0, 1, 1)), PLAIN(187), CALL(188, S(0), S(1), RBY(2, 3, 1)),
	CALL(189, S(0), S(1), RBY(2, 3, 1)), CALL(190, S(1), RBY(2, 3, 1)), CALL(191, S(0), S(1), WBY(2, 3, 1)),
	CALL(192, S(0), S(1), WBY(2, 3, 1)), CALL(193, S(1), WBY(2, 3, 1)), CALL(194, S(0), WBY(1, 2, 1)),
	CALL(195, S(0), WBY(1, 2, 1)), CALL(196, WBY(1, 2, 1)), CALL(197, S(0), S(1)), CALL(198, S(0), S(1)), CALL(199, S(1)),
	PLAIN(200), CALL(201, W(0, 8)), PLAIN(202), CALL(203, RBY(2, 1, 1)), CALL(204, WBY(2, 1, 1)), PLAIN(213),
	CALL(217, WBY(1, 2, 1)), PLAIN(218), PLAIN(219), CALL(220, RBY(1, 2, 6), R(3, 16)), PLAIN(221),
	CALL(222, R(1, 64), W(2, 4)), CALL(223, R(2, 32), W(3, 32)), CALL(224, W(1, 32)), PLAIN(225), PLAIN(226),
	CALL(227, R(1, 16)), CALL(228, W(1, 16)), CALL(229, W(1, 16)), CALL(230, R(2, 16), W(3, 16)), CALL(232, WBY(1, 2, 12)),
	CALL(233, R(3, 12)), PLAIN(234), CALL(235, S(0), R(1, 32)), CALL(240, S(0), R(3, 64)), CALL(241, S(0)),
	CALL(242, RBY(1, 2, 1), R(4, 16)), CALL(243, WBY(1, 2, 1), W(3, 4), R(4, 16)), CALL(247, W(2, 128), W(4, 144)),
	PLAIN(251), PLAIN(252), PLAIN(253), CALL(254, S(1)), PLAIN(255), CALL(257, S(1)), CALL(258, S(1)), CALL(259, S(1)),
	CALL(260, S(1)), CALL(261, S(1), R(2, 32)), CALL(262, S(1), W(2, 144)), CALL(263, S(1)), CALL(264, S(1), S(3)),
	CALL(265, S(1), S(3)), CALL(266, S(0), S(2)), CALL(267, S(1), WBY(2, 3, 1)), CALL(268, S(1)), CALL(269, S(1)),
	CALL(270, W(1, 128), W(2, 128), W(3, 128), W(4, 16), R(5, 16)), CALL(271, WBY(0, 1, 8), W(2, 16), R(3, 8)), PLAIN(272),
	PLAIN(273), CALL(275, W(1, 8), W(3, 8)), PLAIN(276), PLAIN(277), CALL(280, S(1), R(2, 32)),
	CALL(281, WBY(1, 2, 12), R(4, 8)), CALL(282, R(1, 8)), PLAIN(284), PLAIN(285), CALL(286, R(2, 32), W(3, 32)), CALL(287, W(1, 32)),
	CALL(288, W(2, 4), WAT(1, 2)), CALL(289, R(1, 8)), CALL(293, W(0, 8)), PLAIN(294), CALL(295, IOV_W(1, 2)),
	CALL(296, IOV_R(1, 2)), CALL(297, R(3, 128)), CALL(299, {MMSGHDR, 1, 2, 1, 0}, W(4, 16)), CALL(302, R(2, 16), W(3, 16)), PLAIN(306),
	CALL(307, {MMSGHDR, 1, 2, 0, 0}), PLAIN(308), CALL(309, W(0, 4), W(1, 4)), PLAIN(312), CALL(314, R(1, 56)),
	CALL(315, WBY(1, 2, 1)), CALL(316, S(1), S(3)), CALL(318, WBY(0, 1, 1)), CALL(319, S(0)), PLAIN(324),
	CALL(326, W(1, 8), W(3, 8)), CALL(327, IOV_W(1, 2)), CALL(328, IOV_R(1, 2)), CALL(332, S(1), W(4, 256)),
	CALL(424, R(2, 128)), PLAIN(434), PLAIN(438), CALL(437, S(1), RBY(2, 3, 1)), CALL(439, S(1)), CALL(441, WBY(1, 2, 12), R(3, 16), R(4, 8)),
	CALL(452, S(1)), PLAIN(16), PLAIN(436),
};
#define TABLE_SIZE 512

static const struct row *table[TABLE_SIZE];

static const struct row *find_row(u64 nr)
{
	if (!table[0])
		for (u64 i = 0; i < sizeof rows / sizeof *rows; i++)
			table[rows[i].nr] = &rows[i];
	return nr < TABLE_SIZE ? table[nr] : 0;
}

struct user_iovec { u64 base, length; };
struct user_msghdr { u64 name; u32 namelen, pad; u64 iov, iovlen, control, controllen; u64 flags; };

static void touch_iovecs(u64 at, u64 count, int write)
{
	struct user_iovec iovec;
	for (u64 i = 0; i < count && i < 1024; i++) {
		if (user_copy(&iovec, (void *)(at + i * sizeof iovec), sizeof iovec))
			return;
		touch(iovec.base, iovec.length, write);
	}
}

static void touch_message(u64 at, int write)
{
	struct user_msghdr message;
	if (user_copy(&message, (void *)at, sizeof message))
		return;
	if (write)
		touch(at, sizeof message, 1);
	touch(message.name, message.name ? message.namelen : 0, write);
	touch(message.control, message.control ? message.controllen : 0, write);
	touch_iovecs(message.iov, message.iovlen, write);
}

static void touch_pointer(const struct pointer *pointer, const u64 *args)
{
	u64 at = args[pointer->argument], other = args[pointer->other];
	u32 length = 0;
	if (!at)
		return;
	switch (pointer->how) {
	case BYTES:
		touch(at, pointer->bytes, pointer->write);
		break;
	case BY:
		touch(at, other * pointer->bytes, pointer->write);
		break;
	case AT:
		if (other && !user_copy(&length, (void *)other, sizeof length))
			touch(at, length, pointer->write);
		break;
	case STRING:
		user_strlen((const char *)at);
		break;
	case IOVECS:
		touch_iovecs(at, other, pointer->write);
		break;
	case MSGHDR:
		touch_message(at, pointer->write);
		break;
	case MMSGHDR:
		for (u64 i = 0; i < other && i < 1024; i++) {
			touch(at + i * 64, 64, 1);
			touch_message(at + i * 64, pointer->write);
		}
		break;
	}
}

#define IOC_SIZE(command) ((command) >> 16 & 0x3fff)

/* A device says itself what it takes: the numbers of newer commands have the size in them, those of terminals not. */
static void touch_ioctl(const u64 *args)
{
	u32 command = args[1];
	static const struct { uint16_t command, bytes; } old[] = {
		{0x5401, 60}, {0x5402, 60}, {0x5403, 60}, {0x5404, 60}, {0x5405, 18}, {0x5406, 18}, {0x5407, 18}, {0x5408, 18},
		{0x540f, 4}, {0x5410, 4}, {0x5411, 4}, {0x5412, 1}, {0x5413, 8}, {0x5414, 8}, {0x541b, 4}, {0x5421, 4}, {0x5429, 4},
		{0x8912, 16}, {0x8913, 40}, {0x8915, 40}, {0x8919, 40}, {0x891b, 40}, {0x8927, 40}, {0x8933, 40},
	};
	if (command > 0xffff) {
		touch(args[2], IOC_SIZE(command), command >> 30 & 2 ? 1 : 0);
		return;
	}
	for (u64 i = 0; i < sizeof old / sizeof *old; i++)
		if (old[i].command == command)
			touch(args[2], old[i].bytes, command != 0x5402 && command != 0x5403 && command != 0x5404);
}

#define FUTEX_CMD(op) ((op) & 0x7f)

static void touch_futex(const u64 *args)
{
	static const u32 with_timeout = 1 << 0 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 13;
	static const u32 with_second = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 11 | 1 << 12;
	static const u32 writes = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 13;
	u32 command = 1 << (FUTEX_CMD(args[1]) & 31);
	touch(args[0], 4, command & writes ? 1 : 0);
	if (command & with_timeout && args[3])
		touch(args[3], 16, 0);
	if (command & with_second)
		touch(args[4], 4, command & writes ? 1 : 0);
}

/* Fault the buffers of one of the host's calls in, as far as they are there; 0, or -ENOSYS for one that is not passed. */
int prepare(long nr, const u64 *args)
{
	const struct row *row = find_row(nr);
	if (!row)
		return -ENOSYS;
	for (int i = 0; i < 5 && row->pointers[i].how; i++)
		touch_pointer(&row->pointers[i], args);
	if (nr == NR_ioctl)
		touch_ioctl(args);
	else if (nr == NR_futex)
		touch_futex(args);
	else if (nr == NR_fcntl && (args[1] - 5 < 3 || args[1] - 36 < 3 || args[1] - 15 < 2))
		touch(args[2], 32, 1);
	return 0;
}
