// The address space: each VMA with its rights, its name and its pages, a cell a page; gaps are folded to one line. With
// a zoom from 128 TiB to a page. Several processes stand beside one another.

import { PAGE, PTRS, entryPfn, swapSlot } from "kd/model.js";
import { el, setText } from "kd/dom.js";
import { CellGrid, IS_TOUCHED } from "kd/grid.js";
import { IS_LOCKED, PAGE_KINDS, VM_LOCKED, pageCell } from "kd/kinds.js";
import { count, hex, pageFacts, rights, size, vmaName } from "kd/words.js";
import { Zoom } from "kd/zoom.js";

const CELLS = 2048; // A VMA shows so many cells at most; then a cell stands for several pages.
const MAX_VMAS = 300; // So many VMAs have rows; the others are shown when the zoom comes to them.
const BIG_CELLS = 32; // So many pages or fewer have big cells, with their frames' numbers.

export class SpaceView {
  constructor(place, app) {
    this.place = place;
    this.app = app;
    this.zoom = new Zoom(app);
    this.columns = new Map(); // by pid
    this.spaces = el("div", { class: "spaces" });
    this.legend = el("ul", { class: "legend", "aria-label": "What the cells mean" });
    place.append(this.zoom.element, this.legend, this.spaces);
    this.cache = new WeakMap(); // leaf -> {stamp, version, flags, kinds}
    this.legend.append(...PAGE_KINDS.slice(0, 8).map((kind, n) => el("li", { title: kind.about },
      el("span", { class: "swatch", style: `background: var(--page-${n}); color: var(--page-ink-${n}, var(--cell-ink))`, text: kind.mark }), kind.name)),
    el("li", {}, el("span", { class: "swatch dirty" }), "dirty"), el("li", {}, el("span", { class: "swatch accessed" }), "accessed"),
    el("li", {}, el("span", { class: "swatch locked" }), "locked"), el("li", {}, el("span", { class: "swatch touched" }), "changed by this step"));
  }

  draw(scene) {
    const seen = new Set(scene.shown.map((task) => task.pid));
    for (const [pid, column] of this.columns) {
      if (seen.has(pid)) continue;
      column.element.remove();
      this.columns.delete(pid);
    }
    const main = scene.task && scene.machine.mms.get(scene.task.mm);
    this.zoom.draw(scene, main);
    for (const task of scene.shown) {
      let column = this.columns.get(task.pid);
      if (!column) {
        this.columns.set(task.pid, (column = new Column(this, task.pid)));
        this.spaces.append(column.element);
      }
      column.draw(scene, task, this.zoom.window);
    }
    this.spaces.classList.toggle("many", scene.shown.length > 1);
  }

  /** Bring an address into view. */
  show(vaddr) {
    this.zoom.include(vaddr);
  }

  /** The kinds of the pages of a whole leaf table, which are kept until something changes. */
  kinds(scene, leaf, vma) {
    let had = this.cache.get(leaf);
    const { version } = scene.counter;
    if (had && had.stamp === leaf.stamp && had.version === version && had.flags === vma.flags) return had.kinds;
    const kinds = had ? had.kinds : new Uint16Array(PTRS);
    for (let n = 0; n < PTRS; n += 1) kinds[n] = pageCell(leaf[2 * n], leaf[2 * n + 1], vma, scene.machine, scene.counts);
    this.cache.set(leaf, { stamp: leaf.stamp, version, flags: vma.flags, kinds });
    return kinds;
  }
}

/** One process: its VMAs in rows. */
class Column {
  constructor(view, pid) {
    this.view = view;
    this.pid = pid;
    this.rows = new Map(); // by start of the VMA, or of the gap
    this.head = el("h2");
    this.element = el("section", { class: "space", "aria-label": `Address space of process ${pid}` }, this.head);
  }

  draw(scene, task, window) {
    const { machine } = scene, mm = machine.mms.get(task.mm), seen = new Set();
    const total = mm ? mm.rss[0] + mm.rss[1] + mm.rss[3] : 0;
    setText(this.head, `${task.comm || "process"} ${task.pid}  ${mm ? `${count(total, "page")} resident` : "has ended: it has no memory"}`);
    let before = null, after = this.head;
    const there = mm ? mm.sortedVmas().filter((vma) => vma.end > window.start && vma.start < window.end) : [];
    for (const vma of there.slice(0, MAX_VMAS)) {
      const start = Math.max(vma.start, window.start), end = Math.min(vma.end, window.end);
      if (before !== null && before < vma.start) after = this.gap(before, vma.start, seen, after);
      after = this.vma(scene, mm, vma, start, end, seen, after);
      before = end;
    }
    if (there.length > MAX_VMAS) after = this.more(there.length - MAX_VMAS, seen, after);
    if (mm && before === null) after = this.nothing(window, seen, after);
    for (const [key, row] of this.rows) {
      if (seen.has(key)) continue;
      row.element.remove();
      this.rows.delete(key);
    }
  }

  row(key, seen, after, make) {
    seen.add(key);
    let row = this.rows.get(key);
    if (!row) this.rows.set(key, (row = make()));
    if (after.nextSibling !== row.element) after.after(row.element);
    return row;
  }

  gap(start, end, seen, after) {
    const row = this.row(`gap ${start}`, seen, after, () => ({ element: el("p", { class: "gap" }) }));
    setText(row.element, `${size(end - start)} without a mapping`);
    return row.element;
  }

  more(number, seen, after) {
    const row = this.row("more", seen, after, () => ({ element: el("p", { class: "gap" }) }));
    setText(row.element, `${count(number, "more mapping")} behind it: zoom in to see them.`);
    return row.element;
  }

  nothing(window, seen, after) {
    const row = this.row("nothing", seen, after, () => ({ element: el("p", { class: "gap" }) }));
    setText(row.element, `Nothing is mapped from ${hex(window.start)} to ${hex(window.end)}.`);
    return row.element;
  }

  makeVma() {
    const row = { pages: 0 };
    row.head = el("h3");
    row.note = el("p", { class: "note" });
    row.grid = new CellGrid({
      label: "", kinds: PAGE_KINDS, colour: "page",
      describe: (n) => this.view.app.explain(row.explain(n)),
      pick: (n) => this.view.app.choosePage(this.pid, row.start + n * row.each * PAGE),
    });
    row.element = el("div", { class: "vma" }, row.head, row.grid.element, row.note);
    return row;
  }

  vma(scene, mm, vma, start, end, seen, after) {
    const row = this.row(`vma ${vma.start}`, seen, after, () => this.makeVma());
    const pages = (end - start) / PAGE, each = Math.ceil(pages / CELLS);
    const found = this.cells(scene, mm, vma, start, end, each);
    const name = vmaName(scene.machine, mm, vma) || (vma.mapping ? "" : "anonymous");
    const locked = vma.flags & VM_LOCKED ? ", locked" : "";
    setText(row.head, `${hex(vma.start)}–${hex(vma.end)}  ${rights(vma.flags)}  ${name}${locked}`);
    const parts = found.totals.map((number, kind) => (number ? `${number.toLocaleString("en")} ${PAGE_KINDS[kind].name}` : "")).filter(Boolean);
    const some = pages * PAGE < vma.end - vma.start ? `${count(pages, "page")} of ${count((vma.end - vma.start) / PAGE, "page")}: ` : `${count(pages, "page")}: `;
    const note = some + parts.join(", ") + (each > 1 ? `. A cell is ${count(each, "page")}.` : "");
    setText(row.note, note);
    const label = `Pages of ${hex(vma.start)}, ${name}: ${note}`;
    if (row.grid.canvas.getAttribute("aria-label") !== label) row.grid.canvas.setAttribute("aria-label", label);
    Object.assign(row, { start, each, explain: (n) => pageFacts(scene.app.scene, this.pid, start + n * each * PAGE, each) });
    row.grid.draw(found.cells, pages <= BIG_CELLS ? this.labels(mm, start, pages, scene.machine.nrFrames) : null);
    return row.element;
  }

  labels(mm, start, pages, nrFrames) {
    return Array.from({ length: pages }, (_, n) => {
      const [low, high] = mm.entry(start + n * PAGE);
      if (low & 0x101) return nrFrames ? hex(entryPfn(low, high)) : "";
      return low || high ? `slot ${swapSlot(low, high)}` : "";
    });
  }

  /** Kind and marks of each cell, and how many pages are of each kind. */
  cells(scene, mm, vma, start, end, each) {
    const pages = (end - start) / PAGE, cells = new Uint16Array(Math.ceil(pages / each)), totals = new Array(9).fill(0);
    const locked = vma.flags & VM_LOCKED ? IS_LOCKED : 0;
    if (locked) cells.fill(locked);
    totals[0] = pages;
    const span = PTRS * PAGE;
    const fill = (base, kindAt) => {
      const first = Math.max(0, (start - base) / PAGE), last = Math.min(PTRS, (end - base) / PAGE);
      let place = (base - start) / PAGE + first;
      for (let n = first; n < last; n += 1, place += 1) {
        const cell = kindAt(n), kind = cell & 255;
        totals[kind] += 1;
        totals[0] -= 1;
        if (kind || each === 1) cells[each === 1 ? place : Math.floor(place / each)] = cell;
      }
    };
    for (const [number, leaf] of mm.leaves) {
      const base = number * span;
      if (base >= end || base + span <= start) continue;
      const isWhole = vma.start <= base && base + span <= vma.end;
      const kinds = isWhole ? this.view.kinds(scene, leaf, vma) : null;
      fill(base, kinds ? (n) => kinds[n] : (n) => pageCell(leaf[2 * n], leaf[2 * n + 1], vma, scene.machine, scene.counts));
    }
    for (const [number, [low, high]] of mm.huge) {
      const base = number * span;
      if (base < end && base + span > start) fill(base, () => pageCell(low, high, vma, scene.machine, scene.counts));
    }
    const changed = [...(scene.changes.pages.get(mm.number) || []), ...(scene.changes.vmas.get(mm.number) || [])];
    for (const [first, stop] of changed) {
      for (let at = Math.max(first, start); at < Math.min(stop, end); at += each * PAGE) cells[Math.floor((at - start) / PAGE / each)] |= IS_TOUCHED;
    }
    return { cells, totals };
  }
}

