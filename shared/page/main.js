// Joins the page: the record, the moment, the controls, the views.

import { App } from "kd/app.js";
import { connect } from "kd/connection.js";
import { bindKeys } from "kd/keys.js";
import { Player } from "kd/player.js";
import { Playing, SPEEDS } from "kd/playing.js";

const $ = (id) => document.getElementById(id);
const player = new Player(), app = new App(player), playing = new Playing(app);
const wanted = new URLSearchParams(location.hash.slice(1));
app.wanted = Number(wanted.get("pid")) || 0;

connect({
  head(head) {
    player.begin(head);
    app.begin(head);
    app.isLost = false;
  },
  chunk(chunk, bytes) {
    player.add(chunk, bytes);
  },
  ready() {
    player.goLive();
  },
  end(why) {
    player.ended = why;
    app.redraw();
  },
  lost() {
    app.isLost = true;
    app.status = "The connection to the inspector has ended";
    app.redraw();
  },
});

$("process").addEventListener("change", (event) => app.chooseProcess(Number(event.target.value)));
$("family").addEventListener("change", () => app.redraw());
$("position").addEventListener("input", (event) => player.seek(Number(event.target.value)));
$("first").addEventListener("click", () => app.stepBy(-1));
$("back").addEventListener("click", () => player.seek(player.position - 1));
$("forward").addEventListener("click", () => player.seek(player.position + 1));
$("next").addEventListener("click", () => app.stepBy(1));
$("live").addEventListener("click", () => player.goLive());
$("play").addEventListener("click", () => playing.toggle());
$("mark").addEventListener("click", () => app.toggleMark());
$("keys").addEventListener("click", () => $("help").showModal());
$("speed").append(...SPEEDS.map(([name], n) => new Option(name, n)));
$("speed").addEventListener("change", (event) => playing.setSpeed(SPEEDS[Number(event.target.value)][1]));
if ($("record")) $("save").hidden = $("save-record").hidden = true; // This is the saved file already.
bindKeys(app, playing);

// For tests and for the curious: what the page shows, in the browser's console.
globalThis.kerneld = player;
globalThis.kerneldPage = app;
