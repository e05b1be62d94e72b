"""prctl, as far as it is about memory. Answers to Linux v6.8 kernel/sys.c."""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.calls.madvise import set_anon_name_in_pieces
from kerneld.mm.ksm.unmerge import set_merge_any
from kerneld.mm.space.mdwe import set_mdwe
from kerneld.syscalls.answer import Answer, Call, Work, in_pieces
from kerneld.syscalls.memory import with_mmap_lock
from shared.uapi.mman import ANON_VMA_NAME_MAX_LEN, PR_SET_VMA_ANON_NAME, Pr

PRCTL_OPTIONS = frozenset(Pr)
_GETTERS = frozenset({Pr.GET_THP_DISABLE, Pr.GET_MDWE, Pr.GET_MEMORY_MERGE})
_NAME_CHARACTERS = frozenset(range(0x20, 0x7F)) - frozenset(b"\\`$[]")
"""Of the name of a mapping. Source: Linux v6.8 kernel/sys.c:is_valid_name_char()."""


def sys_prctl(call: Call) -> int | Answer | Work:
    """args: option, and four that depend on it. Of PR_SET_THP_DISABLE and PR_SET_MEMORY_MERGE, whether; of PR_SET_MDWE,
    flags; of PR_SET_DUMPABLE, 0 or 1; of PR_SET_VMA, as `_set_vma`.

    PR_GET_… returns it. Raises SysError(EINVAL) for any other option or value, and for an argument that is not used and
    not 0 (but of PR_SET_DUMPABLE and PR_GET_DUMPABLE); and as `set_mdwe` does.
    Source: Linux v6.8 kernel/sys.c:SYSCALL_DEFINE5(prctl).
    """
    option, mm, wanted, unused = call.int_arg(0), call.mm, call.args[1] != 0, any(call.args[2:5])
    if option == Pr.SET_VMA and option in PRCTL_OPTIONS:
        return _set_vma(call)
    if option in (Pr.GET_DUMPABLE, Pr.SET_DUMPABLE):
        return _dumpable(call)
    if option not in PRCTL_OPTIONS or unused or (option in _GETTERS and wanted):
        raise SysError(errno.EINVAL)
    if option == Pr.SET_MEMORY_MERGE:
        return in_pieces(with_mmap_lock(call, set_merge_any(mm, wanted)))
    if option == Pr.SET_THP_DISABLE:
        mm.thp_disabled = wanted
        return 0
    if option == Pr.SET_MDWE:
        set_mdwe(mm, call.args[1])
        return 0
    return {Pr.GET_MEMORY_MERGE: mm.merge_any, Pr.GET_THP_DISABLE: mm.thp_disabled}.get(Pr(option), mm.mdwe)


def _dumpable(call: Call) -> int:
    """Source: Linux v6.8 kernel/sys.c: PR_GET_DUMPABLE, PR_SET_DUMPABLE (SUID_DUMP_DISABLE and SUID_DUMP_USER)."""
    if call.int_arg(0) == Pr.SET_DUMPABLE:
        if call.args[1] > 1:
            raise SysError(errno.EINVAL)
        call.mm.dumpable = call.args[1] == 1
        return 0
    return call.mm.dumpable


def _set_vma(call: Call) -> int | Answer | Work:
    """args: PR_SET_VMA, PR_SET_VMA_ANON_NAME, address, length, pointer; inline: the name, up to a NUL. Pointer 0: none.

    Raises SysError(EINVAL) for another option, a name of 80 bytes or more, and one with other than printable ASCII or
    with a character of `\\`$[]`; SysError(EFAULT) for a name without bytes; and as `set_anon_name_in_pieces`.
    Source: Linux v6.8 kernel/sys.c:prctl_set_vma().
    """
    _, option, start, length, pointer = call.args[:5]
    if option != PR_SET_VMA_ANON_NAME:
        raise SysError(errno.EINVAL)
    name = None
    if pointer:
        if not call.data:
            raise SysError(errno.EFAULT)
        text, _, _ = bytes(call.data[:ANON_VMA_NAME_MAX_LEN]).partition(b"\0")
        if len(text) >= ANON_VMA_NAME_MAX_LEN or not _NAME_CHARACTERS.issuperset(text):
            raise SysError(errno.EINVAL)
        name = text.decode("ascii")
    return in_pieces(with_mmap_lock(call, set_anon_name_in_pieces(call.mm, start, length, name)))
