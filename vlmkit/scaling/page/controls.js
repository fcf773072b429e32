// The settings: sliders and boxes that show them, and what moving one does.

const STOPS = {
  "text-tokens": [0, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 1500, 2000],
  "new-tokens": [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
};
const UNIT_NAMES = { FLOPs: "FLOPs", bytes: "Memory", ms: "Time" };
const EXAMPLES = { FLOPs: "5TFLOPs", bytes: "24GB", ms: "50ms" };
const COST_NAMES = { llm: "LLM FLOPs", full: "All FLOPs", memory: "Memory", latency: "Time" };
const FIRST_BUDGET = 0.6; // of the way from the cheapest choice to the dearest, in their logarithm

function initialSettings() {
  const { initial } = data;
  const { textTokens, newTokens, cachedText, batchSize } = initial;
  const shown = costNamed(initial.cost).unit;
  const total = Object.values(initial.mix).reduce((sum, weight) => sum + weight, 0);
  return {
    cost: initial.cost,
    // The budget of the cost on show, remembered for each unit, and what limits the costs of other units beside it.
    budgets: { ...initial.budgets },
    limits: Object.fromEntries(Object.entries(initial.budgets).filter(([unit]) => unit !== shown)),
    mix: Object.fromEntries(Object.entries(initial.mix).map(([name, weight]) => [name, (100 * weight) / total])),
    work: { textTokens, newTokens, cachedText, batchSize },
    llms: new Set(initial.llms),
    tokens: new Set(initial.tokens),
  };
}

// The cheapest and the dearest cost of the choices, to which the budget's slider runs.
function costRange() {
  const { byCost } = answer({ ...settings, budgets: {} });
  return byCost.length ? [byCost[0].cost, byCost[byCost.length - 1].cost] : undefined;
}
const roundUp = (value) => {
  const unit = 10 ** (Math.floor(Math.log10(value)) - 2);
  return Number((Math.ceil(value / unit - 1e-9) * unit).toPrecision(3));
};
const budgetAt = ([low, high], part) => roundUp(low * (high / low) ** part);

function showSettings(unit, range) {
  const budget = settings.budgets[unit];
  const slider = find("budget-slider");
  slider.disabled = !range;
  if (range && budget !== undefined) {
    const part = range[1] > range[0] ? Math.log(budget / range[0]) / Math.log(range[1] / range[0]) : 1;
    slider.value = Math.round(slider.max * Math.min(Math.max(part, 0), 1));
    slider.setAttribute("aria-valuetext", formatAmount(budget, unit));
    fill(find("budget"), formatAmount(budget, unit));
    find("budget").removeAttribute("aria-invalid");
    const [least, most] = range.map((cost) => formatAmount(cost, unit));
    find("budget-hint").textContent = `Choices cost ${least} to ${most}.`;
  }
  for (const box of find("other-budgets").children) {
    const input = box.querySelector("input");
    box.hidden = input.name === unit;
    fill(input, settings.limits[input.name] === undefined ? "" : formatAmount(settings.limits[input.name], input.name));
    if (document.activeElement !== input) input.removeAttribute("aria-invalid");
  }
  find("cost-about").textContent = costNamed(settings.cost).about;
  const { work } = settings;
  for (const [id, value] of [["text-tokens", work.textTokens], ["new-tokens", work.newTokens]]) {
    const away = STOPS[id].map((stop) => Math.abs(stop - value));
    fill(find(id), String(value));
    find(`${id}-slider`).value = away.indexOf(Math.min(...away));
    find(`${id}-slider`).setAttribute("aria-valuetext", `${value} tokens`);
  }
  fill(find("batch-size"), String(work.batchSize));
  find("cached-text").checked = work.cachedText;
  showWorkloadLimits();
  for (const input of find("mix").querySelectorAll("input")) {
    input.value = settings.mix[input.name];
    const share = `${Math.round(settings.mix[input.name])} %`;
    input.setAttribute("aria-valuetext", share);
    input.nextElementSibling.textContent = share;
  }
  for (const input of find("cost").querySelectorAll("input")) input.checked = input.value === settings.cost;
  for (const input of find("llms").querySelectorAll("input")) {
    input.checked = settings.llms.has(input.value);
    input.parentNode.classList.toggle("unknown", !costNamed(settings.cost).llms[input.value]);
  }
  for (const input of find("tokens").querySelectorAll("input"))
    input.checked = settings.tokens.has(Number(input.value));
}

// A box being typed in keeps what was typed.
function fill(input, text) {
  if (document.activeElement !== input) input.value = text;
}

// What of the workload was measured with the times, where these are used: nothing else is known of them.
function timedWorkload() {
  const used = settings.cost === "latency" || settings.limits.ms !== undefined;
  return used ? data.costs.find((model) => model.name === "latency")?.fixed ?? {} : {};
}
const WORKLOAD_BOXES = {
  textTokens: ["text-tokens", "text-tokens-slider"], cachedText: ["cached-text"], batchSize: ["batch-size"],
};
function showWorkloadLimits() {
  const fixed = timedWorkload();
  for (const [key, ids] of Object.entries(WORKLOAD_BOXES)) for (const id of ids) find(id).disabled = key in fixed;
  find("workload-hint").textContent = "batchSize" in fixed
    ? `The times were measured with this ${"textTokens" in fixed ? "text and batch" : "batch"}; generated tokens are free.`
    : { llm: "Only text tokens change this cost.", full: "FLOPs of one answer, however many at once." }[settings.cost];
}

// A share that moves takes from the others, or leaves them, in proportion; together they stay 100.
function setShare(name, share) {
  const others = Object.keys(settings.mix).filter((other) => other !== name);
  const rest = others.reduce((sum, other) => sum + settings.mix[other], 0);
  for (const other of others)
    settings.mix[other] = rest > 0 ? (settings.mix[other] / rest) * (100 - share) : (100 - share) / others.length;
  settings.mix[name] = share;
}

function build() {
  find("version").textContent = data.version;
  buildLegend(find("legend"));
  const choice = (type, name, value, text) =>
    element("label", {}, element("input", { type, name, value }), element("span", {}, text));
  find("cost").append(...data.costs.map(({ name }) => choice("radio", "cost", name, COST_NAMES[name])));
  for (const unit of new Set(data.costs.map((model) => model.unit))) {
    const box = element("input", { type: "text", size: 10, name: unit, placeholder: "no limit", spellcheck: false });
    find("other-budgets").append(element("label", { className: "pair narrow" }, `${UNIT_NAMES[unit]} at most`, box));
  }
  for (const [id, stops] of Object.entries(STOPS)) find(`${id}-slider`).max = stops.length - 1;
  for (const { name } of data.families) {
    const slider = element("input", { type: "range", min: 0, max: 100, step: 1, name });
    find("mix").append(element("label", { className: "share" }, element("span", {}, name), slider, element("output")));
  }
  find("mix-field").hidden = data.families.length < 2;
  find("llms").append(...data.llms.map(({ name }) => choice("checkbox", "llm", name, name)));
  find("tokens").append(...data.tokens.map((tokens) => choice("checkbox", "token-count", tokens, tokens)));
}

function changeAmount(amounts, unit, text) {
  const value = parseAmount(text, unit);
  if (value !== undefined) amounts[unit] = value;
  return value !== undefined;
}

function changeLimit(unit, text) {
  if (text.trim()) return changeAmount(settings.limits, unit, text);
  delete settings.limits[unit];
  return true;
}

function changeCount(name, text, least) {
  const value = Number(text);
  if (text === "" || !Number.isInteger(value) || value < least) return false;
  settings.work[name] = value;
  return true;
}

function toggle(chosen, value, on) {
  if (on) chosen.add(value);
  else chosen.delete(value);
  return true;
}

// Takes an input's value into the settings; false where it cannot be one.
function change(input) {
  const { id, value } = input;
  const unit = costNamed(settings.cost).unit;
  if (id === "budget-slider") {
    settings.budgets[unit] = budgetAt(costRange(), value / input.max);
    return true;
  }
  if (id === "budget") return changeAmount(settings.budgets, unit, value);
  if (id === "text-tokens") return changeCount("textTokens", value, 0);
  if (id === "new-tokens") return changeCount("newTokens", value, 1);
  if (id === "batch-size") return changeCount("batchSize", value, 1);
  if (id === "text-tokens-slider") return changeCount("textTokens", String(STOPS["text-tokens"][value]), 0);
  if (id === "new-tokens-slider") return changeCount("newTokens", String(STOPS["new-tokens"][value]), 1);
  if (id === "cached-text") settings.work.cachedText = input.checked;
  const group = input.closest("#cost, #other-budgets, #mix, #llms, #tokens")?.id;
  if (group === "cost") settings.cost = value;
  if (group === "other-budgets") return changeLimit(input.name, value);
  if (group === "mix") setShare(input.name, Number(value));
  if (group === "llms") return toggle(settings.llms, value, input.checked);
  if (group === "tokens") return toggle(settings.tokens, Number(value), input.checked);
  return true;
}

function start() {
  settings = initialSettings();
  build();
  render();
  const form = find("settings");
  form.addEventListener("input", ({ target }) => {
    const taken = change(target);
    if (taken) target.removeAttribute("aria-invalid");
    else target.setAttribute("aria-invalid", "true");
    if (taken) renderSoon();
    else if (target.id === "budget")
      find("budget-hint").textContent = `Write an amount like ${EXAMPLES[costNamed(settings.cost).unit]}.`;
  });
  form.addEventListener("focusout", renderSoon);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    settings = initialSettings();
    render();
  });
  find("more").addEventListener("click", () => { listsAll = !listsAll; showChoices(); });
  new ResizeObserver(() => drawChart(find("chart"), settings, result)).observe(find("chart"));
}

start();
