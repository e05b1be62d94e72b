// What a page or a frame is: names, marks, and words about each. The index is the colour (view.css: --page-…,
// --frame-…). A mark stands in each cell too: never colour alone. Pure.

import { ACCESSED, DIRTY, PRESENT, PSE, RW, SPECIAL, entryPfn } from "kd/model.js";

export const PAGE_KINDS = [
  { name: "allocated", mark: "", about: "A VMA covers the page. It has no frame yet: the first access faults, and gets one." },
  { name: "zero page", mark: "0", about: "Only reads so far. The entry maps the one frame of zeros that all processes share." },
  { name: "anonymous", mark: "a", about: "A frame of its own. No file has its contents." },
  { name: "file", mark: "f", about: "A frame of the page cache: it holds a page of a file." },
  { name: "shared", mark: "s", about: "A frame of shared memory. A write is seen by all who map it." },
  { name: "copy-on-write", mark: "c", about: "Other processes map the same frame. It is read-only: the first write makes a copy." },
  { name: "swapped", mark: "~", about: "The page is in the swap file. The next access brings it back." },
  { name: "huge", mark: "H", about: "A part of a huge page: one entry of the PMD maps 2 MiB." },
  { name: "nothing", mark: "·", about: "No VMA covers the page. An access is SIGSEGV." },
];
export const KIND = Object.fromEntries(PAGE_KINDS.map((kind, number) => [kind.name, number]));
/** Bits of a cell beside its kind. */
export const IS_ACCESSED = 256, IS_DIRTY = 512, IS_LOCKED = 1024;
export const VM_SHARED = 0x8, VM_WRITE = 2, VM_LOCKED = 0x2000;

/** Return the kind of a page from its entry and its VMA. `counts`: how many entries map each frame. */
export function pageKind(low, high, vma, machine, counts) {
  if (low === 0 && high === 0) return 0;
  if (!(low & PRESENT)) return 6;
  if (low & PSE) return 7;
  if (low & SPECIAL) return 1;
  if (vma.flags & VM_SHARED) return 4;
  if (!machine.nrFrames) return vma.mapping && !(low & RW) ? 3 : !(low & RW) && vma.flags & VM_WRITE ? 5 : 2;
  const pfn = entryPfn(low, high);
  if (machine.cached.has(pfn)) return 3;
  return counts[pfn] > 1 ? 5 : 2;
}

/** Return kind and marks of a page's cell. */
export function pageCell(low, high, vma, machine, counts) {
  let cell = pageKind(low, high, vma, machine, counts);
  if (low & PRESENT) cell |= (low & ACCESSED ? IS_ACCESSED : 0) | (low & DIRTY ? IS_DIRTY : 0);
  return vma.flags & VM_LOCKED ? cell | IS_LOCKED : cell;
}

export const FRAME_KINDS = [
  { name: "free", mark: "", about: "Nobody has the frame. It is in a block of the buddy allocator." },
  { name: "per-cpu", mark: "p", about: "Free, and on the per-cpu list, from which single frames are taken first." },
  { name: "reserved", mark: "×", about: "Below the first frame that is handed out." },
  { name: "zero page", mark: "0", about: "The one frame of zeros that every read of untouched anonymous memory shares." },
  { name: "page table", mark: "T", about: "The frame is a page table: 512 entries." },
  { name: "page cache", mark: "f", about: "A page of a file." },
  { name: "shared memory", mark: "s", about: "A page of a file in memory: shared memory." },
  { name: "anonymous", mark: "a", about: "Memory of a process that no file has." },
  { name: "swap cache", mark: "~", about: "No entry maps it. The swap file has the same page." },
  { name: "other", mark: "?", about: "Taken by the kernel for something else." },
];
export const USE = Object.fromEntries(FRAME_KINDS.map((kind, number) => [kind.name, number]));

/** The bits of a page-table entry that have names, from bit 0 on. */
export const ENTRY_BITS = [
  [0, "P", "present", "The processor may use the entry."],
  [1, "RW", "writable", "Writes are allowed. Without it, a write faults."],
  [2, "US", "user", "User mode may use it."],
  [5, "A", "accessed", "The processor has used the entry."],
  [6, "D", "dirty", "The processor has written through the entry."],
  [7, "PS", "page size", "The entry maps 2 MiB, and there is no table below it."],
  [8, "PROTNONE", "no access", "Set while P is not (PROT_NONE): the frame stays, and every access faults."],
  [9, "S", "special", "Linux: the frame is not counted. It is the zero page."],
  [63, "NX", "no execute", "Code in the page may not run."],
];

/** Return the named bits of an entry: {bit, short, name, about, isSet}. */
export function entryBits(low, high) {
  return ENTRY_BITS.map(([bit, short, name, about]) => ({
    bit, short, name, about, isSet: bit < 32 ? (low >>> bit & 1) === 1 : (high >>> (bit - 32) & 1) === 1,
  }));
}
