// What follows from the model about frames, as shared/recording/physical.py has it in Python: how many entries map each,
// what each is used for, who maps one, the free blocks by order, the swap file. Pure.

import { FREE, PAGE, PCP, PRESENT, PSE, PTRS, SPECIAL, entryPfn, swapSlot } from "kd/model.js";
import { USE } from "kd/kinds.js";

export const MAX_ORDER = 10;
const PG_TABLES = 1 << 11 | 1 << 14, PG_SWAPBACKED = 1 << 9;

/** How many entries map each frame. It follows a machine: only leaf tables that have changed are counted again. */
export class MapCounts {
  constructor() {
    this.reset(null);
  }

  reset(machine) {
    this.machine = machine;
    this.counts = new Int32Array(machine ? machine.nrFrames : 0);
    this.leaves = new Map(); // leaf -> {stamp, copy, round}
    this.huge = [];
    this.round = 0;
    this.version = (this.version || 0) + 1; // Another one when a frame has become shared, or is not any more.
  }

  /** Bring the counts up to a machine's, and return them. */
  update(machine) {
    if (machine !== this.machine || machine.nrFrames !== this.counts.length) this.reset(machine);
    this.round += 1;
    const huge = [];
    for (const mm of machine.mms.values()) {
      for (const leaf of mm.leaves.values()) this.follow(leaf);
      for (const [low, high] of mm.huge.values()) if (!(low & SPECIAL)) huge.push(entryPfn(low, high));
    }
    for (const [leaf, had] of this.leaves) {
      if (had.round === this.round) continue;
      this.add(had.copy, -1);
      this.leaves.delete(leaf);
    }
    if (huge.join() !== this.huge.join()) {
      for (const pfn of this.huge) for (let n = 0; n < PTRS; n += 1) this.change(pfn + n, -1);
      for (const pfn of huge) for (let n = 0; n < PTRS; n += 1) this.change(pfn + n, 1);
      this.huge = huge;
    }
    return this.counts;
  }

  follow(leaf) {
    let had = this.leaves.get(leaf);
    if (!had) this.leaves.set(leaf, (had = { stamp: -1, copy: new Uint32Array(2 * PTRS), round: 0 }));
    had.round = this.round;
    if (had.stamp === leaf.stamp) return;
    this.add(had.copy, -1);
    had.copy.set(leaf);
    had.stamp = leaf.stamp;
    this.add(had.copy, 1);
  }

  add(entries, sign) {
    for (let at = 0; at < 2 * PTRS; at += 2) {
      const low = entries[at];
      if (low & PRESENT && !(low & SPECIAL)) this.change(entryPfn(low, entries[at + 1]), sign);
    }
  }

  change(pfn, sign) {
    const was = this.counts[pfn], is = was + sign;
    if (was === undefined) return;
    this.counts[pfn] = is;
    if (was > 1 !== is > 1) this.version += 1;
  }
}

/** Return what each frame is used for: an index of FRAME_KINDS. */
export function frameUses(machine, counts) {
  const uses = new Uint8Array(machine.nrFrames);
  const { frames, frameFlags } = machine;
  for (let pfn = 0; pfn < uses.length; pfn += 1) {
    if (frameFlags[pfn] & PG_TABLES) uses[pfn] = USE["page table"];
    else if (counts[pfn]) uses[pfn] = USE.anonymous;
    else uses[pfn] = frames[pfn] === FREE ? USE.free : frames[pfn] === PCP ? USE["per-cpu"] : USE.other;
  }
  for (const pfn of machine.cached.keys()) uses[pfn] = frameFlags[pfn] & PG_SWAPBACKED ? USE["shared memory"] : USE["page cache"];
  for (const pfn of machine.swapCache.keys()) if (uses[pfn] === USE.other) uses[pfn] = USE["swap cache"];
  uses.fill(USE.reserved, 0, machine.firstPfn);
  if (machine.nrFrames) uses[machine.zeroPfn] = USE["zero page"];
  return uses;
}

/** Return every entry that maps a frame: {mm, vaddr, low, high}. */
export function mappersOf(machine, pfn) {
  const found = [];
  for (const mm of machine.mms.values()) {
    for (const [number, leaf] of mm.leaves) {
      for (let at = 0; at < 2 * PTRS; at += 2) {
        const low = leaf[at];
        if (low & PRESENT && entryPfn(low, leaf[at + 1]) === pfn) {
          found.push({ mm, vaddr: (number * PTRS + at / 2) * PAGE, low, high: leaf[at + 1] });
        }
      }
    }
    for (const [number, [low, high]] of mm.huge) {
      const first = entryPfn(low & ~PSE, high);
      if (first <= pfn && pfn < first + PTRS) found.push({ mm, vaddr: (number * PTRS + pfn - first) * PAGE, low, high });
    }
  }
  return found;
}

/** Return the table that a frame is: {mm, level, vaddr}, or null. */
export function tableOf(machine, pfn) {
  for (const mm of machine.mms.values()) {
    for (const [key, frame] of mm.tables) {
      if (frame !== pfn) continue;
      const [level, vaddr] = key.split(":").map(Number);
      return { mm, level, vaddr };
    }
    if (mm.deposited.includes(pfn)) return { mm, level: 0, vaddr: 0 };
  }
  return null;
}

/** Return first frame and order of each free block of the buddy allocator, by frame. */
export function freeBlocks(machine) {
  const blocks = [], { frames } = machine;
  for (let start = 0; start < frames.length; ) {
    if (frames[start] !== FREE) {
      start += 1;
      continue;
    }
    let end = start + 1;
    while (end < frames.length && frames[end] === FREE) end += 1;
    while (start < end) {
      let order = start ? Math.min(MAX_ORDER, 31 - Math.clz32(start & -start)) : MAX_ORDER;
      while (start + (1 << order) > end) order -= 1;
      blocks.push([start, order]);
      start += 1 << order;
    }
  }
  return blocks;
}

/** Return by slot of the swap file how many entries and pages of files in memory refer to it. */
export function swapUsers(machine) {
  const users = new Map();
  for (const slot of machine.swapCache.values()) users.set(slot, 0);
  const use = (slot) => users.set(slot, (users.get(slot) || 0) + 1);
  for (const mm of machine.mms.values()) {
    for (const leaf of mm.leaves.values()) {
      for (let at = 0; at < 2 * PTRS; at += 2) {
        const slot = swapSlot(leaf[at], leaf[at + 1]);
        if (slot >= 0) use(slot);
      }
    }
  }
  for (const slot of machine.shmemSlots.values()) use(slot);
  return users;
}
