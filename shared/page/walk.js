// The walk: an address in its parts of 9, 9, 9, 9 and 12 bits, the four tables, the entry of each level with its bits,
// where the walk stops and why. And the tree of tables, with how full each is.

import { PAGE, PRESENT, PSE, PTRS, SPECIAL, entryPfn, swapSlot } from "kd/model.js";
import { el, refill, setText } from "kd/dom.js";
import { CellGrid } from "kd/grid.js";
import { VM_WRITE, entryBits } from "kd/kinds.js";
import { count, entryHex, findVma, hex, rights, size, taskName } from "kd/words.js";

const LEVELS = [4, 3, 2, 1], NAMES = ["", "PTE", "PMD", "PUD", "PGD"];
const SPAN = [PAGE, PAGE, PAGE * PTRS, PAGE * PTRS ** 2, PAGE * PTRS ** 3, PAGE * PTRS ** 4]; // bytes that an entry of a level covers
const TABLE_ENTRY = 0x67; // Present, writable, user, accessed, dirty: all rights, so that the last level decides.
const CELLS = [{ name: "empty", mark: "" }, { name: "filled", mark: "" }, { name: "the entry of the address", mark: "" }];
const MOST_TABLES = 60;

/** Return the walk of an address: {levels: [{level, index, table, low, high}], stop, why, pfn}. */
export function walk(machine, mm, vaddr) {
  const levels = [];
  for (const level of LEVELS) {
    const table = tablePfn(mm, level, vaddr);
    if (table === undefined) return { levels, ...whyNone(mm, vaddr) };
    const index = Math.floor(vaddr / SPAN[level]) % PTRS;
    const [low, high] = level > 1 ? upperEntry(mm, level, vaddr) : leafEntry(mm, vaddr);
    levels.push({ level, index, table, low, high });
    const last = !low && !high ? whyNone(mm, vaddr) : !(low & PRESENT) ? whySwapped(low, high) : level === 1 || low & PSE ? whyFound(machine, mm, vaddr, low, high) : null;
    if (last) return { levels, ...last };
  }
  return { levels, stop: "", why: "" };
}

function tablePfn(mm, level, vaddr) {
  const first = level === 4 ? 0 : Math.floor(vaddr / SPAN[level + 1]) * SPAN[level + 1];
  return mm.tables.get(`${level}:${first}`);
}

function leafEntry(mm, vaddr) {
  const leaf = mm.leaves.get(Math.floor(vaddr / SPAN[2])), at = 2 * (Math.floor(vaddr / PAGE) % PTRS);
  return leaf ? [leaf[at], leaf[at + 1]] : [0, 0];
}

function upperEntry(mm, level, vaddr) {
  const huge = level === 2 ? mm.huge.get(Math.floor(vaddr / SPAN[2])) : null;
  const below = tablePfn(mm, level - 1, vaddr);
  if (huge && (below === undefined || !mm.leaves.has(Math.floor(vaddr / SPAN[2])))) return huge;
  return below === undefined ? [0, 0] : [((below * PAGE) >>> 0) | TABLE_ENTRY, Math.floor(below / 1048576)];
}

function whyNone(mm, vaddr) {
  const vma = findVma(mm, vaddr);
  return {
    stop: "empty",
    why: vma
      ? `The entry is empty, and the VMA ${hex(vma.start)}–${hex(vma.end)} ${rights(vma.flags)} covers the page. The next access is a page fault, and the page gets a frame then.`
      : "The entry is empty, and no VMA covers the page. An access is a page fault that ends in SIGSEGV.",
  };
}

const whySwapped = (low, high) => ({
  stop: "swapped", why: `The entry is not present. It names slot ${swapSlot(low, high)} of the swap file. The next access reads the page back.`,
});

function whyFound(machine, mm, vaddr, low, high) {
  const pfn = entryPfn(low & PSE ? low & 0xffe00fff : low, high) + (low & PSE ? Math.floor(vaddr / PAGE) % PTRS : 0);
  const vma = findVma(mm, vaddr), canWrite = low & 2, where = machine.nrFrames ? `frame ${hex(pfn)}` : "a frame";
  let more = canWrite ? "Reads and writes need no fault." : "Reads need no fault.";
  if (!canWrite && vma && vma.flags & VM_WRITE) more += " A write faults, although the VMA allows it: copy-on-write, or the first write to a clean page.";
  else if (!canWrite) more += " A write faults: the VMA does not allow it, so it is SIGSEGV.";
  if (!(low & 1)) more = "The present bit is not set (PROT_NONE): every access faults.";
  return { stop: "found", pfn, why: `The walk ends in ${low & SPECIAL ? "the zero page, " : ""}${where}${low & PSE ? ", a part of a huge page" : ""}. ${more}` };
}

export class WalkView {
  constructor(place, app) {
    this.app = app;
    this.input = el("input", { type: "text", id: "walk-address", autocomplete: "off", spellcheck: "false", placeholder: "0x1000000000", change: () => this.take() });
    this.form = el("form", { class: "tools", submit: (event) => { event.preventDefault(); this.take(); } },
      el("label", { for: "walk-address", text: "Address" }), this.input, el("button", { text: "Walk" }),
      el("button", { type: "button", text: "−1 page", click: () => this.step(-PAGE) }), el("button", { type: "button", text: "+1 page", click: () => this.step(PAGE) }));
    this.bits = el("div", { class: "bits", role: "group", "aria-label": "The address in bits" });
    this.levels = el("ol", { class: "levels" });
    this.outcome = el("p", { class: "outcome", role: "status" });
    this.tree = el("div", { class: "tree" });
    place.append(this.form, this.bits, this.levels, this.outcome, el("h2", { text: "All tables, and how full each is" }), this.tree);
    this.tables = LEVELS.map((level) => this.makeLevel(level));
    this.levels.append(...this.tables.map((table) => table.element));
  }

  makeLevel(level) {
    const made = { level, head: el("h3"), entry: el("p", { class: "entry" }), bits: el("ul", { class: "entrybits" }) };
    made.grid = new CellGrid({
      label: `${NAMES[level]}, 512 entries`, kinds: CELLS, colour: "table",
      describe: (n) => this.app.explain({ title: `${NAMES[level]}, entry ${n}`, facts: [["It covers", `${size(SPAN[level])} from ${hex(made.base + n * SPAN[level])} on`]], lines: [CELLS[made.cells[n]]?.name ?? ""] }),
      pick: (n) => this.app.choosePage(this.app.chosen.pid, made.base + n * SPAN[level], "walk"),
    });
    made.element = el("li", {}, made.head, el("div", { class: "tablerow" }, made.grid.element, el("div", {}, made.entry, made.bits)));
    return made;
  }

  take() {
    const vaddr = parseInt(this.input.value.replace(/^0x/i, ""), 16);
    const isWrong = !(vaddr >= 0 && vaddr < 2 ** 47);
    this.input.setAttribute("aria-invalid", String(isWrong));
    if (!isWrong) this.app.choosePage(this.app.chosen.pid, vaddr, "walk");
  }

  step(by) {
    const vaddr = (this.app.chosen.vaddr ?? 0) + by;
    if (vaddr >= 0 && vaddr < 2 ** 47) this.app.choosePage(this.app.chosen.pid, vaddr, "walk");
  }

  draw(scene) {
    const mm = scene.task && scene.machine.mms.get(scene.task.mm);
    const vaddr = scene.chosen.vaddr ?? (mm ? firstMapped(mm) : 0);
    if (document.activeElement !== this.input && this.input.value !== hex(vaddr)) this.input.value = hex(vaddr);
    this.drawBits(vaddr);
    if (!mm) {
      setText(this.outcome, "The process has no address space at this moment.");
      this.levels.hidden = this.tree.hidden = true;
      return;
    }
    this.levels.hidden = this.tree.hidden = false;
    const found = walk(scene.machine, mm, vaddr);
    for (const table of this.tables) this.drawLevel(scene, mm, vaddr, table, found.levels.find((one) => one.level === table.level));
    setText(this.outcome, `${taskName(scene.machine, scene.task.pid)}, ${hex(vaddr)}: ${found.why}`);
    this.outcome.className = `outcome ${found.stop}`;
    this.drawTree(mm, scene.machine.nrFrames);
  }

  drawBits(vaddr) {
    const parts = LEVELS.map((level) => [NAMES[level], Math.floor(vaddr / SPAN[level]) % PTRS, 9]).concat([["offset", vaddr % PAGE, 12]]);
    refill(this.bits, String(vaddr), () => parts.map(([name, value, bits]) => el("div", { class: "part" }, el("b", { text: name }),
      el("code", { text: value.toString(2).padStart(bits, "0").replace(/(.{3})(?=.)/g, "$1 ") }), el("span", { text: `${value} = ${hex(value)}, ${bits} bits` }))));
  }

  drawLevel(scene, mm, vaddr, table, at) {
    const { level } = table;
    table.base = level === 4 ? 0 : Math.floor(vaddr / SPAN[level + 1]) * SPAN[level + 1];
    table.element.classList.toggle("unreached", !at);
    table.cells = new Uint16Array(PTRS);
    if (!at) {
      setText(table.head, `${NAMES[level]}: the walk does not come here`);
      setText(table.entry, "");
      refill(table.bits, "", () => []);
      table.grid.element.hidden = true;
      return;
    }
    for (const n of filledEntries(mm, level, table.base)) table.cells[n] = 1;
    const filled = table.cells.reduce((sum, one) => sum + one, 0);
    table.cells[at.index] |= 2048;
    table.grid.element.hidden = false;
    table.grid.draw(table.cells, null, "tiny");
    setText(table.head, `${NAMES[level]}${scene.machine.nrFrames ? ` in frame ${hex(at.table)}` : ""}: ${filled} of 512 entries filled, each for ${size(SPAN[level])}`);
    const isTable = level > 1 && at.low & PRESENT && !(at.low & PSE);
    const what = !at.low && !at.high ? "empty" : `${entryHex(at.low >>> 0, at.high)} → ${isTable ? `the ${NAMES[level - 1]} table in ` : ""}${
      at.low & PRESENT ? (scene.machine.nrFrames ? `frame ${hex(entryPfn(at.low, at.high))}` : "a frame") : `swap slot ${swapSlot(at.low, at.high)}`}`;
    setText(table.entry, `Entry ${at.index}: ${what}`);
    refill(table.bits, `${at.low} ${at.high}`, () => (at.low & PRESENT ? entryBits(at.low, at.high) : []).map((bit) =>
      el("li", { class: bit.isSet ? "set" : "clear", title: bit.about }, el("b", { text: bit.isSet ? "1" : "0" }), ` ${bit.short} ${bit.name}`)));
  }

  drawTree(mm, nrFrames) {
    const tables = [...mm.tables].map(([key, pfn]) => { const [level, vaddr] = key.split(":").map(Number); return { level, vaddr, pfn }; });
    tables.sort((one, other) => one.vaddr - other.vaddr || other.level - one.level);
    const shown = tables.length <= MOST_TABLES ? tables : tables.slice(0, MOST_TABLES);
    const key = shown.map((table) => `${table.level} ${table.vaddr} ${table.pfn} ${mm.leaves.get(table.vaddr / SPAN[2])?.stamp}`).join() + tables.length;
    refill(this.tree, key, () => [...shown.map((table) => {
      const filled = filledEntries(mm, table.level, table.vaddr).length;
      return el("button", { type: "button", class: `tree${table.level}`, click: () => this.app.choosePage(this.app.chosen.pid, table.vaddr, "walk") },
        `${NAMES[table.level]} ${hex(table.vaddr)} `, el("meter", { min: 0, max: PTRS, value: filled, "aria-label": `${filled} of 512` }),
        ` ${filled} of 512${nrFrames ? `, frame ${hex(table.pfn)}` : ""}`);
    }), tables.length > shown.length ? el("p", { class: "note", text: `… and ${count(tables.length - shown.length, "table")} more` }) : null].filter(Boolean));
  }
}

/** Return the indices of the entries of a table that are not empty. */
function filledEntries(mm, level, base) {
  const found = [];
  if (level === 1) {
    const leaf = mm.leaves.get(base / SPAN[2]);
    for (let n = 0; leaf && n < PTRS; n += 1) if (leaf[2 * n] || leaf[2 * n + 1]) found.push(n);
    return found;
  }
  const end = base + SPAN[level] * PTRS, filled = new Set();
  for (const key of mm.tables.keys()) {
    const split = key.indexOf(":"), vaddr = Number(key.slice(split + 1));
    if (Number(key.slice(0, split)) === level - 1 && vaddr >= base && vaddr < end) filled.add((vaddr - base) / SPAN[level]);
  }
  if (level === 2) for (const number of mm.huge.keys()) if (number * SPAN[2] >= base && number * SPAN[2] < end) filled.add((number * SPAN[2] - base) / SPAN[2]);
  return [...filled];
}

function firstMapped(mm) {
  const numbers = [...mm.leaves.keys()].sort((one, other) => one - other);
  for (const number of numbers) {
    const leaf = mm.leaves.get(number);
    for (let n = 0; n < PTRS; n += 1) if (leaf[2 * n] || leaf[2 * n + 1]) return (number * PTRS + n) * PAGE;
  }
  return mm.sortedVmas()[0]?.start ?? 0;
}
