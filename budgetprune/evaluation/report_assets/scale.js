// Round numbers within [low, high], roughly `about` of them.
function ticks(low, high, about) {
  const rough = 10 ** Math.floor(Math.log10(Math.max(high - low, 1e-12) / about));
  const step = rough * [1, 2, 2.5, 5, 10].find((m) => (high - low) / (rough * m) <= about);
  const marks = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++) marks.push(Number((i * step).toPrecision(12)));
  return marks;
}

// Values to pixels: linear, or logarithmic where the values span more than a factor of 12; with a margin on both sides.
function scaleOf(values, start, end, about, margin, bounds) {
  let low = Math.min(...values), high = Math.max(...values);
  const log = !bounds && low > 0 && high / low > 12;
  const to = log ? Math.log10 : Number;
  [low, high] = [to(low), to(high)];
  const pad = (high - low) * margin || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - pad, high + pad];
  if (bounds) [low, high] = [Math.max(bounds[0], low), Math.min(bounds[1], high)];
  const scale = (value) => start + ((to(value) - low) / (high - low)) * (end - start);
  scale.marks = log ? [] : ticks(low, high, about);
  for (let d = Math.floor(low); log && d <= Math.ceil(high); d++) {
    for (const m of [1, 2, 5]) if (Math.log10(m * 10 ** d) >= low && Math.log10(m * 10 ** d) <= high) scale.marks.push(m * 10 ** d);
  }
  return scale;
}

// Four significant digits without an exponent or trailing zeros.
function digits(value) {
  if (!value) return "0";
  const text = value.toFixed(Math.min(20, Math.max(0, 3 - Math.floor(Math.log10(Math.abs(value))))));
  return text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text;
}

// The unit prefix, and its size, that keep the largest value at 1 or above.
function prefixOf(values, cost) {
  const top = Math.max(...values);
  return cost.prefixes.find(([, size]) => top >= size) ?? cost.prefixes.at(-1);
}
