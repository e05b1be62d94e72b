// Physical memory: every frame by what it is used for and who has it; free blocks are folded, by order; the page cache
// and the swap file. Who maps a frame is explained when it is chosen.

import { FREE, PAGE } from "kd/model.js";
import { el, refill, setText } from "kd/dom.js";
import { MAX_ORDER, frameUses, freeBlocks, mappersOf, swapUsers, tableOf } from "kd/frames.js";
import { CellGrid, IS_TOUCHED } from "kd/grid.js";
import { FRAME_KINDS, USE } from "kd/kinds.js";
import { OWNER, OWNER_KINDS, frameOwners } from "kd/owners.js";
import { count, hex, size, taskName } from "kd/words.js";

const MOST_CELLS = 8192, FOLDED_ORDER = 5;
const LEVELS = ["kept", "PTE", "PMD", "PUD", "PGD"];
const SLOT_KINDS = [{ name: "free", mark: "" }, { name: "used", mark: "~" }, { name: "used by several", mark: "+" }];

export class PhysicalView {
  constructor(place, app) {
    this.app = app;
    this.byOwner = el("input", { type: "checkbox", id: "by-owner", change: () => this.colourAgain() });
    this.summary = el("ul", { class: "legend", "aria-label": "Frames by use" });
    this.buddy = el("div", { class: "buddy", role: "group", "aria-label": "Free blocks of the buddy allocator by order" });
    this.map = el("div", { class: "frames" });
    this.parts = new Map();
    this.files = el("table", { class: "plain" });
    this.swapHead = el("h2");
    this.swap = new CellGrid({
      label: "Slots of the swap file", kinds: SLOT_KINDS, colour: "slot",
      describe: (n) => this.app.explain(this.slotFacts(n)), pick: () => {},
    });
    this.none = el("p", { class: "note", text: "Frames are for the superuser: this record has no frame numbers." });
    this.all = el("div", {}, el("div", { class: "tools" }, this.byOwner, el("label", { for: "by-owner", text: "colours by owner, not by use" })), this.summary, el("h2", { text: "Free blocks of the buddy allocator" }), this.buddy, el("h2", { text: "Frames" }), this.map,
      el("h2", { text: "Page cache" }), this.files, this.swapHead, this.swap.element);
    place.append(this.none, this.all);
  }

  draw(scene) {
    const { machine } = scene;
    this.scene = scene;
    this.none.hidden = machine.nrFrames > 0;
    this.all.hidden = !this.none.hidden;
    if (!machine.nrFrames) return;
    const uses = (this.uses = frameUses(machine, scene.counts)), blocks = freeBlocks(machine);
    this.drawLegend(machine, uses);
    this.drawBuddy(blocks, uses.reduce((number, use) => number + (use === USE["per-cpu"]), 0));
    this.drawFrames(scene, this.shown, blocks);
    this.drawFiles(machine);
    this.drawSwap(machine);
  }

  /** Draw anew, in the other colours. */
  colourAgain() {
    for (const part of this.parts.values()) part.element.remove();
    this.parts.clear();
    this.app.redraw();
  }

  /** The legend, and what each frame is by it: `shown` has its index for each. */
  drawLegend(machine, uses) {
    const { owners, pids } = this.byOwner.checked ? frameOwners(machine, uses) : { owners: null, pids: [] };
    this.kinds = owners ? OWNER_KINDS : FRAME_KINDS;
    this.colour = owners ? "owner" : "frame";
    this.shown = owners || uses;
    const totals = new Array(this.kinds.length).fill(0);
    for (const kind of this.shown) totals[kind] += 1;
    const names = this.kinds.map((kind, n) => (pids[n - OWNER.first] ? taskName(machine, pids[n - OWNER.first]) : kind.name));
    const item = (kind, n) => el("li", { title: kind.about },
      el("span", { class: "swatch", style: `background: var(--${this.colour}-${n}); color: var(--${this.colour}-ink-${n}, var(--cell-ink))`, text: kind.mark }),
      `${names[n]} ${totals[n].toLocaleString("en")}`);
    // A letter that no process has, and processes beyond the letters, are only named where there are such.
    const isThere = (n) => !owners || n < OWNER.first || totals[n] > 0;
    refill(this.summary, `${this.colour} ${totals.join()} ${names.join()}`, () => this.kinds.map(item).filter((_item, n) => isThere(n)));
  }

  drawBuddy(blocks, perCpu) {
    const orders = new Array(MAX_ORDER + 1).fill(0);
    for (const [, order] of blocks) orders[order] += 1;
    refill(this.buddy, `${orders.join()} ${perCpu}`, () => orders.map((number, order) => el("div", { class: "order" },
      el("b", { text: `order ${order}` }), el("span", { text: size(PAGE << order) }), el("span", { class: "number", text: count(number, "block") }))));
  }

  /** Runs of frames in use, a cell a frame; the free blocks between them are folded. */
  drawFrames(scene, shown, blocks) {
    const seen = new Set(), runs = [];
    let at = 0;
    for (const [first, order] of blocks) {
      if (order < FOLDED_ORDER) continue;
      const last = runs[runs.length - 1];
      if (first > at || !last) runs.push({ first: at, end: first, free: [] });
      runs[runs.length - 1].free.push(order);
      at = first + (1 << order);
    }
    if (at < shown.length) runs.push({ first: at, end: shown.length, free: [] });
    const cells = runs.reduce((sum, run) => sum + run.end - run.first, 0), each = 2 ** Math.max(0, Math.ceil(Math.log2(cells / MOST_CELLS)));
    let after = null;
    for (const run of runs) after = this.drawRun(scene, run, shown, each, seen, after);
    for (const [key, part] of this.parts) {
      if (seen.has(key)) continue;
      part.element.remove();
      this.parts.delete(key);
    }
  }

  drawRun(scene, run, shown, each, seen, after) {
    let part = this.parts.get(run.first);
    seen.add(run.first);
    if (!part) {
      part = { note: el("p", { class: "gap" }), head: el("h3") };
      part.grid = new CellGrid({
        label: "Frames", kinds: this.kinds, colour: this.colour,
        describe: (n) => this.app.explain(this.frameFacts(part.first + n * part.each, part.each)), pick: (n) => this.app.chooseFrame(part.first + n * part.each),
      });
      part.element = el("div", {}, part.head, part.grid.element, part.note);
      this.parts.set(run.first, part);
    }
    const place = after ? after.nextSibling : this.map.firstChild;
    if (place !== part.element) this.map.insertBefore(part.element, place);
    Object.assign(part, { first: run.first, each });
    const isEmpty = run.end === run.first;
    part.head.hidden = part.grid.element.hidden = isEmpty;
    part.note.hidden = !run.free.length;
    if (!isEmpty) {
      setText(part.head, `${hex(run.first)}–${hex(run.end - 1)}${each > 1 ? `  a cell is ${each} frames` : ""}`);
      part.grid.draw(this.runCells(scene, run, shown, each));
      part.grid.canvas.setAttribute("aria-label", `Frames ${hex(run.first)} to ${hex(run.end - 1)}`);
    }
    const frames = run.free.reduce((sum, order) => sum + (1 << order), 0);
    setText(part.note, `${count(frames, "free frame")} from ${hex(run.end)} on, in ${count(run.free.length, "block")} of order ${[...new Set(run.free)].join(", ")}`);
    return part.element;
  }

  runCells(scene, run, shown, each) {
    const cells = new Uint16Array(Math.ceil((run.end - run.first) / each));
    for (let pfn = run.first; pfn < run.end; pfn += 1) if (shown[pfn] !== 0 || each === 1) cells[Math.floor((pfn - run.first) / each)] = shown[pfn];
    for (const [first, end] of scene.changes.frames) {
      for (let pfn = Math.max(first, run.first); pfn < Math.min(end, run.end); pfn += each) cells[Math.floor((pfn - run.first) / each)] |= IS_TOUCHED;
    }
    const { pfn } = scene.chosen;
    if (pfn !== null && pfn >= run.first && pfn < run.end) cells[Math.floor((pfn - run.first) / each)] |= IS_TOUCHED;
    return cells;
  }

  frameFacts(pfn, each = 1) {
    return frameFacts(this.scene, pfn, this.uses, each);
  }

  drawFiles(machine) {
    const files = new Map();
    for (const [pfn, [mapping]] of machine.cached) {
      const had = files.get(mapping) || { pages: 0, mapped: 0 };
      had.pages += 1;
      had.mapped += this.scene.counts[pfn] > 0 ? 1 : 0;
      files.set(mapping, had);
    }
    const rows = [...files].map(([mapping, had]) => [machine.files.get(mapping)?.name || `file ${mapping}`, had.pages, had.mapped]);
    refill(this.files, JSON.stringify(rows), () => (rows.length
      ? [el("tr", {}, ...["File", "Pages in the page cache", "of them mapped"].map((text) => el("th", { scope: "col", text }))),
        ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", { text: cell.toLocaleString("en") }))))]
      : [el("caption", { text: "No page of a file is in memory." })]));
  }

  drawSwap(machine) {
    const users = swapUsers(machine), nrSlots = Math.min(machine.nrSlots, MOST_CELLS);
    setText(this.swapHead, machine.nrSlots ? `Swap file: ${count(users.size, "slot")} of ${machine.nrSlots.toLocaleString("en")} used` : "No swap file");
    this.swap.element.hidden = !users.size;
    this.users = users;
    if (!users.size) return;
    const last = Math.min(nrSlots, Math.max(...users.keys()) + 1), cells = new Uint16Array(last);
    for (const [slot, number] of users) if (slot < last) cells[slot] = number > 1 ? 2 : 1;
    this.swap.draw(cells);
  }

  slotFacts(slot) {
    const number = this.users.get(slot);
    return { title: `Swap slot ${slot}`, facts: [], lines: [number === undefined ? "The slot is free." : number ? `${count(number, "entry", "entries")} or pages of files in memory name it.` : "Only the swap cache has it."] };
  }
}

/** What is known of a frame, for the panel. */
export function frameFacts(scene, pfn, uses = frameUses(scene.machine, scene.counts), each = 1) {
  const { machine } = scene;
  if (each > 1) {
    const kinds = new Map();
    for (let at = pfn; at < Math.min(pfn + each, uses.length); at += 1) kinds.set(uses[at], (kinds.get(uses[at]) || 0) + 1);
    return { title: `Frames ${hex(pfn)}–${hex(pfn + each - 1)}`, facts: [], lines: [...kinds].map(([kind, number]) => `${number} ${FRAME_KINDS[kind].name}`) };
  }
  const kind = FRAME_KINDS[uses[pfn]];
  if (!kind) return { title: `Frame ${hex(pfn)}`, facts: [], lines: ["The machine has no such frame."] };
  const facts = [["Address in RAM", hex(pfn * PAGE)]], links = [];
  for (const { mm, vaddr } of mappersOf(machine, pfn).slice(0, 12)) {
    if (pfn === machine.zeroPfn && links.length >= 3) break;
    links.push({ pid: mm.pid, vaddr, text: `${mm.pid ? taskName(machine, mm.pid) : "a copy that waits for its child"} at ${hex(vaddr)}` });
  }
  const table = uses[pfn] === USE["page table"] ? tableOf(machine, pfn) : null;
  if (table) facts.push(["Table", `${LEVELS[table.level]} of ${taskName(machine, table.mm.pid)}, for ${hex(table.vaddr)} on`]);
  const cached = machine.cached.get(pfn);
  if (cached) facts.push(["File", `${machine.files.get(cached[0])?.name || "a file"}, page ${cached[1]}`]);
  if (machine.swapCache.has(pfn)) facts.push(["Swap slot", String(machine.swapCache.get(pfn))]);
  facts.push(["Entries that map it", String(pfn === machine.zeroPfn ? "any number: it is not counted" : scene.counts[pfn])]);
  if (machine.frames[pfn] === FREE) {
    const block = freeBlocks(machine).find(([first, order]) => first <= pfn && pfn < first + (1 << order));
    if (block) facts.push(["Free block", `order ${block[1]}, from ${hex(block[0])} on`]);
  }
  return { title: `Frame ${hex(pfn)}: ${kind.name}`, lines: [kind.about], facts, links };
}
