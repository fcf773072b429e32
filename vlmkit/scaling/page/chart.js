// The picture: error against cost, a curve for each LLM, measured points, the frontier, the budget, the choice.

const MARKERS = [
  (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
  (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  (r) => `M0,${-1.2 * r}L${1.15 * r},${0.9 * r}H${-1.15 * r}z`,
  (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`,
  (r) => `M0,${1.2 * r}L${1.15 * r},${-0.9 * r}H${-1.15 * r}z`,
  (r) => `M0,${-1.3 * r}L${1.24 * r},${-0.4 * r}L${0.76 * r},${1.05 * r}H${-0.76 * r}L${-1.24 * r},${-0.4 * r}z`,
  (r) => `M${-r},${-0.6 * r}L0,${-1.2 * r}L${r},${-0.6 * r}V${0.6 * r}L0,${1.2 * r}L${-r},${0.6 * r}z`,
];

const colourOf = (llm) => `var(--series-${data.llms.indexOf(llm) % MARKERS.length})`;
const markerOf = (llm, r) => MARKERS[data.llms.indexOf(llm) % MARKERS.length](r);

// Names without what all of them begin with: "14b" among the sizes of one series.
const commonStart = data.llms.length < 2 ? 0 : (() => {
  const [first, ...rest] = data.llms.map((llm) => llm.name);
  let end = 0;
  while (end < first.length && rest.every((name) => name[end] === first[end])) end++;
  return first.slice(0, end).search(/-[^-]*$/) + 1;
})();
const shortName = (llm) => llm.name.slice(commonStart);

function shape(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// The measured error of the mix, where all its families were measured.
function measured(parts, llm, tokens) {
  const errors = parts.map(({ family, share }) => {
    const point = family.points.find(([name, count]) => name === llm.name && count === tokens);
    return point && share * point[2];
  });
  return errors.includes(undefined) ? undefined : errors.reduce((sum, error) => sum + error, 0);
}

// What is drawn of one LLM: its curve, and a mark for each number of tokens on offer or measured.
function seriesOf(llm, settings, parts) {
  const counts = new Set([...settings.tokens, ...parts[0].family.points.map(([, tokens]) => tokens)]);
  const ends = [Math.min(...counts), Math.max(...counts)];
  const between = data.curve.filter((V) => V >= ends[0] && V <= ends[1]);
  const curve = between
    .map((tokens) => ({ llm, tokens, cost: costOf(settings.cost, llm, tokens, settings.work) }))
    .filter((point) => point.cost !== undefined)
    .map((point) => ({ ...point, error: predict(parts, llm, point.tokens) }));
  const marks = curve.filter((point) => counts.has(point.tokens)).map((point) => {
    const error = measured(parts, llm, point.tokens);
    return error === undefined ? point : { ...point, error, measured: true };
  });
  return { llm, curve, marks: marks.filter((mark) => mark.measured || settings.tokens.has(mark.tokens)) };
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((one) => one * unit >= rough) * unit;
  const ticks = [];
  const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  for (let index = Math.ceil(low / step); index * step <= high; index++) ticks.push((index * step).toFixed(places));
  return ticks;
}

function logTicks(low, high, count) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const one of [1, 2, 5]) ticks.push(Number(`${one}e${power}`));
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length <= count ? inside : inside.filter((tick) => /^1(e|0*$)/.test(String(tick)) || inside.length < 4);
}

function scales(series, result, width, height) {
  const inner = { left: 46, right: width - 14, top: 30, bottom: height - 46 };
  const points = series.flatMap(({ curve, marks }) => [...curve, ...marks]);
  const costs = points.map((point) => point.cost);
  const errors = points.map((point) => point.error);
  const near = (amount) => amount !== undefined && amount < 4 * Math.max(...costs) && amount > Math.min(...costs) / 4;
  if (near(result.budget)) costs.push(result.budget);
  const [x0, x1] = [Math.log(Math.min(...costs) / 1.2), Math.log(Math.max(...costs) * 1.15)];
  const spread = Math.max(...errors) - Math.min(...errors) || 1;
  const [y0, y1] = [Math.min(...errors) - 0.05 * spread, Math.max(...errors) + 0.09 * spread];
  return {
    ...inner,
    costs: [Math.exp(x0), Math.exp(x1)],
    errors: [y0, y1],
    x: (cost) => inner.left + ((Math.log(cost) - x0) / (x1 - x0)) * (inner.right - inner.left),
    y: (error) => inner.bottom - ((error - y0) / (y1 - y0)) * (inner.bottom - inner.top),
  };
}

function line(points, scale) {
  const at = ({ cost, error }) => `${scale.x(cost).toFixed(1)},${scale.y(error).toFixed(1)}`;
  return points.length ? `M${points.map(at).join("L")}` : "";
}

function drawAxes(scale, unit, about) {
  const group = shape("g", { class: "axes" });
  for (const error of linearTicks(...scale.errors, 6)) {
    const y = scale.y(Number(error));
    group.append(shape("line", { x1: scale.left, x2: scale.right, y1: y, y2: y }),
      shape("text", { x: scale.left - 8, y: y + 4, "text-anchor": "end" }, error));
  }
  const room = Math.floor((scale.right - scale.left) / 74);
  for (const cost of logTicks(...scale.costs, room)) {
    const x = scale.x(cost);
    const label = formatAmount(cost, unit).replace("FLOPs", "");
    group.append(shape("line", { x1: x, x2: x, y1: scale.top, y2: scale.bottom }),
      shape("text", { x, y: scale.bottom + 18, "text-anchor": "middle" }, label));
  }
  const middle = (scale.left + scale.right) / 2;
  group.append(
    shape("text", { x: middle, y: scale.bottom + 38, "text-anchor": "middle", class: "title" }, about),
    shape("text", { x: 0, y: 14, class: "title" }, "error (1 − score)"));
  return group;
}

function drawBudget(scale, result) {
  if (result.budget === undefined) return [];
  const x = Math.max(scale.x(result.budget), scale.left);
  if (x >= scale.right) return [];
  const label = {
    class: "budget-label", "text-anchor": "middle",
    x: Math.min(Math.max(x, 136), scale.right - 20), y: scale.top - 8,
  };
  const [width, height] = [scale.right - x, scale.bottom - scale.top];
  return [
    shape("rect", { class: "beyond", x, y: scale.top, width, height }),
    shape("line", { class: "budget-line", x1: x, x2: x, y1: scale.top, y2: scale.bottom }),
    shape("text", label, "budget"),
  ];
}

// Where the redrawn laws put the curve of the chosen LLM.
function drawBand(scale, series, parts) {
  const ends = series.curve.map((point) => ({ cost: point.cost, drawn: draws(parts, point.llm, point.tokens) }));
  if (!ends.length || !ends[0].drawn) return [];
  const sides = ends.map(({ cost, drawn: values }) => interval(values).map((error) => ({ cost, error })));
  const around = [...sides.map(([low]) => low), ...sides.map(([, high]) => high).reverse()];
  return [shape("path", { class: "band", d: `${line(around, scale)}z`, fill: colourOf(series.llm) })];
}

function drawFrontier(scale, frontier) {
  const corners = frontier.flatMap((point, index) =>
    index ? [{ cost: point.cost, error: frontier[index - 1].error }, point] : [point]);
  return shape("path", { class: "frontier", d: line(corners, scale) });
}

function drawChart(container, settings, result) {
  const width = container.clientWidth;
  const height = Math.round(Math.min(Math.max(width * 0.6, 320), 500));
  const series = data.llms.filter((llm) => settings.llms.has(llm.name))
    .map((llm) => seriesOf(llm, settings, result.parts)).filter(({ curve }) => curve.length);
  container.replaceChildren();
  // Before the first layout there is no width; the picture is drawn again when there is.
  if (!series.length || !width) return;
  const scale = scales(series, result, width, height);
  const about = { FLOPs: "FLOPs of one answer", bytes: "memory", ms: "time of one answer" }[result.unit];
  const chosen = result.within[0];
  const picture = shape("svg", {
    viewBox: `0 0 ${width} ${height}`, width, height,
    role: "img", "aria-labelledby": "chart-title", "aria-describedby": "answer",
  });
  const { left, top, bottom } = scale;
  const area = shape("rect", { x: left, y: top, width: width - left, height: bottom - top });
  const clip = shape("clipPath", { id: "plot-area" }, area);
  const inside = shape("g", { "clip-path": "url(#plot-area)" });
  if (chosen) inside.append(...drawBand(scale, series.find(({ llm }) => llm === chosen.llm), result.parts));
  inside.append(drawFrontier(scale, result.frontier));
  for (const { llm, curve, marks } of series) {
    const known = marks.some((mark) => mark.measured);
    const kind = known ? "curve" : "curve predicted";
    inside.append(shape("path", { class: kind, d: line(curve, scale), stroke: colourOf(llm) }));
    for (const mark of marks)
      inside.append(shape("path", {
        class: mark.measured ? "mark measured" : "mark", d: markerOf(llm, 4.2), stroke: colourOf(llm),
        fill: mark.measured ? colourOf(llm) : "var(--surface)",
        transform: `translate(${scale.x(mark.cost).toFixed(1)},${scale.y(mark.error).toFixed(1)})`,
      }));
  }
  picture.append(shape("defs", {}, clip), drawAxes(scale, result.unit, about), ...drawBudget(scale, result), inside);
  for (const { llm, curve, marks } of series) {
    const highest = Math.max(...[curve[0], ...marks.slice(0, 1)].map((point) => point.error));
    const place = { x: scale.x(curve[0].cost), y: scale.y(highest) - 10, "text-anchor": "middle" };
    picture.append(shape("text", { class: "name", ...place }, shortName(llm)));
  }
  if (chosen) {
    const place = { cx: scale.x(chosen.cost), cy: scale.y(chosen.error) };
    picture.append(shape("circle", { class: "chosen", r: 10, ...place }));
  }
  container.append(picture);
  followPointer(picture, container, series.flatMap(({ marks }) => marks), scale, result.unit);
}

// What the signs mean, each beside a drawing of it.
function buildLegend(container) {
  const circle = { d: MARKERS[0](4), transform: "translate(11,7)", stroke: "currentColor" };
  const entries = [
    [shape("path", { ...circle, fill: "currentColor" }), "measured"],
    [shape("path", { ...circle, fill: "none", "stroke-width": 1.5 }), "predicted"],
    [shape("path", { class: "curve", d: "M1,3Q7,11 21,11", stroke: "currentColor" }),
      "one LLM, more visual tokens to the right (dashed: not measured)"],
    [shape("path", { class: "frontier", d: "M1,3H8V8H15V12H21" }), "least error for the cost"],
    [shape("rect", { class: "band", x: 1, y: 2, width: 20, height: 10, fill: "var(--series-0)" }),
      "95 % interval of the chosen LLM's law"],
    [shape("circle", { class: "chosen", cx: 11, cy: 7, r: 5.5 }), "the choice"],
  ];
  container.append(...entries.map(([drawing, text]) => {
    const entry = document.createElement("span");
    entry.append(shape("svg", { viewBox: "0 0 22 14", "aria-hidden": "true" }, drawing), text);
    return entry;
  }));
}

// A pointer near a mark is told its numbers; the table says them to everyone else.
function followPointer(picture, container, marks, scale, unit) {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  container.append(tip);
  picture.addEventListener("pointerleave", () => { tip.hidden = true; });
  picture.addEventListener("pointermove", ({ clientX, clientY }) => {
    const box = picture.getBoundingClientRect();
    const distance = (mark) =>
      Math.hypot(box.left + scale.x(mark.cost) - clientX, box.top + scale.y(mark.error) - clientY);
    const nearest = marks.reduce((best, mark) => (distance(mark) < distance(best) ? mark : best));
    tip.hidden = distance(nearest) > 28;
    tip.textContent = `${nearest.llm.name}, ${nearest.tokens} visual tokens: error ${nearest.error.toFixed(4)} ` +
      `(${nearest.measured ? "measured" : "predicted"}), ${formatAmount(nearest.cost, unit)}`;
    const x = Math.min(Math.max(scale.x(nearest.cost), 110), container.clientWidth - 110);
    tip.style.transform = `translate(${x}px, ${scale.y(nearest.error)}px) translate(-50%, calc(-100% - 14px))`;
  });
}
