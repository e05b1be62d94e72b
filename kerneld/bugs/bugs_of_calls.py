"""The mistakes of the calls: open, close, start, stop, page_contents. Words only: kerneld/bugs/plants makes them."""

from __future__ import annotations

from kerneld.bugs.bug import Bug

BUGS = {
    "open-anyone": Bug(
        "open does not look at its caller's rights: any user can watch any process. capable() is missing.",
        ("open_eperm",),
    ),
    "contents-anyone": Bug(
        "page_contents does not look at its caller's rights: any user reads the frames of the target. The check in "
        "open is not enough, since the calls have different callers.",
        ("contents_eperm",),
    ),
    "open-second": Bug(
        "open does not ask whether a table is open. The second open takes the table over, and the first opener's is "
        "gone.",
        ("open_ebusy_other", "open_ebusy_self"),
    ),
    "open-second-self": Bug(
        "open refuses other processes while a table is open, and lets the opener itself open again. It is EBUSY for "
        "everybody.",
        ("open_ebusy_self",),
    ),
    "open-esrch": Bug(
        "A process that does not exist gives ESRCH. The assignment wants EINVAL.",
        ("open_no_process", "open_bad_pids"),
    ),
    "open-pid-zero": Bug(
        "Pid 0 is taken for the caller, as in kill(2) or getpgid(2). No process of a user has pid 0: EINVAL.",
        ("open_bad_pids",),
    ),
    "open-thread": Bug(
        "find_task_by_vpid() finds threads too, and nobody looks whether the task leads its group. The target must be "
        "a process.",
        ("open_thread",),
    ),
    "open-reversed": Bug(
        "Bounds in the wrong order are exchanged silently. A start above the end is EINVAL.",
        ("open_reversed",),
    ),
    "open-start-rounded": Bug(
        "A start inside a page is rounded down silently. The caller then reads entries of other pages than it asked "
        "for.",
        ("open_start_unaligned",),
    ),
    "open-end-rounded": Bug(
        "An end inside a page is rounded down silently. Only the start is checked.",
        ("open_end_unaligned",),
    ),
    "truncate-start": Bug(
        "A range over the limit loses its begin instead of its end.",
        ("open_truncates_not_start",),
    ),
    "truncate-silently": Bug(
        "A range over the limit is cut in the kernel, and the caller's struct is not copied back: the caller reads "
        "entries that do not exist.",
        ("open_truncates",),
    ),
    "truncate-refused": Bug(
        "A range over the limit gives EINVAL. It must be cut at its end.",
        ("open_truncates", "open_truncated_tracks"),
    ),
    "limit-excluded": Bug(
        "The limit itself is cut by a page: >= stands where > belongs.",
        ("open_limit",),
    ),
    "open-failure-keeps-busy": Bug(
        "open sets the owner before it has checked everything. After an open that failed, the table is busy.",
        ("open_failure_leaves_nothing",),
    ),
    "entries-touched": Bug(
        "open does not look whether entries have physical pages. remap_pfn_range() meets present entries.",
        ("entries_touched", "entries_touched_last"),
    ),
    "entries-first-page": Bug(
        "open looks at the first page of entries only. The other pages of the table may have been touched.",
        ("entries_touched_last",),
    ),
    "entries-any-size": Bug(
        "open looks whether entries are mapped, and not how long: the table ends outside the mapping.",
        ("entries_too_small",),
    ),
    "entries-rounded-down": Bug(
        "The size of the table is rounded down to pages: the last entries lie outside the mapping.",
        ("entries_rounded_up",),
    ),
    "entries-next-vma": Bug(
        "find_vma() finds the next mapping when the address itself is in none. vma_lookup() does not.",
        ("entries_unmapped",),
    ),
    "entries-null": Bug(
        "entries of NULL are not refused.",
        ("entries_null",),
    ),
    "entries-unaligned": Bug(
        "entries inside a page are rounded down: the kernel writes elsewhere than the caller reads.",
        ("entries_unaligned",),
    ),
    "entries-whole-vma": Bug(
        "entries must begin a mapping, because the VMA is never split. Memory of .bss and of a larger mmap is refused.",
        ("entries_inside", "entries_static"),
    ),
    "entries-one-page": Bug(
        "Only the first page of the table is mapped to the caller: 170 entries live, and the others never change.",
        ("entries_two_pages",),
    ),
    "vaddr-missing": Bug(
        "start does not write the addresses of the entries.",
        ("entries_vaddrs",),
    ),
    "close-anyone": Bug(
        "close does not look at its caller: any process can close the table.",
        ("close_by_other",),
    ),
    "close-child": Bug(
        "close lets a child of the opener close: what is compared is something that fork copies.",
        ("close_by_child",),
    ),
    "close-keeps-busy": Bug(
        "close does not reset the owner: nobody can open until the process has ended.",
        ("close_works",),
    ),
    "close-owner-stays": Bug(
        "close does not reset the owner's pid: until it ends, only the same process can open again.",
        ("close_frees_for_others",),
    ),
    "close-while-tracking-refused": Bug(
        "close gives EINVAL while the table tracks. It must stop by itself.",
        ("close_while_tracking",),
    ),
    "close-says-yes": Bug(
        "close returns 0 when there is nothing to close.",
        ("close_without_open", "close_twice"),
    ),
    "close-leaks": Bug(
        "close does not free the pages of the table. Each open and close costs memory for ever.",
        ("stress_opens",),
    ),
    "exit-no-cleanup": Bug(
        "Nothing happens at the end of an opener that has not closed: the table is busy for ever. do_exit() needs a "
        "hook.",
        ("exit_return", "exit_sigkill"),
    ),
    "exit-call-only": Bug(
        "The clean-up is in exit_group(2). A process that is killed never makes that call.",
        ("exit_sigkill",),
    ),
    "exit-after-target": Bug(
        "The clean-up returns early when the target has ended: the table stays busy.",
        ("exit_after_target",),
    ),
    "exit-of-child-closes": Bug(
        "The end of a child of the opener closes the table of its parent.",
        ("exit_child_keeps_table",),
    ),
    "start-anyone": Bug(
        "start does not look at its caller.",
        ("start_by_other",),
    ),
    "stop-anyone": Bug(
        "stop does not look at its caller: any process can freeze the table.",
        ("stop_by_other",),
    ),
    "start-child": Bug(
        "start and stop let a child of the opener in.",
        ("start_by_child",),
    ),
    "start-adds-only": Bug(
        "start sets flags and clears none: what was unmapped while stopped stays ALLOCATED.",
        ("start_resets_vmas",),
    ),
    "start-keeps-frames": Bug(
        "start does not clear MAPPED and pfn: frames that went away while stopped stay in the table.",
        ("start_resets_ptes",),
    ),
    "start-fills-nothing": Bug(
        "start begins to track, and does not fill the table with the current state.",
        ("start_fills_vmas", "start_fills_ptes"),
    ),
    "start-vmas-only": Bug(
        "start looks at mappings only, and not at the page table of the target.",
        ("start_fills_ptes",),
    ),
    "start-twice-refused": Bug(
        "start while tracking gives EBUSY. It must reset the table.",
        ("start_twice",),
    ),
    "start-once": Bug(
        "After a stop, start fills the table and registers nothing: there are no updates any more.",
        ("start_again",),
    ),
    "start-late": Bug(
        "start begins at the first mapping it finds: what stood in the entries before it stays.",
        ("start_resets_vmas",),
    ),
    "open-tracks": Bug(
        "open registers the hooks already: the table changes before start.",
        ("start_needed",),
    ),
    "stop-goes-on": Bug(
        "stop does nothing: the hooks do not ask whether tracking is on.",
        ("stop_freezes_vmas", "stop_freezes_ptes"),
    ),
    "stop-vmas-only": Bug(
        "stop ends the hooks of mappings, and not those of faults.",
        ("stop_freezes_ptes",),
    ),
    "stop-empties": Bug(
        "stop clears the table. It must keep its last state.",
        ("stop_keeps_table",),
    ),
    "contents-any-frame": Bug(
        "page_contents gives any frame of the machine to its caller.",
        ("contents_not_mapped",),
    ),
    "contents-closed": Bug(
        "page_contents works without an open table.",
        ("contents_closed",),
    ),
    "contents-whole-target": Bug(
        "page_contents gives every frame of the target, also outside the range.",
        ("contents_outside",),
    ),
    "contents-stale": Bug(
        "page_contents gives a frame that the target once had, and that may be another process's now.",
        ("contents_after_unmap",),
    ),
    "contents-short": Bug(
        "page_contents copies less than the whole page.",
        ("contents_right",),
    ),
    "contents-first-copy": Bug(
        "page_contents gives the copy of its first call for a frame again and again.",
        ("contents_fresh",),
    ),
}
