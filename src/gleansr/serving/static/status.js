// What the page says: the line at the bottom, problems, work in progress, and the question for the token.

/** The element with that id. */
export const $ = (id) => document.getElementById(id);

const PATIENCE = 300;  // ms before one is told that something takes time

const lines = {};  // the last line of each mode

/** Writes to the status line, which screen readers read out. */
export function say(text) {
  $("status").textContent = lines[document.body.dataset.mode] = text;
}

/** Shows the last line of a mode again. */
export function restore(mode) {
  say(lines[mode] ?? "Open an image to begin.");
}

/** Shows a problem, and offers to try again; without a problem, shows none. */
export function problem(error, retry = null) {
  $("problem").hidden = !error;
  if (!error) return;
  $("problem").querySelector("p").textContent = error.message ?? String(error);
  $("retry").hidden = !retry;
  $("retry").onclick = () => { problem(null); retry(); };
  $("dismiss").onclick = () => problem(null);
}

let timer = 0;

/** Shows that work goes on, if it does for a while; null: it is done. `cancel` is what the button does, if it can be cancelled. */
export function working(text, cancel = null) {
  clearTimeout(timer);
  $("stage").ariaBusy = String(Boolean(text));
  if (!text) {
    $("working").hidden = true;
    return;
  }
  $("working").querySelector("span").textContent = text;
  $("cancel").hidden = !cancel;
  $("cancel").onclick = cancel;
  timer = setTimeout(() => { $("working").hidden = false; }, $("working").hidden ? PATIENCE : 0);
}

/** Tells of work that has to wait; an empty text: it goes on. */
export function waiting(text, usual) {
  $("working").classList.toggle("waits", Boolean(text));
  $("working").querySelector("span").textContent = text || usual;
  if (!text) return;
  $("working").hidden = false;
  say(text);
}

/** Asks what to do with edits that are not saved. Returns "save", "discard", or "" for neither. */
export function askUnsaved() {
  const dialog = $("unsaved-dialog");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** Asks for the token of the server. Returns null if there is none to be had. */
export function askToken(wrong) {
  const dialog = $("token-dialog"), field = $("token");
  $("token-why").textContent = wrong
    ? "That was not it. It is the one that the server was started with."
    : "It is the one that the server was started with. It is kept in this page only, until you close it.";
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close(field.value);
    };
    dialog.addEventListener("close", () => { field.value = ""; resolve(dialog.returnValue || null); }, { once: true });
  });
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]")) dialog.close("");
    else if (event.target.closest("[data-answer]")) dialog.close(event.target.closest("[data-answer]").dataset.answer);
  });
}
