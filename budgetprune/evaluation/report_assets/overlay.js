// Pictures: one image under two methods, at a number of tokens that slides; below, all images under the left one.
const pictures = data.pictures;
if (pictures) {
  const { methods, scenes, wanted } = pictures;
  const sides = all(".side").map((root) => ({ root, select: root.querySelector("select"), image: root.querySelector("img") }));
  const slider = byId("budget"), cards = scenes.map((_, i) => document.querySelector(`[data-scene="${i}"]`));
  const taskOf = byId("scene-task"), tasks = [...new Set(scenes.map((s) => s.task))];
  const inTask = () => scenes.filter((s) => s.task === taskOf.value);
  let now = 0, counts = [];

  for (const scene of scenes) for (const shot of scene.shots) shot.kept = unpack(shot.kept, shot.grid[0] * shot.grid[1]);

  // Base64 of one bit a patch, the first the lowest of its byte, as a list of booleans.
  function unpack(text, cells) {
    const bytes = atob(text);
    return Array.from({ length: cells }, (_, i) => ((bytes.charCodeAt(i >> 3) >> (i & 7)) & 1) === 1);
  }

  // Path over the patches that `covered` names, runs within a row joined.
  function cover([rows, columns], covered) {
    let d = "";
    for (let row = 0; row < rows; row++) {
      for (let start = 0, end; start < columns; start = end + 1) {
        for (end = start; end < columns && covered(row * columns + end); end++);
        if (end > start) d += `M${start} ${row}h${end - start}v1h${start - end}z`;
      }
    }
    return d;
  }

  const counted = (kept) => kept.filter(Boolean).length;
  const keepsOf = (method) => [...new Set(inTask().flatMap((s) => s.shots.filter((shot) => shot.method === method).map((shot) => shot.keep)))];

  // The shot of a method at K, or at the nearest K that was run.
  function nearest(scene, method, keep) {
    const own = scene.shots.filter((shot) => shot.method === method);
    return own.length ? own.reduce((a, b) => (Math.abs(b.keep - keep) < Math.abs(a.keep - keep) ? b : a)) : null;
  }

  const chosenOf = (side) => Number(side.select.value);
  const budget = () => counts[Number(slider.value)];

  // The slider's stops: every K that one of the two methods was run at.
  function stops(keep) {
    counts = [...new Set(sides.flatMap((side) => keepsOf(chosenOf(side))))].sort((a, b) => a - b);
    slider.max = counts.length - 1;
    slider.disabled = counts.length < 2;
    slider.value = counts.indexOf(counts.reduce((a, b) => (Math.abs(b - keep) < Math.abs(a - keep) ? b : a)));
  }

  function show() {
    const keep = budget(), scene = scenes[now];
    const shots = sides.map((side) => nearest(scene, chosenOf(side), keep));
    byId("asked").textContent = scene.question;
    byId("expected").textContent = `Answer: ${scene.shots[0].answer}`;
    slider.setAttribute("aria-valuetext", `${keep} image tokens`);
    byId("budget-says").textContent = `${keep}`;
    sides.forEach((side, i) => drawSide(side, shots[i], shots[1 - i], keep));
    overlapOf(shots);
    gallery(keep);
  }

  function drawSide({ root, image }, shot, other, keep) {
    const [dim, only] = [root.querySelector(".dim"), root.querySelector(".only")];
    const said = root.querySelector(".said"), means = root.querySelector(".means");
    const source = cards[now].querySelector("img");
    if (image.src !== source.src) image.src = source.src;
    image.className = source.className;
    root.querySelector(".verdict").textContent = shot ? (shot.right ? "✓ right" : "✗ wrong") : "";
    said.className = `said ${shot ? (shot.right ? "right" : "wrong") : ""}`;
    if (!shot) {
      dim.setAttribute("d", "");
      only.setAttribute("d", "");
      root.querySelector(".words").textContent = "This method was not run on this image.";
      means.textContent = image.alt = "";
      return;
    }
    const { name, note } = methods[shot.method], [rows, columns] = shot.grid, kept = counted(shot.kept);
    root.querySelector("svg").setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    root.querySelector(".frame").style.aspectRatio = `${columns}/${rows}`;
    dim.setAttribute("d", cover(shot.grid, (i) => !shot.kept[i]));
    only.setAttribute("d", other && String(other.grid) === String(shot.grid) ? cover(shot.grid, (i) => shot.kept[i] && !other.kept[i]) : "");
    image.alt = `Test image, ${kept} of ${rows * columns} patches kept by ${name}`;
    root.querySelector(".words").textContent = `says ${shot.says || "nothing"}`;
    const run = shot.keep === keep ? "" : ` Not run at ${keep}; shown is K = ${shot.keep}.`;
    means.textContent = `${kept} of ${rows * columns} patches kept.${run} ${note}`;
  }

  function overlapOf([left, right]) {
    const words = byId("overlap");
    if (!left || !right || left === right || String(left.grid) !== String(right.grid)) { words.textContent = ""; return; }
    const both = left.kept.filter((kept, i) => kept && right.kept[i]).length;
    words.textContent = `Patches kept by both: ${both}; by the left only: ${counted(left.kept) - both}; by the right only: ${counted(right.kept) - both}.`;
  }

  function gallery(keep) {
    let right = 0, shown = 0;
    scenes.forEach((scene, i) => {
      const shot = scene.task === taskOf.value ? nearest(scene, chosenOf(sides[0]), keep) : null, card = cards[i];
      card.hidden = !shot;
      card.classList.toggle("chosen", i === now);
      card.querySelector(".pick").setAttribute("aria-pressed", String(i === now));
      if (!shot) return;
      shown += 1;
      right += shot.right;
      card.querySelector(".dim").setAttribute("d", cover(shot.grid, (j) => !shot.kept[j]));
      card.querySelector("img").alt = `Test image, ${counted(shot.kept)} of ${shot.kept.length} patches kept by ${methods[shot.method].name}`;
      card.querySelector(".prediction").textContent = shot.says || "nothing";
      card.querySelector(".verdict").textContent = shot.right ? "✓ right" : "✗ wrong";
      card.querySelector(".said").className = `said ${shot.right ? "right" : "wrong"}`;
    });
    byId("tally").textContent = `${right} of these ${shown} right`;
  }

  // Which methods the images of a task have; the two sides start with the headline's and another.
  function begin(keep) {
    const there = [...new Set(inTask().flatMap((s) => s.shots.map((shot) => shot.method)))];
    const wants = [there.includes(wanted[0]) ? wanted[0] : there[0]];
    wants.push(there.find((m) => m !== wants[0] && methods[m].name !== "none") ?? wants[0]);
    sides.forEach((side, i) => {
      side.select.replaceChildren(...there.map((m) => new Option(methods[m].name, m, m === wants[i], m === wants[i])));
    });
    now = scenes.indexOf(inTask()[0]);
    stops(keep);
    show();
  }

  cards.forEach((card, i) => {
    const pick = Object.assign(document.createElement("button"), { type: "button", className: "pick" });
    pick.setAttribute("aria-label", `Look at this image: ${scenes[i].question}`);
    pick.addEventListener("click", () => { now = i; show(); });
    card.querySelector(".frame").append(pick);
  });
  taskOf.replaceChildren(...tasks.map((task) => new Option(task, task)));
  taskOf.closest("label").hidden = tasks.length < 2;
  taskOf.addEventListener("change", () => begin(budget()));
  slider.addEventListener("input", show);
  for (const side of sides) side.select.addEventListener("change", () => { stops(budget()); show(); });
  byId("dim").addEventListener("change", (event) => byId("pictures").classList.toggle("undimmed", !event.target.checked));
  byId("differ").addEventListener("change", (event) => byId("compare").classList.toggle("differing", event.target.checked));
  byId("compare").hidden = false;
  begin(wanted[1]);
}
