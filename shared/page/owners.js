// Whose memory each frame is: the second way to colour physical memory. The index is the colour (view.css: --owner-…).
// Five processes have a letter, those with the most frames. Pure.

import { FREE, PCP, PRESENT, PTRS, SPECIAL, entryPfn } from "kd/model.js";
import { USE } from "kd/kinds.js";

const LETTERS = "ABCDE";
export const OWNER_KINDS = [
  { name: "free", mark: "", about: "Nobody has the frame." },
  { name: "kernel", mark: "k", about: "The kernel's own: page tables, the zero page, what is reserved." },
  { name: "no process", mark: "−", about: "No process maps it: a page in the page cache or in the swap cache." },
  { name: "several processes", mark: "+", about: "Entries of more than one process map it." },
  ...[...LETTERS].map((mark) => ({ name: mark, mark, about: "One process alone maps it." })),
  { name: "another process", mark: "*", about: "One process alone maps it, and five others have more frames." },
];
export const OWNER = { free: 0, kernel: 1, none: 2, several: 3, first: 4, other: 4 + LETTERS.length };
const NOBODY = 0, SEVERAL = -1;

/** Return {owners, pids}: for each frame an index of OWNER_KINDS, and the processes that have a letter, in their order. */
export function frameOwners(machine, uses) {
  const pids = ownersByPid(machine), numbers = new Map(), owners = new Uint8Array(machine.nrFrames);
  for (const pid of pids) if (pid > 0) numbers.set(pid, (numbers.get(pid) || 0) + 1);
  const chosen = [...numbers].sort((one, other) => other[1] - one[1] || one[0] - other[0]).slice(0, LETTERS.length).map(([pid]) => pid);
  const index = new Map(chosen.map((pid, n) => [pid, OWNER.first + n]));
  for (let pfn = 0; pfn < owners.length; pfn += 1) {
    const pid = pids[pfn], use = uses[pfn];
    if (use === USE.reserved || use === USE["zero page"] || use === USE["page table"]) owners[pfn] = OWNER.kernel;
    else if (pid !== NOBODY) owners[pfn] = pid === SEVERAL ? OWNER.several : index.get(pid) ?? OWNER.other;
    else if (machine.frames[pfn] === FREE || machine.frames[pfn] === PCP) owners[pfn] = OWNER.free;
    else owners[pfn] = use === USE.other ? OWNER.kernel : OWNER.none;
  }
  return { owners, pids: chosen };
}

/** Return for each frame the process that alone maps it, SEVERAL, or NOBODY. A copy that waits for its child counts as one. */
function ownersByPid(machine) {
  const pids = new Int32Array(machine.nrFrames);
  for (const mm of machine.mms.values()) {
    const own = mm.pid || -1 - mm.number;
    const note = (pfn) => { pids[pfn] = pids[pfn] === NOBODY || pids[pfn] === own ? own : SEVERAL; };
    for (const leaf of mm.leaves.values()) {
      for (let at = 0; at < 2 * PTRS; at += 2) {
        const low = leaf[at];
        if (low & PRESENT && !(low & SPECIAL)) note(entryPfn(low, leaf[at + 1]));
      }
    }
    for (const [low, high] of mm.huge.values()) {
      if (!(low & SPECIAL)) for (let n = 0; n < PTRS; n += 1) note(entryPfn(low, high) + n);
    }
  }
  return pids;
}
