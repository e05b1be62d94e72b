// The moment that the page shows: live, or any moment of the record. Owns the machine of the model; the views read it.

import { Recording } from "kd/recording.js";

export class Player extends EventTarget {
  constructor() {
    super();
    this.recording = null;
    this.machine = null;
    this.position = 0; // The machine is the one before the event of this number.
    this.isLive = true;
    this.isPlaying = false;
    this.ended = ""; // Why no more events will come.
  }

  begin(head) {
    this.recording = new Recording(head);
    this.machine = null;
    this.ended = "";
    this.isLive = true;
  }

  /** Add a chunk. While the page is live, the machine goes on to its end. */
  add(chunk, bytes) {
    const had = this.recording.keys.length;
    this.recording.add(chunk, bytes);
    if (!this.machine) {
      if (this.recording.keys.length) this.seek(this.recording.firstEvent, true);
      return;
    }
    // A key frame behind missing events makes the machine exact again: it is taken where the machine is not whole.
    if (this.isLive && this.recording.keys.length > had && !this.machine.isWhole) this.machine = null;
    if (this.isLive) this.follow();
    else this.changed();
  }

  follow() {
    const end = this.recording.nrEvents;
    if (!this.machine || end < this.position) this.machine = this.recording.machine(end);
    else this.recording.advance(this.machine, this.position, end);
    this.position = end;
    this.changed();
  }

  /** Show the machine before the event of this number. */
  seek(number, live = false) {
    if (!this.recording || !this.recording.keys.length) return;
    const { firstEvent, nrEvents } = this.recording;
    const wanted = Math.max(firstEvent, Math.min(number, nrEvents));
    if (this.machine && wanted >= this.position && wanted - this.position < 20000) {
      this.recording.advance(this.machine, this.position, wanted);
    } else this.machine = this.recording.machine(wanted);
    this.position = wanted;
    this.isLive = live;
    this.changed();
  }

  /** Follow what happens now. */
  goLive() {
    this.isLive = true;
    this.isPlaying = false;
    this.follow();
  }

  /** The event that led to this moment, or null. */
  lastEvent() {
    return this.recording && this.position > this.recording.firstEvent ? this.recording.event(this.position - 1) : null;
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }
}
