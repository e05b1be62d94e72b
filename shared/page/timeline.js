// The record as a strip: a line for each group of events, marks, the moment that is shown. Click or drag to go there.

import { cssValue, el, penFor } from "kd/dom.js";
import { GROUPS } from "kd/steps.js";

const LANE = 6;

export class Timeline {
  constructor(place, app) {
    this.app = app;
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.cursor = el("div", { class: "moment" });
    this.flags = el("div", { class: "flags" });
    place.append(this.canvas, this.cursor, this.flags);
    this.place = place;
    this.nrEvents = 0;
    place.title = `From above: ${GROUPS.join(", ")}`;
    place.addEventListener("pointerdown", (event) => {
      place.setPointerCapture(event.pointerId);
      this.seek(event);
    });
    place.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) this.seek(event);
    });
  }

  seek(event) {
    if (!this.scene) return;
    const box = this.place.getBoundingClientRect(), { firstEvent, nrEvents } = this.scene.recording;
    this.app.player.seek(Math.round(firstEvent + ((event.clientX - box.left) / box.width) * (nrEvents - firstEvent)));
  }

  draw(scene) {
    this.scene = scene;
    const { firstEvent, nrEvents } = scene.recording, width = this.place.clientWidth;
    const part = (event) => `${(100 * (event - firstEvent)) / Math.max(1, nrEvents - firstEvent)}%`;
    this.cursor.style.left = part(scene.position);
    const marks = `${scene.marks.map((mark) => mark.at).join()} ${nrEvents}`;
    if (this.flags.dataset.key !== marks) {
      this.flags.dataset.key = marks;
      this.flags.replaceChildren(...scene.marks.map((mark) => el("button", {
        type: "button", class: "flag", style: `left: ${part(mark.at)}`, title: `Mark ${mark.name}: event ${mark.at}`, "aria-label": `Go to mark ${mark.name}`,
        text: mark.name, click: () => this.app.player.seek(mark.at),
      })));
    }
    const now = performance.now(), key = `${width} ${scene.theme} ${devicePixelRatio}`;
    const isNew = key !== this.key || (nrEvents !== this.nrEvents && (now - (this.when || 0) > 250 || this.app.player.ended));
    if (!isNew || !width) {
      if (nrEvents !== this.nrEvents) this.later ||= setTimeout(() => { this.later = 0; this.app.redraw(); }, 260);
      return;
    }
    Object.assign(this, { key, nrEvents, when: now });
    this.paint(scene, width);
  }

  paint(scene, width) {
    const { values, length } = scene.steps.groups, { firstEvent, nrEvents } = scene.recording;
    const pen = penFor(this.canvas, width, GROUPS.length * LANE), seen = new Uint8Array(width), scale = width / Math.max(1, nrEvents - firstEvent);
    for (let n = 0; n < length; n += 1) seen[Math.min(width - 1, Math.floor(n * scale))] |= 1 << values[n];
    const wide = Math.max(1, Math.min(4, scale * 0.8));
    GROUPS.forEach((_group, lane) => {
      pen.fillStyle = cssValue(`--group-${lane}`);
      for (let x = 0; x < width; x += 1) if (seen[x] & (1 << lane)) pen.fillRect(x, lane * LANE, wide, LANE - 1);
    });
  }
}
