// The page's wiring: opening and saving, what happens after a stroke, buttons and keys.
import { Service } from "./api.js";
import { choose, Controls, nudge, shown, tool, upscaling } from "./controls.js";
import { Document } from "./document.js";
import { Editor } from "./editor.js";
import { download, open } from "./files.js";
import { listen } from "./keys.js";
import { whole } from "./pixels.js";
import { png } from "./png.js";
import { automatic, holds } from "./region.js";
import { receive } from "./receive.js";
import { Refiner } from "./refine.js";
import { $, askToken, problem, say, waiting, working } from "./status.js";
import { Upscale } from "./upscale.js";
import { Stage } from "./view.js";

const service = new Service(askToken), controls = new Controls(), stage = new Stage($("canvas")), refiner = new Refiner(service);
const upscale = new Upscale(service, controls, buttons);
let mine = null;  // the part of the picture that the user chose for the model to see
let saved = 0;  // the state of the document that was last saved
let pending = Promise.resolve();


// ---------------------------------------------------------------------------------------------------------- from stroke to result

function limits() {
  const { width, height } = stage.document, model = controls.model();
  return { width, height, ratio: model?.content_height ? model.content_height / model.output_size : 1, least: model?.input_size ?? 1 };
}

const region = (changed) => $("looks").value === "mine" && mine ? mine : automatic(limits(), changed);

function showFrame() {
  if (!stage.document) return;
  const part = region(stage.document.changed()), across = part.right - part.left, model = controls.model();
  stage.framing = tool() === "square" && stage.show !== "compare";
  stage.frame = stage.framing || !holds(part, whole(stage.document)) ? part : null;
  stage.changed();
  if (!model) return;
  const finer = across > 2 * model.output_size ? " A smaller square gets sharper detail." : "";
  const sees = `${across}×${part.bottom - part.top}`, paints = `${model.output_size}×${model.output_size}`;
  $("seen").textContent = `It sees ${sees} pixels of the picture and paints ${paints}.${finer}`;
}

/** Shows the edit refined. `moment` is when the stroke ended, if one did. */
function refine(moment = null) {
  return pending = refineNow(moment);
}

async function refineNow(moment) {
  if (editor.drawing) return;  // it is refined when the stroke ends
  const edited = stage.document, settings = controls.settings(), changed = edited?.changed(), begun = moment ?? performance.now();
  refiner.cancel();
  problem(null);
  showFrame();
  buttons();
  if (!edited || !settings) return;
  const part = region(changed), outside = changed && !holds(part, changed);
  if (!changed || changed.right <= part.left || changed.left >= part.right || changed.bottom <= part.top || changed.top >= part.bottom) {
    Object.assign(stage, { result: null, mask: null, raw: false });
    stage.changed();
    working(null);
    buttons();
    return say(changed ? "Your edits lie outside the square that the model looks at." : "Nothing is edited. Draw on the picture.");
  }
  stage.raw = true;
  const text = "Refining…";
  working(text, cancel);
  try {
    const result = await refiner.refine(edited, part, settings, (why) => waiting(why, text));
    if (!result || stage.document !== edited) return;
    Object.assign(stage, { result, raw: false });
    await stage.drawn();
    const detail = { forward: result.seconds };
    if (moment !== null) performance.measure("stroke-to-refined", { start: moment, end: performance.now(), detail });
    working(null);
    buttons();
    const notes = outside ? " What you edited outside the square is not in the result." : "";
    const seconds = (performance.now() - begun) / 1000;
    say(`Refined${seconds < 0.05 ? "" : ` in ${seconds.toFixed(1)} s`}.${notes}`);
    await showMask();
  } catch (error) {
    if (stage.document !== edited) return;
    working(null);
    problem(error, refine);
    say("The edit was not refined.");
  }
}

async function showMask() {
  const edited = stage.document, wanted = $("mask").checked, state = edited?.history.state, part = edited && region(edited.changed());
  if (!wanted || !edited?.changed()) {
    if (stage.mask) Object.assign(stage, { mask: null }).changed();
    return;
  }
  const mask = await refiner.mask(edited, part, controls.settings());
  if (!mask || stage.document !== edited || edited.history.state !== state || !$("mask").checked) return;
  stage.mask = mask;
  stage.changed();
}

let timer = 0;
function later() {
  clearTimeout(timer);
  timer = setTimeout(refine, 200);
}

function cancel() {
  if (editor.cancel()) return;
  if (upscaling()) return upscale.cancel();
  if (!refiner.cancel()) return;
  working(null);
  if (stage.raw) problem(new Error("Cancelled: your edit is not refined yet."), refine);
  say("Cancelled.");
}

function step(work) {
  if (!stage.document || upscaling() || editor.active) return;
  const taken = work.call(stage.document);
  if (!taken) return say("There is nothing more to take back or do again.");
  stage.mask = null;
  stage.written(taken.rect, taken.label === "keep");
  refine();
}

const editor = new Editor($("board"), $("ring"), stage, {
  tool, limits, say,
  brush: () => controls.brush(),
  started() {
    refiner.cancel();
    working(null);
    Object.assign(stage, { raw: true, mask: null });
    if (stage.show === "compare") choose("show", "refined");
    stage.changed();
  },
  ended: refine,
  dropped: () => refine(),
  picked(colour) {
    controls.picked(colour);
    controls.write();
    editor.showRing();
    say(`Colour ${$("colour").value}.`);
  },
  framed(part, done) {
    mine = part;
    $("looks").value = "mine";
    showFrame();
    if (done) later();
  },
  divided(split) {
    $("split").value = split * 100;
    divide();
  },
});

// ---------------------------------------------------------------------------------------------------------- opening and saving

async function openFile(file) {
  if (!file) return;
  problem(null);
  if (upscaling()) return upscale.open(file);
  if (unsaved() && !confirm("Your edits are not saved. Open another picture all the same?")) return;
  try {
    const image = await open(file);
    refiner.forget();
    mine = null;
    saved = 0;
    $("looks").value = "auto";
    stage.open(new Document(image, (file.name ?? "picture").replace(/\.\w+$/, "")));
    controls.fit(image);
    $("board").ariaLabel = `${file.name ?? "Picture"}, ${image.width} by ${image.height} pixels`;
    $("zooming").hidden = false;
    working(null);
    say(`${file.name ?? "Picture"}, ${image.width}×${image.height}. Draw on it.`);
    showFrame();
    buttons();
  } catch (error) {
    problem(error);
  }
}

/** The result that is shown, at full size; null if there is none, or if it was given up. */
async function fullResult() {
  const edited = stage.document, { result } = stage;
  if (!result) return null;
  working("Refining at full size…", cancel);
  try {
    return await refiner.full(edited, region(edited.changed()), controls.settings(), result, (why) => waiting(why, "Refining at full size…"));
  } finally {
    working(null);
  }
}

async function save() {
  if (upscaling()) return upscale.result && upscale.save();
  const edited = stage.document;
  if (!edited) return;
  const { state } = edited.history;
  try {
    await pending;
    if (stage.show === "edit") download(await png(edited.edited, software(null, edited)), `${edited.name}-edited.png`);
    else {
      if (stage.raw) throw new Error("Your edit is not refined yet, so there is no refined picture to save.");
      const result = await fullResult();
      if (stage.result && !result) return say("Not saved.");
      const all = result?.pixels.width === edited.width && result.pixels.height === edited.height;
      if (!all) working("Writing the file…");
      const file = all ? result.blob : await png(edited.with(result), software(result, edited));
      download(file, `${edited.name}-retouched.png`);
      working(null);
    }
    saved = state;
    say("Saved.");
  } catch (error) {
    working(null);
    problem(error, stage.raw ? refine : save);
  }
}

/** What a file is marked with that has detail which a model made up, null for one that has none. */
const software = (made, edited) => made || edited.kept ? `gleansr, model ${made?.model ?? controls.model()?.name}` : null;
const unsaved = () => stage.document && stage.document.history.state !== saved;

async function keep() {
  const edited = stage.document;
  try {
    await pending;
    const result = await fullResult();
    if (!result || stage.document !== edited) return;
    edited.keep(result);
    stage.result = null;
    stage.written(whole(edited), true);
    await refine();
    say("Kept. Further edits start from here.");
  } catch (error) {
    problem(error, keep);
  }
}

// ---------------------------------------------------------------------------------------------------------- buttons, fields, files

function buttons() {
  const { history } = stage.document ?? {};
  $("welcome").hidden = Boolean(upscaling() ? upscale.result : stage.document);
  $("undo").disabled = !history?.done.length;
  $("redo").disabled = !history?.undone.length;
  $("save").disabled = upscaling() ? !upscale.result : !stage.document;
  $("keep").disabled = !stage.result || stage.raw;
}

function divide() {
  controls.write();
  stage.split = $("split").value / 100;
  stage.changed();
  placeDivider();
}

function placeDivider() {
  const comparing = stage.show === "compare" && !upscaling() && stage.document;
  for (const id of ["divider", "tag-before", "tag-after"]) $(id).hidden = !comparing;
  if (comparing) $("divider").style.left = `${(stage.view.x + stage.split * stage.document.width * stage.view.scale) / window.devicePixelRatio}px`;
}

function show() {
  stage.show = shown();
  showFrame();
  placeDivider();
  editor.showRing();
  stage.changed();
}

function setMode(mode) {
  document.body.dataset.mode = mode;
  problem(null);
  controls.describe();
  show();
  buttons();
}

function on(id, name, work) {
  $(id).addEventListener(name, work);
}

receive(openFile, upscaling);
on("save", "click", save);
on("undo", "click", () => step(Document.prototype.undo));
on("redo", "click", () => step(Document.prototype.redo));
on("keep", "click", keep);
on("help", "click", () => $("help-dialog").showModal());
on("split", "input", divide);
on("mask", "change", showMask);
on("model", "change", () => { if (!upscaling()) later(); });
for (const id of ["strength", "factor", "feather", "looks"]) on(id, "input", later);
for (const id of ["size", "hardness"]) on(id, "input", () => editor.showRing());
on("pick", "click", () => { controls.write(); editor.showRing(); });
on("smaller", "click", () => stage.document && stage.zoom(1 / 1.5));
on("bigger", "click", () => stage.document && stage.zoom(1.5));
on("fit", "click", () => stage.fit());
on("onward", "click", () => {
  const { result, name } = upscale;
  choose("mode", "retouch");
  openFile(new File([result.blob], `${name}.png`, { type: result.blob.type }));
});
for (const input of document.querySelectorAll("input[name=mode]")) input.addEventListener("change", () => setMode(input.value));
for (const input of document.querySelectorAll("input[name=show]")) input.addEventListener("change", show);
for (const input of document.querySelectorAll("input[name=tool]")) input.addEventListener("change", show);
stage.moved = () => {
  $("zoom").textContent = `${Math.round(stage.view.scale / window.devicePixelRatio * 100)} %`;
  placeDivider();
  editor.showRing();
};

window.addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });

// ---------------------------------------------------------------------------------------------------------- keys and start

const peek = (on) => { Object.assign(stage, { peek: on }).changed(); };
document.addEventListener("keyup", (event) => { if (event.key === "\\") peek(false); });
window.addEventListener("blur", () => peek(false));

function sized(by) {
  if (tool() !== "square") return nudge("size", 4 * by);
  if (stage.document && stage.framing) editor.grow(by);
}

const tools = { P: ["push", "push"], E: ["enlarge", "enlarge"], S: ["shrink", "shrink"], M: ["smooth", "smooth"], B: ["paint", "paint"],
  X: ["erase", "erase to the original"], Q: ["square", "choose the square that the model looks at"] };
listen([
  ...Object.entries(tools).map(([key, [name, what]]) => ["Tools", key, what, () => choose("tool", name)]),
  ["Tools", "I", "take a colour from the picture", () => { choose("tool", "paint"); $("pick").click(); }],
  ["Brush", "[ ]", "smaller, larger; the square, too", (event) => sized(event.key === "[" ? -1 : 1)],
  ["Brush", "{ }", "softer, harder", (event) => nudge("hardness", event.key === "{" ? -5 : 5)],
  ["Edit", "Ctrl+Z", "undo", () => step(Document.prototype.undo)],
  ["Edit", "Ctrl+Shift+Z Ctrl+Y", "redo", () => step(Document.prototype.redo)],
  ["Edit", "Escape", "drop the stroke, cancel the work", cancel],
  ["Look", "R", "refined picture", () => choose("show", "refined")],
  ["Look", "T", "my edit", () => choose("show", "edit")],
  ["Look", "C", "compare with the original", () => choose("show", shown() === "compare" ? "refined" : "compare")],
  ["Look", "K", "mask", () => $("mask").click()],
  ["Look", "\\", "the original, while the key is held", () => peek(true)],
  ["Look", "+ = -", "zoom in, in, out", (event) => stage.document && stage.zoom(event.key === "-" ? 1 / 1.5 : 1.5)],
  ["Look", "0", "whole picture", () => stage.fit()],
  ["On the picture", "Arrows", "move brush, square or divider, with Shift farther", null],
  ["On the picture", "Enter", "press and lift the brush", null],
  ["On the picture", "Space", "held: drag moves the picture", null],
  ["File", "Ctrl+O", "open", () => $("file").click()],
  ["File", "Ctrl+S", "save what is shown", save],
  ["File", "?", "this help", () => $("help-dialog").showModal()],
]);

async function start() {
  try {
    controls.offer(await service.models({ waits: (why) => why && say(why) }));
    refine();
    if (upscale.file && !upscale.result) upscale.run();
  } catch (error) {
    problem(error, start);
  }
}

setMode(document.querySelector("input[name=mode]:checked").value);
say("Open a picture to begin.");
start();
