"use strict";
document.documentElement.classList.add("js");
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// An SVG element with attributes and children; null and undefined attributes are left out.
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

for (const form of all("form")) form.addEventListener("submit", (event) => event.preventDefault());

// Charts: the nearest point under the pointer, or stepped through by the arrow keys, is explained beside it.
const tip = byId("tip");
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
  const left = Math.min(Math.max(8, box.x - tip.offsetWidth / 2), document.documentElement.clientWidth - tip.offsetWidth - 8);
  const above = box.y - tip.offsetHeight - 14;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : box.y + 16}px`;
}

function middle(point) {
  const box = (point.querySelector(".mark") || point.querySelector("circle")).getBoundingClientRect();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}

// holder: an element that charts come and go in.
function listen(holder) {
  const points = () => all(".pt", holder).filter((p) => !p.closest("[hidden]") && (!p.closest(".single") || p.closest(".on, .full")));
  const seek = (event) => {
    let best = null, least = 26;
    for (const point of points()) {
      const { x, y } = middle(point);
      const distance = Math.hypot(x - event.clientX, y - event.clientY);
      if (distance < least) [best, least] = [point, distance];
    }
    if (best !== at) explain(best);
  };
  holder.addEventListener("pointermove", seek);
  holder.addEventListener("pointerdown", seek);
  holder.addEventListener("pointerleave", () => explain(null));
  holder.addEventListener("focusout", () => explain(null));
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") explain(null);
    if (!step) return;
    event.preventDefault();
    const list = points();
    const now = list.indexOf(at);
    explain(list[now < 0 ? (step > 0 ? 0 : list.length - 1) : (now + step + list.length) % list.length] ?? null);
  });
}
all(".plot, .panels figure, .even-charts figure").forEach(listen);
addEventListener("scroll", () => at && explain(null), { passive: true });
