// Plays the record: so many steps a second, or as fast as it was, slower or faster.

export const SPEEDS = [
  ["1 step a second", { steps: 1 }], ["3 steps a second", { steps: 3 }], ["10 steps a second", { steps: 10 }], ["60 steps a second", { steps: 60 }],
  ["as fast as it was", { times: 1 }], ["10 times slower", { times: 0.1 }], ["100 times slower", { times: 0.01 }], ["10 times faster", { times: 10 }],
];

export class Playing {
  constructor(app) {
    this.app = app;
    this.speed = SPEEDS[0][1];
  }

  toggle() {
    const { player } = this.app;
    if (!player.recording) return;
    player.isPlaying = !player.isPlaying;
    if (!player.isPlaying) return this.app.redraw();
    if (player.position >= player.recording.nrEvents) player.seek(player.recording.firstEvent);
    player.isLive = false;
    this.since = null;
    requestAnimationFrame((now) => this.frame(now));
  }

  /** Play with another speed from this moment on. */
  setSpeed(speed) {
    this.speed = speed;
    this.since = null;
  }

  frame(now) {
    const { player } = this.app;
    if (!player.isPlaying) return;
    if (this.since === null || this.at !== player.position) {
      this.since = now; // Somebody has moved, or it begins: time counts from here.
      this.from = player.recording.event(player.position)?.time ?? player.machine.time;
      this.done = 0;
    }
    if (this.speed.steps) {
      const due = Math.floor(((now - this.since) / 1000) * this.speed.steps);
      for (; this.done < due; this.done += 1) this.app.stepBy(1);
    } else {
      const number = this.eventAt(this.from + BigInt(Math.round((now - this.since) * 1e6 * this.speed.times)));
      if (number > player.position) player.seek(number);
    }
    this.at = player.position;
    if (player.position >= player.recording.nrEvents) this.toggle();
    else requestAnimationFrame((next) => this.frame(next));
  }

  /** The number of the first event later than a time. */
  eventAt(time) {
    const { recording, position } = this.app.player;
    let low = position, high = recording.nrEvents;
    while (low < high) {
      const middle = (low + high) >> 1, event = recording.event(middle);
      if (!event || event.time <= time) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
