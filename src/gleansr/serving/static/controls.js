// The panel: brush, what is shown, model and settings.
import { $ } from "./status.js";

const LEAST = 4;  // pixels across the smallest brush
const MOST = 2000;  // and the largest

const PERCENTS = ["hardness", "pressure", "blend", "split", "pair-split", "quality"];
const HELP = {
  heal: "Brush over a spot. It is filled from near by.",
  move: "Draw around a part, then drag it. Where it was is filled.",
  region: "Drag the corners, or draw a new region.",
};

const checked = (name) => document.querySelector(`input[name=${name}]:checked`);

/** The tool that is chosen; "pick" while a colour is being taken from the image. */
export const tool = () => $("pick").ariaPressed === "true" ? "pick" : checked("tool").value;

/** Whether the page's second mode is shown. */
export const upscaling = () => document.body.dataset.mode === "upscale";

/** "refined", "edit" or "compare". */
export const shown = () => checked("show").value;

/** Chooses one of the options of that name as a user would. */
export function choose(name, value) {
  const option = document.querySelector(`input[name=${name}][value=${value}]`);
  option.checked = true;
  option.dispatchEvent(new Event("change", { bubbles: true }));
}

/** Moves a slider by so many of its steps, as a user would. */
export function nudge(id, by) {
  $(id).value = Number($(id).value) + by;
  $(id).dispatchEvent(new Event("input", { bubbles: true }));
}

/** Brush and settings, read from the panel. */
export class Controls {
  constructor() {
    this.extent = 512;  // shorter side of the image
    this.models = [];
    this.own = null;  // the scale of the model that was described last
    this.suggested = null;  // the name of the model that suits the image, once it is recognised
    $("panel").addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["size", ...PERCENTS]) $(id).addEventListener("input", () => this.write());
    $("pick").addEventListener("click", () => this.pick($("pick").ariaPressed !== "true"));
    for (const input of document.querySelectorAll("input[name=tool]")) input.addEventListener("change", () => { this.pick(false); this.write(); });
    for (const input of document.querySelectorAll("input[name=show]")) input.addEventListener("change", () => this.write());
    for (const id of ["model", "enlarger"]) $(id).addEventListener("change", () => this.describe());
    this.write();
  }

  /** Fits the brush to an image. */
  fit({ width, height }) {
    this.extent = Math.min(width, height);
    this.write();
  }

  /** @returns {import("./brush.js").Brush} */
  brush() {
    const colour = $("colour").value.match(/\w\w/g).map((part) => parseInt(part, 16));
    return { radius: this.diameter() / 2, hardness: $("hardness").value / 100, strength: $("pressure").value / 100, colour };
  }

  diameter() {
    const most = Math.max(Math.min(this.extent, MOST), 2 * LEAST);
    return LEAST * (most / LEAST) ** ($("size").value / 100);
  }

  /** Starts or ends taking a colour from the image. */
  pick(on) {
    $("pick").ariaPressed = String(on);
  }

  picked(colour) {
    $("colour").value = `#${colour.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
    this.pick(false);
  }

  /** Fills the choosers with the models that are served; `automatic`: the service can choose for enlarging. */
  offer({ models, automatic }) {
    this.models = models;
    this.offersAutomatic = automatic;
    const options = () => models.map((model) => new Option(`${model.name} · ${model.category}, ${model.scale}×`, model.name, model.default));
    for (const id of ["model", "enlarger"]) {
      $(id).replaceChildren(...automatic ? [new Option("automatic", "auto", true)] : [], ...options());
      if (automatic) $(id).value = "auto";
    }
    this.describe();
  }

  /** Whether the model that retouches is chosen by what the image shows. */
  get automatic() {
    return $("model").value === "auto";
  }

  /** The model that retouches; while it is not chosen yet, the default. */
  model() {
    const named = (name) => this.models.find((model) => model.name === name);
    return named(this.automatic ? this.suggested : $("model").value) ?? this.models.find((model) => model.default) ?? this.models[0] ?? null;
  }

  describe() {
    const model = this.model(), shown = upscaling() ? this.models.find(({ name }) => name === $("enlarger").value) : model;
    if (!model) return;
    $("fitting-row").hidden = !shown;
    if (!shown) $("fitting").value = "auto";
    $("about").hidden = !shown;
    const facts = shown ? {
      Takes: `${shown.input_size}×${shown.input_size} pixels`, Makes: `${shown.output_size}×${shown.output_size} pixels`,
      Licence: shown.licence, Credit: shown.credit,
    } : {};
    $("facts").replaceChildren(...Object.entries(facts).filter(([, text]) => text).flatMap(([term, text]) => [
      Object.assign(document.createElement("dt"), { textContent: term }), Object.assign(document.createElement("dd"), { textContent: text }),
    ]));
    const before = Number($("factor").value), chosen = before && before !== this.own ? before : model.scale, factors = [];
    for (let factor = 2; factor <= model.output_size / 4; factor *= 2) factors.push(factor);
    const named = (factor) => factor === model.scale ? `${factor}× (the model’s own)` : `${factor}×`;
    $("factor").replaceChildren(...factors.map((factor) => new Option(named(factor), factor)));
    $("factor").value = factors.includes(chosen) ? chosen : model.scale;
    this.own = model.scale;
  }

  /** @returns {import("./refine.js").Settings|null} null as long as no model is known */
  settings() {
    const model = this.model();
    if (!model) return null;
    const factor = Number($("factor").value), feather = $("feather").value === "" ? null : Number($("feather").value);
    return { model, strength: $("blend").value / 100, factor: factor === model.scale ? null : factor, feather };
  }

  /** Writes what the sliders stand for, and shows what the tool needs. */
  write() {
    const percent = (id) => { $(`${id}-said`).textContent = `${Math.round($(id).value)} %`; };
    $("size-said").textContent = `${Math.round(this.diameter())} px`;
    $("size").ariaValueText = $("size-said").textContent;
    for (const id of PERCENTS) percent(id);
    $("tool-help").textContent = HELP[tool()] ?? "";
    $("colour-row").hidden = tool() !== "paint" && tool() !== "pick";
    $("split-row").hidden = shown() !== "compare";
    $("brushes").disabled = ["region", "move"].includes(checked("tool").value);
  }
}
