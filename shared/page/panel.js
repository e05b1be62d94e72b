// The panel beside the views: what this step did, in sentences, and what is known of the page, frame or entry under the
// mouse or the focus.

import { el, refill } from "kd/dom.js";
import { storyOf } from "kd/story.js";
import { taskName } from "kd/words.js";

export class Panel {
  constructor(place, app) {
    this.app = app;
    this.story = el("section", { class: "story", "aria-label": "What happened" });
    this.here = el("section", { class: "here", "aria-label": "Explanation", "aria-live": "polite" });
    place.append(this.story, this.here);
    this.what = { title: "Explanations", lines: ["Point at a cell with the mouse, or move to it with Tab and the arrow keys: it is explained here. Press ? for all keys."] };
  }

  explain(what) {
    this.what = what;
  }

  draw(scene) {
    const { player } = this.app, isMoving = player.isLive || player.isPlaying;
    this.story.setAttribute("aria-live", isMoving ? "off" : "polite");
    const [first, end] = scene.steps.range(scene.step), total = end - first;
    const told = storyOf(scene.recording.head, scene.events, (pid) => taskName(scene.machine, pid));
    const where = total && scene.position < end && scene.position > first ? `${scene.position - first} of ${total} events of this step` : "";
    refill(this.story, JSON.stringify([told, where]), () => [el("h2", { text: "What happened" }), el("p", { class: "title", text: told.title }),
      el("ul", {}, ...told.lines.map((line) => el("li", { text: line }))), where ? el("p", { class: "note", text: where }) : null].filter(Boolean));
    const what = typeof this.what === "function" ? this.what() : this.what, { title, lines = [], facts = [], links = [] } = what;
    refill(this.here, JSON.stringify(what), () => [el("h2", { text: title }), ...lines.map((line) => el("p", { text: line })),
      el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
      links.length ? el("p", { text: "It is mapped by:" }) : null,
      ...links.map((link) => el("button", { type: "button", class: "link", text: link.text, click: () => this.app.choosePage(link.pid, link.vaddr, "walk") })),
    ].filter(Boolean));
  }
}
