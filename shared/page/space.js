// The address space: each VMA with its rights, its name and its pages, a cell a page; gaps are folded to one line.

import { ACCESSED, DIRTY, PAGE, PRESENT, PSE, PTRS, RW, SPECIAL, entryPfn } from "kd/model.js";
import { count, hex, rights, size, vmaName } from "kd/words.js";

const CELLS = 2048; // A VMA shows so many cells at most; then a cell stands for several pages.

/** What a page is: the index is its colour (view.css: --page-…) and the mark in its cell. Never colour alone. */
export const KINDS = [
  { name: "allocated", mark: "", about: "A VMA covers the page. It has no frame yet: memory comes at the first access." },
  { name: "zero page", mark: "0", about: "A read has mapped the one frame of zeros that all share." },
  { name: "anonymous", mark: "a", about: "A frame of this process alone." },
  { name: "file", mark: "f", about: "A frame of the page cache." },
  { name: "shared", mark: "s", about: "A frame of shared memory." },
  { name: "copy-on-write", mark: "c", about: "A frame that others map too, read-only here: the first write makes a copy." },
  { name: "swapped", mark: "~", about: "The page is in the swap file." },
  { name: "huge", mark: "H", about: "A part of a huge page, of one entry of 2 MiB." },
];

export class SpaceView {
  constructor(place) {
    this.place = place;
    this.rows = new Map(); // by start of the VMA
    this.place.className = "space";
  }

  draw(machine, mm) {
    const owners = frameOwners(machine);
    const seen = new Set();
    let before = null, after = null;
    for (const vma of mm ? mm.sortedVmas() : []) {
      if (before && before.end < vma.start) after = this.gap(before.end, vma.start, seen, after);
      after = this.vma(machine, mm, vma, owners, seen, after);
      before = vma;
    }
    for (const [key, row] of this.rows) {
      if (seen.has(key)) continue;
      row.element.remove();
      this.rows.delete(key);
    }
  }

  row(key, kind, seen, after) {
    seen.add(key);
    let row = this.rows.get(key);
    if (!row) {
      row = { element: document.createElement("section"), drawn: "" };
      row.element.className = kind;
      row.head = row.element.appendChild(document.createElement("h2"));
      if (kind === "vma") {
        row.canvas = row.element.appendChild(document.createElement("canvas"));
        row.canvas.setAttribute("role", "img");
      }
      this.rows.set(key, row);
    }
    const next = after ? after.nextSibling : this.place.firstChild;
    if (next !== row.element) this.place.insertBefore(row.element, next);
    return row;
  }

  gap(start, end, seen, after) {
    const row = this.row(`gap ${start}`, "gap", seen, after);
    row.head.textContent = `${size(end - start)} without a mapping`;
    return row.element;
  }

  vma(machine, mm, vma, owners, seen, after) {
    const row = this.row(`vma ${vma.start}`, "vma", seen, after);
    const pages = (vma.end - vma.start) / PAGE;
    const kinds = pageKinds(mm, vma, owners);
    const resident = kinds.totals.reduce((sum, number, kind) => sum + (kind && kind !== 6 ? number : 0), 0);
    const name = vmaName(machine, mm, vma) || (vma.mapping ? "" : "anonymous");
    const text = `${hex(vma.start)}–${hex(vma.end)}  ${rights(vma.flags)}  ${name}  ${count(pages, "page")}, ${resident.toLocaleString("en")} mapped`;
    if (row.head.textContent !== text) row.head.textContent = text;
    row.canvas.setAttribute("aria-label", KINDS.map((kind, n) => (kinds.totals[n] ? `${kinds.totals[n]} ${kind.name}` : "")).filter(Boolean).join(", "));
    paint(row, kinds.cells);
    return row.element;
  }
}

/** How many entries of all address spaces map each frame. */
function frameOwners(machine) {
  const owners = new Map();
  for (const mm of machine.mms.values()) {
    for (const leaf of mm.leaves.values()) {
      for (let at = 0; at < 2 * PTRS; at += 2) {
        const low = leaf[at];
        if (low & PRESENT && !(low & SPECIAL)) {
          const pfn = entryPfn(low, leaf[at + 1]);
          owners.set(pfn, (owners.get(pfn) || 0) + 1);
        }
      }
    }
  }
  return owners;
}

function kindOf(low, high, vma, owners) {
  if (low === 0 && high === 0) return 0;
  if (!(low & PRESENT)) return 6;
  if (low & PSE) return 7;
  if (low & SPECIAL) return 1;
  if (vma.flags & 0x8) return vma.mapping ? 4 : 2;
  if (!(low & RW) && owners.get(entryPfn(low, high)) > 1) return vma.mapping ? 3 : 5;
  return vma.mapping && !(low & RW) ? 3 : 2;
}

/** The kind of each cell of a VMA, with marks: bit 8 accessed, bit 9 dirty; and how many pages are of each kind. */
function pageKinds(mm, vma, owners) {
  const pages = (vma.end - vma.start) / PAGE, each = Math.ceil(pages / CELLS);
  const cells = new Uint16Array(Math.ceil(pages / each)), totals = new Array(KINDS.length).fill(0);
  totals[0] = pages;
  const tables = [...mm.leaves.keys(), ...mm.huge.keys()];
  for (const number of tables) {
    const base = number * PTRS * PAGE;
    if (base >= vma.end || base + PTRS * PAGE <= vma.start) continue;
    for (let n = 0; n < PTRS; n += 1) {
      const vaddr = base + n * PAGE;
      if (vaddr < vma.start || vaddr >= vma.end) continue;
      const [low, high] = mm.entry(vaddr), kind = kindOf(low, high, vma, owners);
      if (!kind) continue;
      totals[kind] += 1;
      totals[0] -= 1;
      const cell = Math.floor((vaddr - vma.start) / PAGE / each);
      cells[cell] = kind | (low & PRESENT && low & ACCESSED ? 256 : 0) | (low & PRESENT && low & DIRTY ? 512 : 0);
    }
  }
  return { cells, totals };
}

const CELL = 12;
let colours = null;

function palette() {
  const style = getComputedStyle(document.documentElement);
  return KINDS.map((_kind, number) => style.getPropertyValue(`--page-${number}`).trim());
}

addEventListener("load", () => matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (colours = null)));

function paint(row, cells) {
  const columns = Math.max(16, Math.floor((row.element.clientWidth || 600) / CELL));
  const key = `${columns} ${colours ? 1 : 0} ${cells.join()}`;
  if (key === row.drawn) return;
  colours ||= palette();
  row.drawn = `${columns} 1 ${cells.join()}`;
  const scale = devicePixelRatio || 1, rows = Math.ceil(cells.length / columns);
  const width = Math.min(cells.length, columns) * CELL, height = rows * CELL;
  Object.assign(row.canvas, { width: width * scale, height: height * scale });
  Object.assign(row.canvas.style, { width: `${width}px`, height: `${height}px` });
  const pen = row.canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.font = "9px ui-monospace, monospace";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--cell-ink").trim();
  cells.forEach((cell, number) => {
    const kind = cell & 255, x = (number % columns) * CELL, y = Math.floor(number / columns) * CELL;
    pen.fillStyle = colours[kind];
    pen.fillRect(x, y, CELL - 1, CELL - 1);
    pen.fillStyle = ink;
    if (KINDS[kind].mark) pen.fillText(KINDS[kind].mark, x + CELL / 2 - 0.5, y + CELL / 2);
    if (cell & 512) pen.fillRect(x, y + CELL - 3, CELL - 1, 2); // dirty
  });
}
