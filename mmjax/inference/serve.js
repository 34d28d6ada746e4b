// The page of `mmjax serve`: sends a picture or a text to this server and shows its answer. Text is never read as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const maxBytes = Number(document.body.dataset.maxBytes);
const maxLabels = Number(document.body.dataset.maxLabels);
const canSearch = "search" in document.body.dataset;
let picture = null; // the chosen File
let asking = null; // of the request under way

function choose(file) {
  picture = file;
  URL.revokeObjectURL($("preview").src);
  $("preview").hidden = true;
  $("preview").src = URL.createObjectURL(file);
  $("file-name").textContent = `${file.name}, ${size(file.size)}`;
  if (canSearch || labels().length) classify();
  else show("Type labels, one a line, then press Classify.");
}

const size = (bytes) => (bytes < 2 ** 20 ? `${Math.ceil(bytes / 2 ** 10)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`);

// A model without texts has no field for labels.
const labels = () => [...new Set(($("labels")?.value ?? "").split("\n").map((line) => line.trim()).filter(Boolean))];

async function classify() {
  if (!picture) return refuse("Choose a picture first.");
  const request = { labels: labels(), template: $("template")?.value ?? "{}" };
  if (!request.labels.length && !canSearch) return refuse("Type at least one label.");
  if (request.labels.length > maxLabels) return refuse(`At most ${maxLabels} labels at a time.`);
  if (picture.size > maxBytes)
    return refuse(`${picture.name} has ${size(picture.size)}; at most ${size(maxBytes)} are taken.`);
  const file = picture;
  try {
    request.picture = await base64(file);
  } catch {
    return refuse(`${file.name} cannot be read.`);
  }
  await ask("/classify", request, file.name);
}

async function ask(path, request, title) {
  asking?.abort();
  const own = (asking = new AbortController());
  show("Working …");
  $("status").parentElement.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request),
      signal: own.signal,
    });
    const answer = await response.json();
    if (own !== asking) return;
    if (response.ok) results(answer, title);
    else refuse(answer.error);
  } catch (error) {
    if (own !== asking || error.name === "AbortError") return;
    refuse("The server does not answer; look at its terminal.");
  }
  $("status").parentElement.setAttribute("aria-busy", "false");
}

function results({ probabilities = [], nearest = [], seconds }, title) {
  $("probabilities").hidden = !probabilities.length;
  $("nearest").hidden = !nearest.length;
  $("probabilities").querySelector("tbody").replaceChildren(...probabilities.map(probabilityRow));
  $("nearest").querySelector("ol").replaceChildren(...nearest.map(nearestItem));
  const best = probabilities[0];
  const found = [
    best && `most likely ${best.label}, ${percent(best.probability)} %`,
    nearest.length && `${nearest.length} nearest pictures`,
  ].filter(Boolean);
  show(found.length ? `${title}: ${found.join("; ")}. ${seconds.toFixed(2)} s` : "");
}

const percent = (probability) => (100 * probability).toFixed(1);

function probabilityRow({ label, probability }) {
  const row = element("tr");
  const bar = element("i");
  bar.style.width = `${Math.min(100 * probability, 100)}%`;
  const frame = element("div");
  frame.append(bar);
  const cell = element("td", "", "bar");
  cell.append(frame);
  const name = element("th", label);
  name.scope = "row";
  row.append(name, element("td", percent(probability)), cell);
  return row;
}

function nearestItem({ id, path, cosine, picture, small, problem }) {
  const item = element("li");
  const frame = element("div", picture ? "" : problem, "frame");
  if (picture) {
    const image = element("img", "", small ? "small" : "");
    image.src = picture;
    image.alt = path;
    frame.append(image);
  }
  const line = element("p");
  line.title = path;
  line.append(element("b", cosine.toFixed(3)), ` ${path}`);
  if (String(id) !== path) line.append(` (id ${id})`);
  item.append(frame, line);
  return item;
}

function element(name, text = "", style = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (style) made.className = style;
  return made;
}

function show(status, error = "") {
  $("status").textContent = status;
  $("error").textContent = error;
  const { top, bottom } = $("results-heading").getBoundingClientRect();
  if ((status || error) && (top < 0 || bottom > innerHeight)) $("results-heading").scrollIntoView();
}

function refuse(reason) {
  results({}, "");
  show("", reason);
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = reject;
    reader.readAsDataURL(file);
  });
}

$("preview").addEventListener("load", () => ($("preview").hidden = false));
$("file").addEventListener("change", () => $("file").files.length && choose($("file").files[0]));
$("picture-form").addEventListener("submit", (event) => {
  event.preventDefault();
  classify();
});
$("text-form")?.addEventListener("submit", (event) => {
  event.preventDefault();
  const query = $("query").value.trim();
  if (query) ask("/search", { query }, query);
  else refuse("Type what the picture shows.");
});
// A picture dropped beside the field must not replace the page.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
document.addEventListener("dragover", () => $("drop").classList.add("over"));
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => event.dataTransfer.files.length && choose(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => event.clipboardData.files.length && choose(event.clipboardData.files[0]));
