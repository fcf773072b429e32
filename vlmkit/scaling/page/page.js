// What the page says about the answer to its settings.

const find = (id) => document.getElementById(id);
const SHORT_LIST = 8;

let settings;
let result;
let listsAll = false;

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  Object.assign(node, attributes);
  node.append(...children.filter((child) => child !== undefined));
  return node;
}
const number = (value, places = 3) => element("data", { value: String(value) }, value.toFixed(places));
const amount = (value, unit) => element("data", { value: String(value) }, formatAmount(value, unit));
const ends = (interval) => interval.map((end) => end.toFixed(3)).join("–");
const percent = (share) => (share > 0 && share < 0.01 ? "under 1\u00a0%" : `${Math.round(100 * share)}\u00a0%`);
const costNamed = (name) => data.costs.find((model) => model.name === name);
const choiceName = (choice) => `${choice.llm.name} with ${choice.tokens} visual token${choice.tokens === 1 ? "" : "s"}`;

// Drawn once a frame, however many settings moved.
let awaited;
function renderSoon() {
  awaited ??= requestAnimationFrame(() => { awaited = undefined; render(); });
}

function render() {
  Object.assign(settings.work, timedWorkload());
  const unit = costNamed(settings.cost).unit;
  const range = costRange();
  if (settings.budgets[unit] === undefined && range) settings.budgets[unit] = budgetAt(range, FIRST_BUDGET);
  result = answer(settings);
  addUncertainty(result);
  showSettings(unit, range);
  showAnswer();
  drawChart(find("chart"), settings, result);
  showChoices();
  showFamilies();
  showNotes();
  find("command").textContent = commandLine();
}

function showAnswer() {
  const { within, unit, budget, byCost } = result;
  const [best, next] = within;
  find("answer-budget").value = String(budget ?? "");
  find("answer-budget").textContent = budget === undefined ? "the budget" : formatAmount(budget, unit);
  if (!best) {
    const [cheapest] = byCost;
    find("answer").textContent = cheapest
      ? `Nothing fits: the cheapest, ${choiceName(cheapest)}, costs ${formatAmount(cheapest.cost, unit)}.`
      : "No choice is left whose cost is known: pick more LLMs or token counts, or relax another limit.";
    find("answer-facts").replaceChildren();
    find("answer-next").textContent = "";
  } else {
    find("answer").replaceChildren(
      element("data", { id: "best-llm", value: best.llm.name }, best.llm.name), " with ",
      element("data", { id: "best-tokens", value: String(best.tokens) }, String(best.tokens)),
      ` visual token${best.tokens === 1 ? "" : "s"}`);
    const facts = [
      ["predicted error", number(best.error), best.interval && `95\u00a0%: ${ends(best.interval)}`],
      ["cost", amount(best.cost, unit), `${percent(best.cost / budget)} of budget`],
    ];
    if (best.share !== undefined)
      facts.push(["best in", element("data", { value: String(best.share) }, percent(best.share)), "of redraws"]);
    find("answer-facts").replaceChildren(...facts.map(([name, value, more]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value, more && element("small", {}, more)))));
    find("answer-facts").querySelector("data").id = "best-error";
    const behind = next && `error ${(next.error - best.error).toFixed(4)} higher, ${formatAmount(next.cost, unit)}`;
    find("answer-next").textContent = next
      ? `Next: ${choiceName(next)}, ${behind}.`
      : "It is the only choice within the budget.";
  }
  const said = find("answer").textContent;
  announce(best ? `Best choice: ${said}, predicted error ${best.error.toFixed(3)}` : said);
}

// Said once the settings rest, not at every step of a slider.
let announcing;
function announce(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => {
    if (find("announcement").textContent !== text) find("announcement").textContent = text;
  }, 500);
}

function fillTable(id, titles, rows) {
  const head = element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)));
  find(id).replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}
// A narrow page hides what all names begin with.
const nameOf = (llm) => [element("span", { className: "start" }, llm.name.slice(0, commonStart)), shortName(llm)];
const cell = (...children) => element("td", {}, ...children);

function showChoices() {
  const { within, unit } = result;
  const rows = (listsAll ? within : within.slice(0, SHORT_LIST)).map((choice, index) => {
    const swatch = shape("svg", { viewBox: "-7 -7 14 14", class: "swatch", "aria-hidden": "true" },
      shape("path", { d: markerOf(choice.llm, 4.6), fill: colourOf(choice.llm) }));
    return element("tr", { className: index ? "" : "best" },
      element("th", { scope: "row" }, swatch, ...nameOf(choice.llm)),
      cell(number(choice.tokens, 0)),
      cell(number(choice.error, 4), choice.interval && element("small", {}, ends(choice.interval))),
      cell(amount(choice.cost, unit)),
      cell(choice.share === undefined ? "" : percent(choice.share)));
  });
  fillTable("choices", ["LLM", "Visual tokens", "Predicted error", "Cost", "Best in"], rows);
  find("more").hidden = within.length <= SHORT_LIST;
  find("more").textContent = listsAll ? `Show the best ${SHORT_LIST} only` : `Show all ${within.length}`;
}

function showFamilies() {
  const rows = data.families.map((family) => {
    const mix = Object.fromEntries(data.families.map(({ name }) => [name, name === family.name ? 1 : 0]));
    const [best] = answer({ ...settings, mix }).within;
    const optimum = optimalTokens(family, prefilledText(settings.work), settings.cost === "llm" ? result.budget : undefined);
    return element("tr", {}, element("th", { scope: "row" }, family.name),
      cell(best ? element("data", { value: best.llm.name }, ...nameOf(best.llm)) : "nothing fits"),
      cell(best ? number(best.tokens, 0) : ""),
      cell(best ? number(best.error, 4) : ""), cell(optimum === undefined ? "depends on the budget of 2N(Q + V)" : digits(optimum)));
  });
  fillTable("families", ["Family", "LLM", "Visual tokens", "Predicted error", "V*"], rows);
  find("alone").hidden = data.families.length < 2;
}

function showNotes() {
  const notes = data.families.flatMap((family) => [
    `${family.name}: error = ${family.formula} (N in billions of parameters, V visual tokens), off by ` +
    `at most ${(100 * family.worst).toFixed(1)} % of a measured point.`,
    ...family.notes.map((note) => `${family.name}: ${note}`)]);
  notes.push(...data.notes);
  const shown = result.parts.map(({ family }) => family);
  const outside = (value, range) => shown.some((family) => value < family[range][0] || value > family[range][1]);
  const llms = data.llms.filter((llm) => settings.llms.has(llm.name) && outside(llm.billions, "sizes"));
  const counts = data.tokens.filter((tokens) => settings.tokens.has(tokens) && outside(tokens, "measuredTokens"));
  if (llms.length) notes.unshift(`Extrapolated in size: ${llms.map((llm) => llm.name).join(", ")}.`);
  if (counts.length) notes.unshift(`Extrapolated in visual tokens: ${counts.join(", ")}.`);
  notes.push("V* is the best number of visual tokens if LLMs came in every size, for the cost 2N(Q + V).");
  if (shown.every((family) => family.draws))
    notes.push(`Intervals (95 %), and in how many redraws a choice has the least error ("best in"), come from ` +
      `${shown[0].draws.alpha.length} laws refitted to redrawn measurements.`);
  find("notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
}

// To the last digit, and short where three are enough.
function exactAmount(value, unit) {
  const short = formatAmount(value, unit).replace(" ", "");
  return parseAmount(short, unit) === value ? short : `${value}${unit === "bytes" ? "B" : unit === "ms" ? "ms" : ""}`;
}
const shellWord = (text) => (/^[\w.+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function commandLine() {
  const { limits, work } = settings;
  const { unit, budget } = result;
  const amounts = [[unit, budget], ...limitsBeside(unit, limits).map((model) => [model.unit, limits[model.unit]])];
  const words = [data.command];
  for (const [name, value] of amounts) if (value !== undefined) words.push(`--budget ${exactAmount(value, name)}`);
  words.push(`--cost ${settings.cost}`, `--text-tokens ${work.textTokens}`, `--new-tokens ${work.newTokens}`);
  if (work.cachedText) words.push("--cached-text");
  if (work.batchSize > 1) words.push(`--batch-size ${work.batchSize}`);
  const mix = result.parts.map(({ family }) => `${shellWord(family.name)}=${settings.mix[family.name]}`);
  if (mix.length > 1) words.push(`--mix ${mix.join(",")}`);
  const inOrder = (values, chosen) => values.filter((value) => chosen.has(value)).join(",");
  words.push(`--llms ${inOrder(data.llms.map((llm) => llm.name), settings.llms)}`);
  words.push(`--tokens ${inOrder(data.tokens, settings.tokens)}`);
  return words.join(" ");
}
