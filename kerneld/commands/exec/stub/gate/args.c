/* What the host's calls read and write of the program's memory: they get copies of it (bounce.c), for the host's kernel
 * knows nothing of kerneld. A call that is in no row is refused with ENOSYS, as by a kernel that lacks it.
 *
 * A row names pointer arguments: which one, whether the host reads (R) or writes (W) there, and how much (args.h). */
#include "args.h"

#define NR_semctl 66
#define NR_msgctl 71
#define NR_fsconfig 431
enum { IPC_SET = 1, IPC_STAT, IPC_INFO, GETALL = 13, SETALL = 17, SEM_STAT, SEM_INFO, SEM_STAT_ANY };
enum { MSG_STAT = 11, MSG_INFO, MSG_STAT_ANY };

#define R(arg, n) {BYTES, arg, 0, 0, n}
#define W(arg, n) {BYTES, arg, 0, 1, n}
#define RBY(arg, other, n) {BY, arg, other, 0, n}
#define WBY(arg, other, n) {BY, arg, other, 1, n}
#define GOT(arg, other, n) {GOT, arg, other, 1, n}
#define GOT_INT(arg, other) {GOT, arg, other, 2, 1}	/* its length is an int */
#define DATA(arg, other) {DATA, arg, other, 0, 0}
#define BITMAP(arg, other) {BITS, arg, other, 1, 0}
#define WAT(arg, other) {AT, arg, other, 1, 1}
#define S(arg) {STRING, arg, 0, 0, 0}
#define IOV_R(arg, other) {IOVECS, arg, other, 0, 0}
#define IOV_W(arg, other) {IOVECS, arg, other, 1, 0}
#define MSG_R(arg) {MSGHDR, arg, 0, 0, 0}
#define MSG_W(arg) {MSGHDR, arg, 0, 1, 0}
#define MSGBUF_R(arg, other) {MSGBUF, arg, other, 0, 0}
#define MSGBUF_W(arg, other) {MSGBUF, arg, other, 1, 0}
#define CALL(nr, ...) {nr, 1, {__VA_ARGS__}}
#define PLAIN(nr) {nr, 1, {{0, 0, 0, 0, 0}}}

static const struct row rows[] = {
	CALL(0, GOT(1, 2, 1)), CALL(1, DATA(1, 2)), CALL(2, S(0)), PLAIN(3), CALL(4, S(0), W(1, 144)), CALL(5, W(1, 144)),
	CALL(6, S(0), W(1, 144)), CALL(7, WBY(0, 1, 8)), CALL(17, GOT(1, 2, 1)), CALL(18, DATA(1, 2)),
	CALL(19, IOV_W(1, 2)), CALL(20, IOV_R(1, 2)), CALL(21, S(0)), CALL(22, W(0, 8)),
	CALL(23, BITMAP(1, 0), BITMAP(2, 0), BITMAP(3, 0), W(4, 16)), PLAIN(34), CALL(35, R(0, 16), W(1, 16)),
	CALL(36, W(1, 32)), PLAIN(37), CALL(38, R(1, 32), W(2, 32)), CALL(40, W(2, 8)), CALL(42, RBY(1, 2, 1)),
	CALL(43, W(2, 4), WAT(1, 2)), CALL(44, RBY(4, 5, 1), DATA(1, 2)), CALL(45, GOT(1, 2, 1), W(5, 4), WAT(4, 5)),
	CALL(46, MSG_R(1)), CALL(47, MSG_W(1)), CALL(49, RBY(1, 2, 1)), CALL(51, W(2, 4), WAT(1, 2)),
	CALL(52, W(2, 4), WAT(1, 2)), CALL(53, W(3, 8)), CALL(54, RBY(3, 4, 1)), CALL(55, W(4, 4), WAT(3, 4)),
	PLAIN(62), CALL(63, W(0, 390)), PLAIN(64), CALL(65, RBY(1, 2, 6)), PLAIN(68),
	CALL(69, MSGBUF_R(1, 2)), CALL(70, MSGBUF_W(1, 2)), CALL(76, S(0)),
	PLAIN(77), CALL(78, GOT(1, 2, 1)), CALL(79, GOT(0, 1, 1)), CALL(80, S(0)), CALL(82, S(0), S(1)), CALL(83, S(0)),
	CALL(84, S(0)), CALL(85, S(0)), CALL(86, S(0), S(1)), CALL(87, S(0)), CALL(88, S(0), S(1)),
	CALL(89, S(0), GOT_INT(1, 2)), CALL(90, S(0)), CALL(92, S(0)), CALL(94, S(0)), CALL(96, W(0, 16), W(1, 8)),
	CALL(97, W(1, 16)), CALL(98, W(1, 144)), CALL(99, W(0, 112)), CALL(100, W(0, 32)), CALL(103, GOT(1, 2, 1)), PLAIN(105),
	PLAIN(106), PLAIN(113), PLAIN(114), CALL(115, GOT(1, 0, 4)), CALL(116, RBY(1, 0, 4)), PLAIN(117),
	CALL(118, W(0, 4), W(1, 4), W(2, 4)), PLAIN(119), CALL(120, W(0, 4), W(1, 4), W(2, 4)), PLAIN(122), PLAIN(123),
	CALL(125, W(0, 8), W(1, 24)), CALL(126, R(0, 8), R(1, 24)), CALL(128, R(0, 8), W(1, 128), R(2, 16)),
	CALL(129, R(2, 128)), CALL(130, R(0, 8)), CALL(132, S(0), R(1, 16)), CALL(133, S(0)), PLAIN(135),
	CALL(137, S(0), W(1, 120)), CALL(138, W(1, 120)), CALL(142, R(1, 4)), CALL(143, W(1, 4)), CALL(144, R(2, 4)),
	CALL(148, W(1, 16)), CALL(159, W(0, 208)), CALL(160, R(1, 16)), CALL(161, S(0)), PLAIN(162),
	CALL(164, R(0, 16), R(1, 8)), CALL(165, S(0), S(1), S(2), S(4)),
	CALL(166, S(0)), CALL(170, RBY(0, 1, 1)), CALL(171, RBY(0, 1, 1)), PLAIN(187), CALL(188, S(0), S(1), RBY(2, 3, 1)),
	CALL(189, S(0), S(1), RBY(2, 3, 1)), CALL(190, S(1), RBY(2, 3, 1)), CALL(191, S(0), S(1), GOT(2, 3, 1)),
	CALL(192, S(0), S(1), GOT(2, 3, 1)), CALL(193, S(1), GOT(2, 3, 1)), CALL(194, S(0), GOT(1, 2, 1)),
	CALL(195, S(0), GOT(1, 2, 1)), CALL(196, GOT(1, 2, 1)), CALL(197, S(0), S(1)), CALL(198, S(0), S(1)), CALL(199, S(1)),
	PLAIN(200), CALL(201, W(0, 8)), CALL(203, RBY(2, 1, 1)), CALL(204, GOT(2, 1, 1)), PLAIN(213),
	CALL(217, GOT(1, 2, 1)), PLAIN(218), PLAIN(219), CALL(220, RBY(1, 2, 6), R(3, 16)), PLAIN(221),
	CALL(222, R(1, 64), W(2, 4)), CALL(223, R(2, 32), W(3, 32)), CALL(224, W(1, 32)), PLAIN(225), PLAIN(226),
	CALL(227, R(1, 16)), CALL(228, W(1, 16)), CALL(229, W(1, 16)), CALL(230, R(2, 16), W(3, 16)), CALL(232, GOT(1, 2, 12)),
	CALL(233, R(3, 12)), PLAIN(234), CALL(235, S(0), R(1, 32)), CALL(240, S(0), R(3, 64)), CALL(241, S(0)),
	CALL(242, RBY(1, 2, 1), R(4, 16)), CALL(243, GOT(1, 2, 1), W(3, 4), R(4, 16)), CALL(244, {SIGEVENT, 1, 0, 0, 64}),
	CALL(245, R(1, 64), W(2, 64)),
	PLAIN(251), PLAIN(252), PLAIN(253), CALL(254, S(1)), PLAIN(255), CALL(257, S(1)), CALL(258, S(1)), CALL(259, S(1)),
	CALL(260, S(1)), CALL(261, S(1), R(2, 32)), CALL(262, S(1), W(2, 144)), CALL(263, S(1)), CALL(264, S(1), S(3)),
	CALL(265, S(1), S(3)), CALL(266, S(0), S(2)), CALL(267, S(1), GOT_INT(2, 3)), CALL(268, S(1)), CALL(269, S(1)),
	CALL(270, BITMAP(1, 0), BITMAP(2, 0), BITMAP(3, 0), W(4, 16), {SIGMASK, 5, 0, 0, 16}),
	CALL(271, WBY(0, 1, 8), W(2, 16), R(3, 8)), PLAIN(272),
	PLAIN(273), CALL(275, W(1, 8), W(3, 8)), PLAIN(276), PLAIN(277), CALL(280, S(1), R(2, 32)),
	CALL(281, GOT(1, 2, 12), R(4, 8)), CALL(282, R(1, 8)), PLAIN(284), PLAIN(285), CALL(286, R(2, 32), W(3, 32)),
	CALL(287, W(1, 32)),
	CALL(288, W(2, 4), WAT(1, 2)), CALL(289, R(1, 8)), CALL(293, W(0, 8)), PLAIN(294), CALL(295, IOV_W(1, 2)),
	CALL(296, IOV_R(1, 2)), PLAIN(300), CALL(301, S(4)), CALL(297, R(3, 128)),
	CALL(299, {MMSGHDR, 1, 2, 1, 0}, W(4, 16)), CALL(302, R(2, 16), W(3, 16)),
	CALL(305, W(1, 208)), PLAIN(306),
	CALL(307, {MMSGHDR, 1, 2, 0, 0}), PLAIN(308), CALL(309, W(0, 4), W(1, 4)), PLAIN(312), CALL(314, R(1, 56)),
	CALL(315, WBY(1, 2, 1)), CALL(316, S(1), S(3)), CALL(318, GOT(0, 1, 1)), CALL(319, S(0)), PLAIN(324),
	CALL(326, W(1, 8), W(3, 8)), CALL(327, IOV_W(1, 2)), CALL(328, IOV_R(1, 2)), CALL(332, S(1), W(4, 256)),
	CALL(424, R(2, 128)), CALL(428, S(1)), CALL(429, S(1), S(3)), CALL(430, S(0)), PLAIN(432), CALL(433, S(1)),
	PLAIN(434), PLAIN(438), CALL(437, S(1), RBY(2, 3, 1)), CALL(439, S(1)),
	CALL(441, GOT(1, 2, 12), R(3, 16), R(4, 8)),
	CALL(442, S(1), RBY(3, 4, 1)), CALL(451, R(1, 16), W(2, 40)), CALL(452, S(1)), PLAIN(436),
};
#define TABLE_SIZE 512

static const struct row *table[TABLE_SIZE];

#define IOC_SIZE(command) ((command) >> 16 & 0x3fff)

/* How much the old commands of terminals and sockets take; 0 for another. */
static int ioctl_bytes(u32 command)
{
	static const struct { uint16_t command, bytes; } old[] = {
		{0x5401, 60}, {0x5402, 60}, {0x5403, 60}, {0x5404, 60}, {0x5405, 18}, {0x5406, 18}, {0x5407, 18}, {0x5408, 18},
		{0x540f, 4}, {0x5410, 4}, {0x5411, 4}, {0x5412, 1}, {0x5413, 8}, {0x5414, 8}, {0x541b, 4}, {0x5421, 4}, {0x5429, 4},
		{0x8912, 16}, {0x8913, 40}, {0x8915, 40}, {0x8919, 40}, {0x891b, 40}, {0x8927, 40}, {0x8933, 40},
	};
	for (u64 i = 0; i < sizeof old / sizeof *old; i++)
		if (old[i].command == command)
			return old[i].bytes;
	/* A newer command says how much it takes, but some write more behind it: it is not copied. */
	return 0;
}

/* What prctl() and arch_prctl() read or write, by their command. */
static struct pointer prctl_pointer(long nr, u32 command)
{
	static const struct { long nr; u32 command; struct pointer pointer; } known[] = {
		{NR_prctl, 2, W(1, 4)}, {NR_prctl, 5, W(1, 4)}, {NR_prctl, 9, W(1, 4)}, {NR_prctl, 11, W(1, 4)},
		{NR_prctl, 15, {NAME, 1, 0, 0, 16}}, {NR_prctl, 16, W(1, 16)}, {NR_prctl, 19, W(1, 4)}, {NR_prctl, 25, W(1, 4)},
		{NR_prctl, 37, W(1, 4)}, {NR_prctl, 40, W(1, 8)}, {NR_prctl, 62, W(4, 8)}, {NR_prctl, 0x41555856, GOT(1, 2, 1)},
		{NR_arch_prctl, 0x1003, W(1, 8)}, {NR_arch_prctl, 0x1004, W(1, 8)}, {NR_arch_prctl, 0x1021, W(1, 8)},
		{NR_arch_prctl, 0x1022, W(1, 8)}, {NR_arch_prctl, 0x1024, W(1, 8)}, {NR_arch_prctl, 0x4001, W(1, 8)},
		{NR_arch_prctl, 0x4003, W(1, 8)}, {NR_arch_prctl, 0x5005, W(1, 8)},
	};
	for (u64 i = 0; i < sizeof known / sizeof *known; i++)
		if (known[i].nr == nr && known[i].command == command)
			return known[i].pointer;
	return (struct pointer){0};
}

/* What the argument of semctl() is. Source: Linux v6.8 ipc/sem.c:ksys_semctl(), include/uapi/asm-generic/sembuf.h. */
static struct pointer semctl_pointer(const u64 *args)
{
	u64 status[13];	/* struct semid64_ds; [10]: how many semaphores there are */
	switch ((u32)args[2]) {
	case IPC_SET:
		return (struct pointer)R(3, 104);
	case IPC_STAT: case SEM_STAT: case SEM_STAT_ANY:
		return (struct pointer)W(3, 104);
	case IPC_INFO: case SEM_INFO:
		return (struct pointer)W(3, 40);
	case GETALL: case SETALL:
		if (!sys4(NR_semctl, args[0], 0, IPC_STAT, status))
			return args[2] == GETALL ? (struct pointer)W(3, status[10] * 2) : (struct pointer)R(3, status[10] * 2);
	}
	return (struct pointer){0};
}

/* What the argument of msgctl() is. Source: Linux v6.8 ipc/msg.c:ksys_msgctl(), include/uapi/asm-generic/msgbuf.h. */
static struct pointer msgctl_pointer(const u64 *args)
{
	switch ((u32)args[1]) {
	case IPC_SET:
		return (struct pointer)R(2, 120);
	case IPC_STAT: case MSG_STAT: case MSG_STAT_ANY:
		return (struct pointer)W(2, 120);
	case IPC_INFO: case MSG_INFO:
		return (struct pointer)W(2, 32);
	}
	return (struct pointer){0};
}

/* What fsconfig() reads, by its command. Source: Linux v6.8 fs/fsopen.c:fsconfig(). */
static struct pointer fsconfig_value(const u64 *args)
{
	enum { SET_STRING = 1, SET_BINARY, SET_PATH, SET_PATH_EMPTY };
	switch ((u32)args[1]) {
	case SET_STRING: case SET_PATH: case SET_PATH_EMPTY:
		return (struct pointer)S(3);
	case SET_BINARY:
		return (struct pointer)RBY(3, 4, 1);
	}
	return (struct pointer){0};
}

static int fcntl_bytes(u64 command)
{
	if (command - 5 < 3 || command - 36 < 3)
		return 32;	/* locks */
	return command - 15 < 2 || command - 1035 < 4 ? 8 : 0;
}

/* Whether a command only reads what its argument points at: what that is may not be writable. */
static int only_reads(long nr, u32 command)
{
	static const uint16_t ioctls[] = {0x5402, 0x5403, 0x5404, 0x5406, 0x5407, 0x5408, 0x5410, 0x5412, 0x5414, 0x5421};
	static const uint16_t fcntls[] = {6, 7, 37, 38, 15, 1036, 1038};
	for (u64 i = 0; nr == NR_ioctl && i < sizeof ioctls / sizeof *ioctls; i++)
		if (ioctls[i] == command)
			return 1;
	for (u64 i = 0; nr == NR_fcntl && i < sizeof fcntls / sizeof *fcntls; i++)
		if (fcntls[i] == command)
			return 1;
	return 0;
}

/* The row of a call; `own` is for one whose pointers depend on an argument. 0 for one that is refused. */
const struct row *find_row(long nr, const u64 *args, struct row *own)
{
	int bytes = 0;
	if (!table[0])
		for (u64 i = 0; i < sizeof rows / sizeof *rows; i++)
			table[rows[i].nr] = &rows[i];
	if (nr == NR_ioctl) {
		bytes = ioctl_bytes(args[1]);
		if ((u32)args[1] > 0xffff)
			touch(args[2], IOC_SIZE(args[1]), args[1] >> 30 & 2 ? 1 : 0);
	} else if (nr == NR_fcntl) {
		bytes = fcntl_bytes((u32)args[1]);
	} else if (nr == NR_prctl || nr == NR_arch_prctl) {
		*own = (struct row){nr, 1, {prctl_pointer(nr, args[0])}};
		return own;
	} else if (nr == NR_fsconfig) {
		*own = (struct row){nr, 1, {S(2), fsconfig_value(args)}};
		return own;
	} else if (nr == NR_semctl || nr == NR_msgctl) {
		*own = (struct row){nr, 1, {nr == NR_semctl ? semctl_pointer(args) : msgctl_pointer(args)}};
		return own;
	} else {
		return (u64)nr < TABLE_SIZE ? table[nr] : 0;
	}
	*own = (struct row){nr, 1, {{bytes ? BYTES : NONE, 2, 0, !only_reads(nr, args[1]), bytes}}};
	return own;
}

/* Whether a call may wait for something that is not the disk, or for a signal. */
int may_wait(long nr)
{
	switch (nr) {
	case 0: case 1: case 2: case 7: case 16: case 17: case 18: case 19: case 20: case 23: case 35: case 40: case 42: case 43:
	case 44: case 45: case 46: case 47: case 65: case 69: case 70: case 72: case 85: case 103: case 128:
	case 129: case 130: case 220: case 230:
	case 232: case 242: case 243: case 257: case 270: case 271: case 275: case 281: case 288: case 295: case 296:
	case 297: case 299: case 307: case 318: case 326: case 327: case 328: case 424: case 437: case 441:
		return 1;
	}
	return 0;
}
