"use strict";
document.documentElement.classList.add("js");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Charts: the nearest point under the pointer, or stepped through by the arrow keys, is explained beside it.
const tip = document.getElementById("tip");
let at = null;

function explain(point) {
  if (at) at.classList.remove("at");
  at = point;
  tip.hidden = !point;
  if (!point) return;
  point.classList.add("at");
  const [first, ...rest] = point.dataset.tip.split("\n");
  const title = document.createElement("b");
  title.textContent = first;
  tip.replaceChildren(title, ...rest.flatMap((line, i) => (i ? [document.createElement("br"), line] : [line])));
  const box = middle(point);
  const left = Math.min(Math.max(8, box.x - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = box.y - tip.offsetHeight - 14;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : box.y + 16}px`;
}

function middle(point) {
  const box = (point.querySelector(".mark") || point.querySelector("circle")).getBoundingClientRect();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}

for (const chart of all(".chart")) {
  const points = () => all(".pt", chart).filter((p) => !p.closest(".single") || p.closest(".on, .full"));
  const seek = (event) => {
    let best = null, least = 26;
    for (const point of points()) {
      const { x, y } = middle(point);
      const distance = Math.hypot(x - event.clientX, y - event.clientY);
      if (distance < least) [best, least] = [point, distance];
    }
    if (best !== at) explain(best);
  };
  chart.addEventListener("pointermove", seek);
  chart.addEventListener("pointerdown", seek);
  chart.addEventListener("pointerleave", () => explain(null));
  chart.addEventListener("blur", () => explain(null));
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") explain(null);
    if (!step) return;
    event.preventDefault();
    const list = points();
    const now = list.indexOf(at);
    explain(list[now < 0 ? (step > 0 ? 0 : list.length - 1) : (now + step + list.length) % list.length]);
  });
}
addEventListener("scroll", () => at && explain(null), { passive: true });

// Legend: hovering or focusing a method singles it out, pressing keeps it so.
for (const group of all(".group")) {
  const buttons = all(".keys button", group);
  const show = (slot) => {
    for (const chart of all(".chart", group)) {
      chart.classList.toggle("single", slot !== null);
      for (const curve of all(".curve", chart)) curve.classList.toggle("on", curve.dataset.curve === slot);
    }
  };
  const pinned = () => buttons.find((b) => b.getAttribute("aria-pressed") === "true")?.dataset.curve ?? null;
  for (const button of buttons) {
    for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => show(button.dataset.curve));
    for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => show(pinned()));
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of buttons) other.setAttribute("aria-pressed", String(on && other === button));
      show(pinned());
    });
  }
}

// Pictures: method and budget choose the mask, the prediction and the verdict of every figure.
const [wanted, scenes] = JSON.parse(document.getElementById("data").textContent || "[]");
if (scenes) {
  const method = document.getElementById("method"), budget = document.getElementById("budget");
  const shots = scenes.flat();
  const fill = (select, values, chosen) => {
    select.replaceChildren(...values.map((value) => new Option(value, value, value === chosen, value === chosen)));
  };
  const budgets = () => [...new Set(shots.filter((s) => s.method === method.value).map((s) => s.keep))].sort((a, b) => a - b);
  const nearest = (list, value) => list.reduce((a, b) => (Math.abs(b - value) < Math.abs(a - value) ? b : a));
  const draw = () => {
    let right = 0, shown = 0;
    scenes.forEach((scene, i) => {
      const card = document.querySelector(`[data-scene="${i}"]`);
      const shot = scene.find((s) => s.method === method.value && s.keep === Number(budget.value));
      card.hidden = !shot;
      if (!shot) return;
      shown += 1;
      right += shot.right;
      card.querySelector(".dim").setAttribute("d", shot.dim);
      card.querySelector("img").alt = shot.alt;
      card.querySelector(".prediction").textContent = shot.says || "nothing";
      card.querySelector(".verdict").textContent = shot.right ? "✓ right" : "✗ wrong";
      card.querySelector(".said").className = `said ${shot.right ? "right" : "wrong"}`;
    });
    document.getElementById("tally").textContent = `${right} of these ${shown} right`;
  };
  fill(method, [...new Set(shots.map((s) => s.method))], wanted[0]);
  fill(budget, budgets(), wanted[1]);
  method.addEventListener("change", () => {
    const list = budgets();
    fill(budget, list, nearest(list, Number(budget.value)));
    draw();
  });
  budget.addEventListener("change", draw);
  document.getElementById("dim").addEventListener("change", (event) => {
    document.querySelector(".cards").classList.toggle("undimmed", !event.target.checked);
  });
  document.querySelector(".toolbar").addEventListener("submit", (event) => event.preventDefault());
  draw();
}

// Table: a column head sorts; unmeasured cells stay last either way.
for (const table of all("table")) {
  const heads = all("thead th", table), body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.v === undefined ? cell.textContent.trim().toLowerCase() : cell.dataset.v;
    };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? (x < y ? -1 : x > y ? 1 : 0) : x - y;
      return down ? -order : order;
    });
    body.append(...rows);
  }));
}
