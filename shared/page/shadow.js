// The shadow page table: the structures of the assignment, entry by entry, as the inspector's memory has them.

import { PAGE } from "kd/model.js";
import { RowList, el, setText } from "kd/dom.js";
import { touches } from "kd/steps.js";
import { count, hex, size, taskName } from "kd/words.js";

const FLAGS = [[1, "ALLOCATED", "A VMA covers the page."], [2, "ANONYMOUS", "The VMA maps no file."], [4, "MAPPED", "An entry gives the page a frame."]];
const word = (value) => "0x" + value.toString(16).padStart(16, "0");

export class ShadowView {
  constructor(place, app) {
    this.app = app;
    this.head = el("p", { class: "note", role: "status" });
    this.struct = el("pre", { class: "struct" });
    this.titles = el("div", { class: "shadowrow titles", "aria-hidden": "true" }, ...["entry", "vaddr", "pfn", "state_flags"].map((text) => el("span", { text })));
    this.list = new RowList({
      label: "Entries of the shadow page table", rowHeight: 28, make: (n) => this.row(n),
      pick: (n) => {
        this.app.explain(this.facts(n));
        this.app.choosePage(this.shadow.target, this.shadow.start + n * PAGE, "shadow");
      },
    });
    this.legend = el("ul", { class: "legend" }, ...FLAGS.map(([bit, name, about]) => el("li", { text: `${bit} = ${name}: ${about}` })));
    place.append(this.head, this.struct, this.legend, this.titles, this.list.element);
  }

  draw(scene) {
    const { shadow } = scene.machine;
    this.shadow = shadow;
    this.scene = scene;
    this.struct.hidden = this.titles.hidden = this.list.element.hidden = this.legend.hidden = !shadow;
    if (!shadow) {
      setText(this.head, "No shadow page table is open at this moment. Start ./inspector PID START END, and it is here.");
      return;
    }
    const target = taskName(scene.machine, shadow.target), state = shadow.isTracking ? "follows its target" : "is frozen";
    const mapped = shadow.flags.reduce((sum, flags) => sum + (flags & 4 ? 1 : 0), 0);
    setText(this.head, `The table of ${taskName(scene.machine, shadow.opener)} shows ${target}. It ${state}: ${count(shadow.flags.length, "entry", "entries")}, ${mapped} of them MAPPED.`);
    setText(this.struct, `struct user_shadow_pt { start_vaddr = ${hex(shadow.start)}, end_vaddr = ${hex(shadow.end)}, entries → struct shadow_pte[${shadow.flags.length}] }  ${size(24 * shadow.flags.length)}`);
    const key = `${shadow.start} ${shadow.flags.join()} ${shadow.pfns.join()} ${JSON.stringify(scene.changes.shadow)}`;
    this.list.draw(shadow.flags.length, key);
  }

  row(n) {
    const { shadow } = this, vaddr = shadow.start + n * PAGE, flags = shadow.flags[n], isTouched = touches(this.scene.changes.shadow, vaddr, vaddr + PAGE);
    const names = FLAGS.filter(([bit]) => flags & bit).map(([, name]) => name).join(" ") || "none";
    return el("div", { class: `shadowrow${isTouched ? " touched" : ""}${flags & 4 ? " mapped" : ""}` }, el("span", { text: `[${n}]` }),
      el("code", { text: word(vaddr) }), el("code", { text: word(shadow.pfns[n]) }), el("code", { text: `${word(flags)} ${names}${isTouched ? "  ◂ changed" : ""}` }));
  }

  facts(n) {
    const { shadow } = this, flags = shadow.flags[n];
    return {
      title: `shadow_pte[${n}]`, facts: [["vaddr", hex(shadow.start + n * PAGE)], ["pfn", hex(shadow.pfns[n])], ["state_flags", hex(flags)]],
      lines: FLAGS.map(([bit, name, about]) => `${name}: ${flags & bit ? about : "not set"}`),
    };
  }
}
