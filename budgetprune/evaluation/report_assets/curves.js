// One task's chart, drawn to the width that there is.
// view: { cost, score, shown: Set of slots, front, bars }; score "" is accuracy, else the name of a metric.
function drawChart(holder, group, view) {
  const cost = data.costs.find((c) => c.field === view.cost);
  const xOf = (p) => p.costs[cost.field], yOf = (p) => (view.score ? p.metrics[view.score] : p.accuracy);
  const known = (p) => xOf(p) != null && yOf(p) != null;
  const every = group.curves.map((c) => ({ slot: c.slot, points: c.points.filter(known).sort((a, b) => xOf(a) - xOf(b)) }));
  const curves = every.filter((c) => c.points.length && view.shown.has(c.slot));
  const full = group.full && known(group.full) ? group.full : null;
  const references = cost.field === "keep" ? group.published.filter((p) => (p.metric ?? "") === view.score) : [];
  const left = group.curves.flatMap((c) => c.points).filter((p) => !known(p)).length + (group.full && !full ? 1 : 0);
  const named = view.score ? view.score.replaceAll("_", " ") : "Accuracy";
  const points = curves.flatMap((c) => c.points);
  if (!points.length && !full) {
    const missing = [...group.curves.flatMap((c) => c.points), group.full].some((p) => p && yOf(p) != null) ? cost.name : named;
    holder.replaceChildren(Object.assign(document.createElement("p"), {
      className: "missing", textContent: every.some((c) => c.points.length) ? "No method is chosen." : `${missing}: no cell of this task has it.` }));
    return { named, left: 0, references: 0 };
  }
  const [prefix, size] = prefixOf([...points, ...(full ? [full] : [])].map(xOf), cost);
  const unit = prefix + cost.unit;
  const width = Math.max(280, Math.round(holder.clientWidth)), height = Math.round(Math.min(470, Math.max(290, width * 0.52)));
  const bottom = height - 46, right = width - 16, low = 50;
  const x = scaleOf([...points.map((p) => xOf(p) / size), ...(full ? [xOf(full) / size] : []), ...references.map((r) => r.tokens)],
    low, right, Math.max(4, Math.floor(width / 90)), 0.04);
  const rims = (p) => (view.score ? [yOf(p)] : view.bars ? [p.low, p.high] : [p.accuracy]);
  const heights = [...points, ...(full ? [full] : [])].flatMap(rims).concat(references.map((r) => r.score));
  const y = scaleOf(heights, bottom, 30, 6, 0.04, [0, 1]);
  const px = (p) => x(xOf(p) / size), py = (p) => y(yOf(p));
  const place = (p) => `${px(p).toFixed(1)} ${py(p).toFixed(1)}`;
  const count = (p) => (group.full && group.full.keep >= p.keep ? `${p.keep} of ${group.full.keep}` : `${p.keep}`);
  const words = (label, p) => [label, `${count(p)} image tokens`,
    view.score ? `${named} ${yOf(p).toFixed(4)}` : `accuracy ${p.accuracy.toFixed(4)} (${p.low.toFixed(3)} to ${p.high.toFixed(3)})`,
    ...(cost.field === "keep" ? [] : [`${digits(xOf(p) / size)} ${unit}`]), ...(p.seeds > 1 ? [`mean of ${p.seeds} seeds`] : [])].join("\n");
  const titled = cost.unit ? `${cost.name} (${unit})` : cost.name;
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "group", tabindex: 0,
    "aria-label": `${named} over ${titled}, ${group.task}, ${group.model}: ${curves.length} methods, ${points.length} points; arrow keys step through them` });
  const text = (words, at, up, anchor, kind) => svg("text", { x: at.toFixed(1), y: up.toFixed(1), "text-anchor": anchor, class: kind }, words);
  const axis = svg("g", { class: "axis" });
  for (const mark of y.marks) axis.append(svg("path", { class: "grid", d: `M${low} ${y(mark).toFixed(1)}H${right}` }), text(mark.toFixed(2), low - 8, y(mark) + 4, "end"));
  for (const mark of x.marks) axis.append(svg("path", { class: "tick", d: `M${x(mark).toFixed(1)} ${bottom}v5` }), text(digits(mark), x(mark), bottom + 20, "middle"));
  axis.append(svg("path", { class: "line", d: `M${low} ${bottom}H${right}` }), text(`${titled} \u2192`, right, bottom + 38, "end", "name across"),
    text(`\u2191 ${named}`, low, bottom + 38, "start", "name"));
  chart.append(axis);
  if (full) chart.append(fullLine(full));
  if (view.front && !view.score) chart.append(frontLine());
  for (const curve of [...curves].reverse()) chart.append(curveOf(curve));
  if (full) chart.append(svg("g", { class: "full pt", "data-tip": words("full model", full) }, svg("circle", { cx: px(full), cy: py(full), r: 5 })));
  for (const r of references) {
    const point = svg("g", { class: "pt published", "data-tip": [r.method, ...r.said].join("\n") });
    point.append(svg("path", { class: "mark", d: "M0 -5L5 0L0 5L-5 0z", transform: `translate(${x(r.tokens).toFixed(1)} ${y(r.score).toFixed(1)})` }));
    if (width >= 520 && r.tokens < 0.9 * full?.keep) point.append(text(r.method, x(r.tokens) + 9, y(r.score) + 4, "start"));
    chart.append(point);
  }
  holder.replaceChildren(chart);
  return { named, left, references: references.length };

  function fullLine(p) {
    const line = svg("g", { class: "full" });
    if (view.bars && !view.score) line.append(svg("rect", { x: low, y: y(p.high), width: right - low, height: Math.max(0, y(p.low) - y(p.high)) }));
    line.append(svg("path", { d: `M${low} ${py(p).toFixed(1)}H${right}` }), text(`full model ${yOf(p).toFixed(3)}`, right - 4, py(p) - 9, "end"));
    return line;
  }

  // Steps: between two cells of the front nothing is better than the cheaper one.
  function frontLine() {
    const own = new Map(group.curves.flatMap((c) => c.points.map((p) => [`${c.slot} ${p.keep} ${p.layers}`, p])));
    const cells = group.fronts[cost.field].map(([slot, keep, layers]) => (slot < 0 ? full : own.get(`${slot} ${keep} ${layers}`))).filter(Boolean);
    const d = cells.map((p, i) => (i ? `H${px(p).toFixed(1)}V${py(p).toFixed(1)}` : `M${place(p)}`)).join("");
    return svg("path", { class: "front", d: d + (cells.length ? `H${right}` : "") });
  }

  function curveOf({ slot, points }) {
    const look = data.methods[slot], first = group.best && group.best[0] === slot;
    const g = svg("g", { class: `curve c${slot % 8}${first ? " first" : ""}`, "data-curve": slot });
    if (first && view.bars && !view.score && points.length > 1) {
      const rim = [...points.map((p) => `${px(p).toFixed(1)} ${y(p.high).toFixed(1)}`), ...[...points].reverse().map((p) => `${px(p).toFixed(1)} ${y(p.low).toFixed(1)}`)];
      g.append(svg("path", { class: "band", d: `M${rim.join("L")}z` }));
    }
    g.append(svg("path", { class: "run", d: `M${points.map(place).join("L")}`, "stroke-dasharray": look.dash || null }));
    for (const p of points) {
      const point = svg("g", { class: "pt", "data-tip": words(p.name ?? look.label, p) });
      if (view.bars && !view.score) point.append(svg("path", { class: "whisker", d: `M${px(p).toFixed(1)} ${y(p.low).toFixed(1)}V${y(p.high).toFixed(1)}` }));
      point.append(svg("path", { class: "mark", d: look.mark, transform: `translate(${place(p)})${first ? " scale(1.15)" : ""}` }));
      g.append(point);
    }
    return g;
  }
}
