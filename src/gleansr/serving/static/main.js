// The page's wiring: opening and saving, what happens after a stroke, buttons and keys.
import { choose, Controls, nudge, shown, tool, upscaling } from "./controls.js";
import { Document } from "./document.js";
import { Editor } from "./editor.js";
import { engine } from "./engine.js";
import { Enlarge } from "./enlarge.js";
import { download, open, readable } from "./files.js";
import { listen } from "./keys.js";
import { clip, whole } from "./pixels.js";
import { png } from "./png.js";
import { automatic, holds } from "./region.js";
import { badEdit, receive } from "./receive.js";
import { Refiner } from "./refine.js";
import { $, askUnsaved, problem, restore, say, waiting, working } from "./status.js";
import { Stage } from "./view.js";

const UNKNOWN = "Nothing that the models know was recognised here. Choose a model, or a model region around a face, cat, car, bedroom or tower.";

const service = await engine(), controls = new Controls(), stage = new Stage($("canvas")), refiner = new Refiner(service);
const enlarge = new Enlarge(service, controls, buttons);
let mine = null;  // the part of the image that the user chose for the model to see
const checked = new Set();  // models of which was said whether they fit the image
let heads = [];  // what was recognised in the image: see `Refiner.recognise`
let shownAt = null;  // the region that shimmers while it is refined
let given = null;  // the file that was opened last
let saved = 0;  // the state of the document that was last saved
let pending = Promise.resolve();
let timer = 0;  // of a change of settings


// ---------------------------------------------------------------------------------------------------------- from stroke to result

function limits() {
  const { width, height } = stage.document, model = controls.model();
  return { width, height, ratio: model?.content_height ? model.content_height / model.output_size : 1, least: model?.input_size ?? 1 };
}

/** What was recognised where the image was edited; null if that is not known. */
function headOf(changed) {
  const area = (rect) => rect ? (rect.right - rect.left) * (rect.bottom - rect.top) : 0;
  const near = (head) => head.area && changed && area(clip(changed, head.area)) >= area(changed) / 2;
  return heads.find(near) ?? heads.find((head) => !head.area) ?? null;
}

function region(changed) {
  if ($("looks").value === "mine" && mine) return mine;
  return controls.automatic && headOf(changed)?.area || automatic(limits(), changed);
}

/** Finds the head that was edited, and the model for it, if the model is chosen automatically. */
async function recognise(edited, changed) {
  if (!controls.automatic) return true;
  if (!headOf(changed)) {
    working("Looking at the image…", cancel);
    const chosen = service.local && $("looks").value === "mine" ? mine : null;
    const head = await refiner.recognise(edited, changed, (why) => waiting(why, "Looking at the image…"), chosen);
    if (!head || stage.document !== edited) return false;
    heads.push(head);
  }
  const { model, summary } = headOf(changed);
  controls.suggested = model;
  $("found").textContent = summary;
  $("found").hidden = false;
  controls.describe();
  return true;
}

function showFrame() {
  if (!stage.document) return;
  const part = region(stage.document.changed()), across = part.right - part.left, model = controls.model();
  stage.framing = tool() === "region" && stage.show !== "compare";
  stage.frame = stage.framing || !holds(part, whole(stage.document)) ? part : null;
  stage.changed();
  if (!model) return;
  const finer = across > 2 * model.output_size ? " A smaller region gets sharper detail." : "";
  const sees = `${across}×${part.bottom - part.top}`, paints = `${model.output_size}×${model.output_size}`;
  $("seen").textContent = `It sees ${sees} pixels of the image and draws ${paints}.${finer}`;
}

/** Shows the edit refined. `moment` is when the stroke ended, if one did. */
function refine(moment = null) {
  return pending = refineNow(moment);
}

async function refineNow(moment) {
  clearTimeout(timer);
  if (editor.drawing) return;  // it is refined when the stroke ends
  const edited = stage.document, changed = edited?.changed(), begun = moment ?? performance.now();
  refiner.cancel();
  problem(null);
  showFrame();
  buttons();
  if (!edited || !controls.model()) return;
  try {
    if (changed && !await recognise(edited, changed)) return;
  } catch (error) {
    if (stage.document !== edited) return;
    working(null);
    stage.raw = true;
    problem(error.type?.endsWith(":unfit") ? new Error(UNKNOWN) : error, refine);
    return say("The edit was not refined.");
  }
  showFrame();
  const settings = controls.settings(), part = region(changed), outside = changed && !holds(part, changed);
  if (!changed || changed.right <= part.left || changed.left >= part.right || changed.bottom <= part.top || changed.top >= part.bottom) {
    Object.assign(stage, { result: null, mask: null, raw: false });
    stage.changed();
    working(null);
    buttons();
    return say(changed ? "Your edits lie outside the model region." : "Nothing is edited. Draw on the image.");
  }
  stage.raw = true;
  const text = "Refining…";
  working(text, cancel);
  shimmer(part);
  try {
    const result = await refiner.refine(edited, part, settings, (why) => waiting(why, text));
    if (!result || stage.document !== edited) return;
    Object.assign(stage, { result, raw: false });
    await stage.drawn();
    const detail = { forward: result.seconds };
    if (moment !== null) performance.measure("stroke-to-refined", { start: moment, end: performance.now(), detail });
    working(null);
    buttons();
    const notes = outside ? " What you edited outside the model region is not in the result." : "";
    const seconds = (performance.now() - begun) / 1000;
    say(`Refined${seconds < 0.05 ? "" : ` in ${seconds.toFixed(1)} s`}.${notes}`);
    await showMask();
    await checkModel(edited, changed);
  } catch (error) {
    if (stage.document !== edited) return;
    working(null);
    problem(error, refine);
    say("The edit was not refined.");
  } finally {
    shimmer(null);
  }
}

/** Lets a region shimmer, or nothing. */
function shimmer(part) {
  shownAt = part;
  $("shimmer").hidden = !part || stage.show === "compare";
  if (!part) return;
  const { x, y, scale } = stage.view, ratio = window.devicePixelRatio, { left, top, right, bottom } = part;
  Object.assign($("shimmer").style, {
    transform: `translate(${(x + left * scale) / ratio}px, ${(y + top * scale) / ratio}px)`,
    width: `${(right - left) * scale / ratio}px`, height: `${(bottom - top) * scale / ratio}px`,
  });
}

/** Says so if the model that the user chose is not for what the image shows. */
async function checkModel(edited, changed) {
  const model = controls.model();
  if (controls.automatic || !controls.offersAutomatic || checked.has(model.name)) return;
  checked.add(model.name);
  const head = headOf(changed) ?? await refiner.recognise(edited, changed, () => {}).catch(() => null);
  if (!head || stage.document !== edited || controls.model() !== model) return;
  if (!heads.includes(head)) heads.push(head);
  const shown = controls.models.find(({ name }) => name === head.model)?.category;
  if (shown && shown !== model.category) say(`This model knows ${model.category}; the image shows ${shown}. Choose another, or automatic.`);
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

function later() {
  clearTimeout(timer);
  timer = setTimeout(refine, 200);
}

function cancel() {
  if (editor.cancel()) return;
  if (upscaling()) return enlarge.stop();
  if (!refiner.cancel()) return;
  working(null);
  if (stage.raw) problem(new Error("Cancelled: your edit is not refined yet."), refine);
  say("Cancelled.");
}

function step(work) {
  if (!stage.document || upscaling() || editor.active) return;
  const taken = work.call(stage.document);
  if (!taken) return say(work === Document.prototype.undo ? "Nothing to undo." : "Nothing to redo.");
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
    if (service.local) heads = [];  // what it shows is looked at anew
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

/** Opens a file in the mode that is shown; `head` is one that is known to be in it. Returns whether it was opened. */
async function openFile(file, head = null) {
  if (!file) return false;
  problem(null);
  guiding();
  try {
    if (upscaling()) {
      await readable(file);
      given = file;
      await enlarge.open(file);
      return true;
    }
    const image = await open(file);
    if (unsaved()) {
      const answer = await askUnsaved();
      if (!answer) return false;
      if (answer === "save" && !await save()) return false;
    }
    given = file;
    refiner.forget();
    mine = service.local ? head : null;  // a service finds it
    heads = [];
    checked.clear();
    $("found").hidden = true;
    controls.suggested = null;
    saved = 0;
    $("looks").value = mine ? "mine" : "auto";
    service.warm();
    stage.open(new Document(image, (file.name ?? "image").replace(/\.\w+$/, "")));
    controls.fit(image);
    $("board").ariaLabel = `${file.name ?? "Image"}, ${image.width} by ${image.height} pixels`;
    working(null);
    const hint = service.local && !mine ? " Mark a head that does not fill it with the region tool (Q)." : "";
    say(`${file.name ?? "Image"}, ${image.width}×${image.height}. Draw on it.${hint}`);
    showFrame();
    buttons();
    return true;
  } catch (error) {
    problem(error);
    return false;
  }
}

/** Shows an amateur's edit, and what refining makes of it. */
async function guide() {
  choose("mode", "retouch");
  try {
    const { face, head, edit, left, top } = await badEdit();
    if (!await openFile(face, head)) return;
    choose("show", "edit");
    stage.written(stage.document.lay("sample", edit, left, top));
    stage.zoomTo({ left: 100, top: 0, right: 350, bottom: 220 });
    const seams = () => guiding("Eyes and smile were enlarged by hand. The seams show.", "Refine it", () => {
      choose("show", "refined");
      guiding("The seams are gone; nothing else changed. Draw on it yourself.", "Show the edit", () => {
        choose("show", "edit");
        seams();
      });
    });
    seams();
    await refine();
  } catch (error) {
    problem(error, guide);
  }
}

/** Says the next step of a guide; without text, ends it. */
function guiding(text = "", button = "Next", next = null) {
  $("guide").hidden = !text;
  $("guide").querySelector("p").textContent = text;
  $("guide-next").textContent = button;
  $("guide-next").onclick = next;
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

/** Offers what is shown to be saved. Returns whether that was done. */
async function save() {
  if (upscaling()) return enlarge.result && enlarge.save();
  const edited = stage.document;
  if (!edited) return false;
  const { state } = edited.history;
  try {
    await pending;
    if (stage.show === "edit") download(await png(edited.edited, software(null, edited)), `${edited.name}-edited.png`);
    else {
      if (stage.raw) throw new Error("Your edit is not refined yet, so there is no refined image to save.");
      const result = await fullResult();
      if (stage.result && !result) {
        say("Not saved.");
        return false;
      }
      const all = result?.blob && result.pixels.width === edited.width && result.pixels.height === edited.height;
      if (!all) working("Writing the file…");
      const file = all ? result.blob : await png(edited.with(result), software(result, edited));
      download(file, `${edited.name}-retouched.png`);
      working(null);
    }
    saved = state;
    say("Saved.");
    return true;
  } catch (error) {
    working(null);
    problem(error, stage.raw ? refine : save);
    return false;
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
  $("welcome").hidden = upscaling() ? enlarge.shows : Boolean(stage.document);
  document.body.toggleAttribute("data-empty", !$("welcome").hidden);
  $("zooming").hidden = !$("welcome").hidden;
  $("undo").disabled = !history?.done.length;
  $("redo").disabled = !history?.undone.length;
  $("save").disabled = upscaling() ? !enlarge.result : !stage.document;
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
  guiding();
  controls.describe();
  show();
  buttons();
  if (mode === "upscale") enlarge.view.fit();
  showZoom();
  // The image comes along, unless the other mode is at work on one.
  if (given && !(upscaling() ? enlarge.shows : stage.document)) openFile(given);
  else restore(mode);
}

function on(id, name, work) {
  $(id).addEventListener(name, work);
}

receive(openFile, (mode) => choose("mode", mode));
on("save", "click", save);
on("guide-sample", "click", guide);
on("guide-end", "click", () => guiding());
on("undo", "click", () => step(Document.prototype.undo));
on("redo", "click", () => step(Document.prototype.redo));
on("keep", "click", keep);
on("help", "click", () => $("help-dialog").showModal());
on("split", "input", divide);
on("mask", "change", showMask);
on("model", "change", () => { if (!upscaling()) later(); });
for (const id of ["blend", "factor", "feather", "looks"]) on(id, "input", later);
for (const id of ["size", "hardness"]) on(id, "input", () => editor.showRing());
on("pick", "click", () => { controls.write(); editor.showRing(); });
on("smaller", "click", () => zoom(1 / 1.5));
on("bigger", "click", () => zoom(1.5));
on("fit", "click", fit);
on("onward", "click", () => {
  const { result, name } = enlarge;
  given = null;
  choose("mode", "retouch");
  openFile(new File([result.blob], `${name}.png`, { type: result.blob.type }));
});
for (const input of document.querySelectorAll("input[name=mode]")) input.addEventListener("change", () => setMode(input.value));
for (const input of document.querySelectorAll("input[name=show]")) input.addEventListener("change", show);
for (const input of document.querySelectorAll("input[name=tool]")) input.addEventListener("change", () => { editor.cancel(); show(); });
stage.moved = () => {
  placeDivider();
  editor.showRing();
  showZoom();
  shimmer(shownAt);
};
const placed = enlarge.view.moved;
enlarge.view.moved = () => {
  placed();
  showZoom();
};

function showZoom() {
  const scale = upscaling() ? enlarge.view.scale * window.devicePixelRatio : stage.view.scale / window.devicePixelRatio;
  $("zoom").textContent = `${Math.round(scale * 100)} %`;
}

function zoom(by) {
  if (upscaling()) enlarge.view.zoom(by);
  else if (stage.document) stage.zoom(by);
}

function fit() {
  if (upscaling()) enlarge.view.fit();
  else stage.fit();
}

window.addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });

// ---------------------------------------------------------------------------------------------------------- keys and start

function peek(on) {
  if (upscaling()) enlarge.peek(on);
  else Object.assign(stage, { peek: on }).changed();
}
document.addEventListener("keyup", (event) => { if (event.key === "\\") peek(false); });
window.addEventListener("blur", () => peek(false));

function sized(by) {
  if (tool() !== "region") return nudge("size", 4 * by);
  if (stage.document && stage.framing) editor.grow(by);
}

const tools = { P: ["push", "push"], E: ["enlarge", "enlarge"], S: ["shrink", "shrink"], M: ["smooth", "smooth"], B: ["paint", "paint"],
  X: ["erase", "erase to the original"], H: ["heal", "heal: remove a spot"], V: ["move", "move: draw around a part, then drag it"],
  Q: ["region", "choose the model region"] };
listen([
  ...Object.entries(tools).map(([key, [name, what]]) => ["Tools", key, what, () => choose("tool", name)]),
  ["Tools", "I", "take a colour from the image", () => { choose("tool", "paint"); $("pick").click(); }],
  ["Brush", "[ ]", "smaller, larger; the model region, too", (event) => sized(event.key === "[" ? -1 : 1)],
  ["Brush", "{ }", "softer, harder", (event) => nudge("hardness", event.key === "{" ? -5 : 5)],
  ["Edit", "Ctrl+Z", "undo", () => step(Document.prototype.undo)],
  ["Edit", "Ctrl+Shift+Z Ctrl+Y", "redo", () => step(Document.prototype.redo)],
  ["Edit", "Escape", "drop the stroke, cancel the work", cancel],
  ["Look", "R", "refined image", () => choose("show", "refined")],
  ["Look", "T", "my edit", () => choose("show", "edit")],
  ["Look", "C", "compare with the original", () => choose("show", shown() === "compare" ? "refined" : "compare")],
  ["Look", "K", "mask", () => $("mask").click()],
  ["Look", "\\", "the original, while the key is held", () => peek(true)],
  ["Look", "+ = -", "zoom in, in, out", (event) => zoom(event.key === "-" ? 1 / 1.5 : 1.5)],
  ["Look", "0", "whole image", fit],
  ["On the image", "Arrows", "move brush, region or divider, with Shift farther", null],
  ["On the image", "Enter", "press and lift the brush", null],
  ["On the image", "Space", "held: drag moves the image", null],
  ["File", "Ctrl+O", "open", () => $("file").click()],
  ["File", "Ctrl+S", "save what is shown", save],
  ["File", "?", "this help", () => $("help-dialog").showModal()],
]);

async function start() {
  try {
    controls.offer(await service.models({ waits: (why) => why && say(why) }));
    refine();
    if (enlarge.file && !enlarge.result) enlarge.run();
  } catch (error) {
    problem(error, start);
  }
}

for (const hint of document.querySelectorAll(".local")) hint.hidden = !service.local;
setMode(document.querySelector("input[name=mode]:checked").value);
say("Open an image to begin.");
start();
