// Two moments, and what is different between them: what came, went, changed and moved. `compare` is pure.

import { PAGE, PRESENT, PTRS, entryPfn } from "kd/model.js";
import { el, refill, setText } from "kd/dom.js";
import { MapCounts, frameUses } from "kd/frames.js";
import { FRAME_KINDS, PAGE_KINDS, pageKind } from "kd/kinds.js";
import { count, findVma, hex, rights, vmaName } from "kd/words.js";

const MOST = 200;

/** Return what is different: {vmas, pages, frames}, rows of {what, text, vaddr?, pfn?}. Runs of pages are one row. */
export function compare(before, after, pid) {
  const one = before.tasks.get(pid), other = after.tasks.get(pid);
  const old = (one && before.mms.get(one.mm)) || null, now = (other && after.mms.get(other.mm)) || null;
  const counts = [new MapCounts().update(before), new MapCounts().update(after)];
  const sameSpace = !old || !now || old.number === now.number;
  return {
    sameSpace, vmas: compareVmas(before, old, after, now), pages: comparePages(before, old, after, now, counts),
    frames: compareFrames(before, after, counts),
  };
}

function compareVmas(before, old, after, now) {
  const rows = [], text = (machine, mm, vma) => `${hex(vma.start)}–${hex(vma.end)} ${rights(vma.flags)} ${vmaName(machine, mm, vma) || "anonymous"}`;
  const had = old ? old.vmas : new Map(), has = now ? now.vmas : new Map();
  for (const vma of old ? old.sortedVmas() : []) if (!has.has(vma.start)) rows.push({ what: "went", text: text(before, old, vma), vaddr: vma.start });
  for (const vma of now ? now.sortedVmas() : []) {
    const was = had.get(vma.start);
    if (!was) rows.push({ what: "came", text: text(after, now, vma), vaddr: vma.start });
    else if (was.end !== vma.end || was.flags !== vma.flags || was.mapping !== vma.mapping) {
      rows.push({ what: "changed", text: `${text(before, old, was)} → ${text(after, now, vma)}`, vaddr: vma.start });
    }
  }
  return rows;
}

function* entriesOf(mm) {
  for (const [number, leaf] of mm ? mm.leaves : []) {
    for (let n = 0; n < PTRS; n += 1) if (leaf[2 * n] || leaf[2 * n + 1]) yield (number * PTRS + n) * PAGE;
  }
  for (const number of mm ? mm.huge.keys() : []) for (let n = 0; n < PTRS; n += 1) yield (number * PTRS + n) * PAGE;
}

function comparePages(before, old, after, now, counts) {
  const places = [...new Set([...entriesOf(old), ...entriesOf(now)])].sort((one, other) => one - other), rows = [];
  const state = (machine, mm, vaddr, used) => {
    const [low, high] = mm ? mm.entry(vaddr) : [0, 0], vma = mm && findVma(mm, vaddr);
    if (!vma) return { kind: 8, pfn: -1, low: 0 };
    return { kind: pageKind(low, high, vma, machine, used), pfn: low & PRESENT ? entryPfn(low, high) : -1, low };
  };
  for (const vaddr of places) {
    const was = state(before, old, vaddr, counts[0]), is = state(after, now, vaddr, counts[1]);
    const what = whatOf(was, is);
    if (!what) continue;
    const text = `${PAGE_KINDS[was.kind].name} → ${PAGE_KINDS[is.kind].name}`, last = rows[rows.length - 1];
    const frames = what === "moved" ? `, frame ${hex(was.pfn)} → ${hex(is.pfn)}` : "";
    const more = what === "changed" && was.kind === is.kind ? marks(was.low, is.low) : text;
    if (last && last.what === what && last.more === more && last.end === vaddr && !frames) last.end = vaddr + PAGE;
    else rows.push({ what, more, vaddr, end: vaddr + PAGE, frames });
  }
  return rows.map((row) => ({ ...row, text: `${hex(row.vaddr)}  ${count((row.end - row.vaddr) / PAGE, "page")}: ${row.more}${row.frames}` }));
}

function marks(was, is) {
  const names = [[0x20, "accessed"], [0x40, "dirty"], [2, "writable"]];
  return names.filter(([bit]) => (was ^ is) & bit).map(([bit, name]) => (is & bit ? `${name} now` : `not ${name} any more`)).join(", ") || "other bits";
}

function whatOf(was, is) {
  const had = was.pfn >= 0, has = is.pfn >= 0;
  if (!had && has) return "came";
  if (had && !has) return is.kind === 6 ? "moved out" : "went";
  if (had && was.pfn !== is.pfn) return "moved";
  return was.kind !== is.kind || was.low !== is.low ? "changed" : "";
}

function compareFrames(before, after, counts) {
  const rows = [], old = frameUses(before, counts[0]), now = frameUses(after, counts[1]);
  for (let pfn = 0; pfn < Math.max(old.length, now.length); pfn += 1) {
    const was = old[pfn], is = now[pfn], free = (use) => use === undefined || use < 2;
    if (was === is && counts[0][pfn] === counts[1][pfn]) continue;
    const what = free(was) && !free(is) ? "came" : !free(was) && free(is) ? "went" : free(was) ? "" : "changed";
    if (!what) continue;
    const more = was === is ? `${counts[0][pfn]} → ${count(counts[1][pfn], "entry", "entries")} map it` : `${FRAME_KINDS[was]?.name} → ${FRAME_KINDS[is]?.name}`;
    const last = rows[rows.length - 1];
    if (last && last.what === what && last.more === more && last.end === pfn) last.end = pfn + 1;
    else rows.push({ what, more, pfn, end: pfn + 1 });
  }
  return rows.map((row) => ({ ...row, text: `${hex(row.pfn)}  ${count(row.end - row.pfn, "frame")}: ${row.more}` }));
}

const SIGNS = { came: "+", went: "−", changed: "≠", moved: "→", "moved out": "→" };

export class CompareView {
  constructor(place, app) {
    this.app = app;
    this.from = el("select", { id: "compare-from", "aria-label": "First moment", change: () => app.redraw() });
    this.head = el("p", { class: "note", role: "status" });
    this.lists = ["vmas", "pages", "frames"].map((key) => ({ key, head: el("h2"), rows: el("ul", { class: "differences" }) }));
    place.append(el("div", { class: "tools" }, el("label", { for: "compare-from", text: "From" }), this.from, el("span", { text: "to the moment that is shown" })), this.head,
      ...this.lists.flatMap((list) => [list.head, list.rows]));
  }

  /** Compare with this mark from now on. */
  choose(at) {
    this.wanted = String(at);
  }

  draw(scene) {
    const options = [["the begin of the record", scene.recording.firstEvent], ...scene.marks.map((mark) => [`mark ${mark.name}: event ${mark.at}`, mark.at])];
    refill(this.from, options.join(), () => options.map(([text, at]) => new Option(text, at)));
    if (this.wanted !== undefined) this.from.value = this.wanted;
    this.wanted = undefined;
    if (this.from.selectedIndex < 0) this.from.selectedIndex = options.length - 1;
    const at = Number(this.from.value), key = `${at} ${scene.position} ${scene.chosen.pid}`;
    if (key === this.key) return;
    this.key = key;
    const found = compare(scene.recording.machine(at), scene.machine, scene.chosen.pid);
    const names = { vmas: "VMAs", pages: "Pages", frames: "Frames" };
    const space = found.sameSpace ? "" : " The process has another address space: it has called execve.";
    setText(this.head, `Event ${at} and event ${scene.position}, process ${scene.chosen.pid}.${space} + came, − went, ≠ changed, → moved.`);
    for (const { key: name, head, rows } of this.lists) {
      const all = found[name];
      setText(head, `${names[name]}: ${all.length ? count(all.length, "difference") : "no difference"}`);
      rows.replaceChildren(...all.slice(0, MOST).map((row) => el("li", {}, el("button", {
        type: "button", class: row.what.replace(" ", "-"),
        click: () => (row.pfn !== undefined ? this.app.chooseFrame(row.pfn) : this.app.choosePage(scene.chosen.pid, row.vaddr, "space")),
      }, el("b", { text: `${SIGNS[row.what]} ${row.what} ` }), row.text))), ...(all.length > MOST ? [el("li", { text: `… and ${all.length - MOST} more` })] : []));
    }
  }
}
