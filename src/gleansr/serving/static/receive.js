// The ways in which pictures come: the file chooser, dropping, pasting, the sample.
import { open as read } from "./files.js";
import { shrink } from "./pixels.js";
import { png } from "./png.js";
import { $, problem } from "./status.js";

const HEAD = { left: 70, top: 6, right: 358, bottom: 294 };  // of the cat in the sample

const pictureIn = (data) => [...data?.files ?? []].find((file) => file.type.startsWith("image/")) ?? data?.files?.[0];

/** Calls `open` with each file that the user gives. `small` tells whether a small sample is wanted. */
export function receive(open, small) {
  $("file").addEventListener("change", () => {
    open($("file").files[0]);
    $("file").value = "";  // so that the same file can be chosen again
  });
  for (const id of ["open", "choose"]) $(id).addEventListener("click", () => $("file").click());
  $("sample").addEventListener("click", () => sample(open, small));
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      $("drop").hidden = false;
    });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    open(pictureIn(event.dataTransfer));
  });
  document.addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    open(file);
  });
}

async function sample(open, small) {
  const response = await fetch("static/chelsea.jpg").catch(() => null);
  if (!response?.ok) return problem(new Error("The sample could not be loaded. Is the server still running?"), () => sample(open, small));
  const cat = await response.blob();
  if (!small()) return open(new File([cat], "chelsea.jpg", { type: cat.type }));
  open(new File([await png(shrink(await read(cat), HEAD, 9))], "chelsea-32.png", { type: "image/png" }));
}
