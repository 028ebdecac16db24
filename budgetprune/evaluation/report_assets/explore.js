// What is shown: the cost, the task, the score and the methods that were chosen, in charts and tables alike.
const view = { cost: null, task: "all", score: "", shown: new Set(data.methods.keys()), front: true, bars: true };
const keys = all(".keys button");

function render() {
  explain(null);
  const cost = data.costs.find((c) => c.field === view.cost);
  let references = 0;
  data.groups.forEach((group, i) => {
    const box = byId(`group-${i}`);
    box.hidden = view.task !== "all" && Number(view.task) !== i;
    if (box.hidden) return;
    const drawn = drawChart(box.querySelector(".plot"), group, view);
    references += drawn.references;
    box.querySelector(".drawn h3").textContent = `${drawn.named} over ${cost.name.toLowerCase()}${cost.unit && cost.field === "prefill_flops" ? " FLOPs" : ""}`;
    const notes = view.score && group.metrics.includes(view.score) ? ["Front and intervals are of accuracy only."] : [];
    if (drawn.left) notes.push(`${drawn.left} of its cells lack this and are not drawn.`);
    if (cost.field === "keep" && group.published.length && !drawn.references) notes.push(`Published figures of this task are of another score, ${group.published[0].metric ?? "accuracy"}.`);
    else if (group.published.length && !drawn.references) notes.push("Published figures of this task stand over Tokens only: papers count FLOPs in ways that do not compare.");
    box.querySelector(".drawn figcaption").textContent = notes.join(" ");
  });
  byId("references").hidden = !references;
  byId("results").querySelector(".groups").classList.toggle("many", data.groups.length > 1 && view.task === "all");
  for (const key of keys) {
    const slot = Number(key.dataset.curve);
    key.setAttribute("aria-pressed", String(view.shown.has(slot)));
    key.hidden = view.task !== "all" && !data.groups[view.task].curves.some((c) => c.slot === slot);
  }
  for (const row of all("[data-group]")) {
    const method = row.dataset.slot === undefined || view.shown.has(Number(row.dataset.slot));
    row.toggleAttribute("hidden", !method || (view.task !== "all" && row.dataset.group !== view.task));  // SVG has no .hidden
  }
  const rows = all("#every-cell tbody tr"), seen = rows.filter((row) => !row.hidden).length;
  byId("rows-shown").textContent = seen < rows.length ? `; ${seen} of ${rows.length} are shown, as chosen above` : "";
}

// Hovering or focusing a method in the legend singles it out.
function single(slot) {
  for (const chart of all(".plot .chart")) {
    chart.classList.toggle("single", slot !== null);
    for (const curve of all(".curve", chart)) curve.classList.toggle("on", curve.dataset.curve === slot);
  }
}

for (const key of keys) {
  for (const name of ["pointerenter", "focus"]) key.addEventListener(name, () => single(view.shown.has(Number(key.dataset.curve)) ? key.dataset.curve : null));
  for (const name of ["pointerleave", "blur"]) key.addEventListener(name, () => single(null));
  key.addEventListener("click", () => {
    const slot = Number(key.dataset.curve);
    if (!view.shown.delete(slot)) view.shown.add(slot);
    render();
  });
}

const some = {
  all: () => [...data.methods.keys()],
  none: () => [],
  front: () => data.groups.filter((_, i) => view.task === "all" || Number(view.task) === i).flatMap((g) => g.fronts[view.cost].map(([slot]) => slot)),
};
for (const button of all("[data-some]")) button.addEventListener("click", () => { view.shown = new Set(some[button.dataset.some]()); render(); });

const costs = all("input[name=cost]");
const chosen = costs.find((input) => !input.disabled);
chosen.checked = true;
view.cost = chosen.value;
for (const input of costs) input.addEventListener("change", () => { view.cost = input.value; render(); });

const score = byId("score"), metrics = [...new Set(data.groups.flatMap((g) => g.metrics))];
score.replaceChildren(new Option("accuracy", ""), ...metrics.map((name) => new Option(name.replaceAll("_", " "), name)));
score.closest("label").hidden = !metrics.length;
score.addEventListener("change", () => { view.score = score.value; render(); });
byId("task").addEventListener("change", (event) => { view.task = event.target.value; render(); });
for (const name of ["front", "bars"]) byId(name).addEventListener("change", (event) => { view[name] = event.target.checked; render(); });
for (const control of all("input, select", document.querySelector(".controls"))) control.autocomplete = "off";

render();
let wide = innerWidth;
new ResizeObserver(() => {
  if (innerWidth !== wide) { wide = innerWidth; render(); }
}).observe(document.documentElement);
addEventListener("beforeprint", render);
