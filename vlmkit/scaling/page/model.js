// The arithmetic of vlmkit.scaling: laws, costs, budgets, and the choices they lead to.

const LAWS = {
  product: (p, N, V) => p.A * N ** -p.alpha * V ** -p.beta + p.D,
  additive: (p, N, V) => p.A * N ** -p.alpha + p.B * V ** -p.beta + p.D,
  "log-linear": (p, N, V) => p.C - p.alpha * Math.log(N) - p.beta * Math.log(V),
};

// Each takes what the data says of one LLM, the number of visual tokens and the workload; undefined: not known.
const COSTS = {
  llm: (llm, V, work) => 2e9 * llm.billions * (prefilledText(work) + V),
  full: (llm, V, work, model) => {
    const vision = visionPart(llm, V);
    if (vision === undefined) return undefined;
    const forward = (tokens, cached) => llm.perToken * tokens + llm.perPair * tokens * (tokens + cached);
    const text = prefilledText(work);
    const cached = work.cachedText ? work.textTokens : 0;
    const steps = work.newTokens - 1;
    const attended = steps * (work.textTokens + V) + (steps * (steps + 1)) / 2;
    const query = model.readsQuestion ? forward(text, 0) : 0;
    const decode = llm.perToken * steps + llm.perPair * attended + steps * llm.logits;
    return vision + query + forward(text + V, cached) + llm.logits + decode;
  },
  memory: (llm, V, work) => {
    const vision = visionPart(llm, V);
    if (vision === undefined) return undefined;
    const tokens = work.textTokens + V + work.newTokens - 1;
    return vision + llm.weights + llm.perToken * tokens * work.batchSize;
  },
  latency: (llm, V, work, model) => {
    // Beside other text than was measured, the LLM's parts are those of the measured prompt of as many tokens in all.
    const prompt = V + work.textTokens - model.textTokens;
    const [seen, prefill] = [between(llm.tokens, llm.seen, V), between(llm.tokens, llm.prefill, prompt)];
    if (seen === undefined || prefill === undefined) return undefined;
    return seen + prefill + (work.newTokens - 1) * between(llm.tokens, llm.next, prompt);
  },
};

// On the straight line between the two counts around this one; undefined outside of all.
function between(counts, values, count) {
  const last = counts.length - 1;
  if (count < counts[0] || count > counts[last]) return undefined;
  const right = Math.max(counts.findIndex((one) => one >= count), Math.min(1, last));
  const left = Math.max(right - 1, 0);
  const part = right === left ? 0 : (count - counts[left]) / (counts[right] - counts[left]);
  return values[left] + part * (values[right] - values[left]);
}

const prefilledText = (work) => (work.cachedText ? 0 : work.textTokens);
const visionPart = (llm, V) => llm.vision[data.curve.indexOf(V)];

function costOf(name, llm, V, work) {
  const model = data.costs.find((cost) => cost.name === name);
  const known = model.llms[llm.name];
  return known && COSTS[name](known, V, work, model);
}

// The shares of the families: weights that add up to 1, without those that count nothing.
function shares(mix) {
  const total = Object.values(mix).reduce((sum, weight) => sum + weight, 0);
  return data.families.filter((family) => mix[family.name] > 0)
    .map((family) => ({ family, share: mix[family.name] / total }));
}

const predict = (parts, llm, V) =>
  parts.reduce((sum, { family, share }) => sum + share * LAWS[family.form](family.law, llm.billions, V), 0);

// What the redrawn laws predict. Nothing but the mix changes it, so each family's predictions are kept.
const drawn = new Map();
function familyDraws(family, llm, V) {
  const key = `${family.name}\n${llm.name}\n${V}`;
  if (!drawn.has(key)) {
    const names = Object.keys(family.draws);
    const one = {};
    drawn.set(key, Float64Array.from(family.draws.alpha, (_, index) => {
      for (const name of names) one[name] = family.draws[name][index];
      return LAWS[family.form](one, llm.billions, V);
    }));
  }
  return drawn.get(key);
}

function draws(parts, llm, V) {
  if (!parts.every(({ family }) => family.draws)) return undefined;
  const all = parts.map(({ family, share }) => ({ share, values: familyDraws(family, llm, V) }));
  return all[0].values.map((_, index) => all.reduce((sum, { share, values }) => sum + share * values[index], 0));
}

// Ends that were drawn, nothing between them, as numpy's "inverted_cdf".
function interval(values) {
  const sorted = Float64Array.from(values).sort();
  return data.level.map((level) => sorted[Math.max(Math.ceil(sorted.length * level - 1), 0)]);
}

// In how many of the draws each choice has the least error.
function shareBest(choices) {
  const wins = choices.map(() => 0);
  const count = choices[0].draws.length;
  for (let index = 0; index < count; index++) {
    const least = choices.reduce((low, choice) => Math.min(low, choice.draws[index]), Infinity);
    choices.forEach((choice, place) => { if (choice.draws[index] === least) wins[place]++; });
  }
  return wins.map((won) => won / count);
}

// The models of the limits in other units; FLOPs are those of the first model that counts them.
function limitsBeside(unit, limits) {
  const others = data.costs.filter((model) => model.unit !== unit && limits[model.unit] !== undefined);
  return others.filter((model, index) => others.findIndex((one) => one.unit === model.unit) === index);
}

// The answer to the settings: all choices whose cost is known, those within every budget (best first), the frontier.
function answer(settings) {
  const { cost, limits, mix, work } = settings;
  const parts = shares(mix);
  const unit = data.costs.find((model) => model.name === cost).unit;
  const budget = settings.budgets[unit];
  const others = limitsBeside(unit, limits);
  const keeps = (llm, V) => others.every((model) => costOf(model.name, llm, V, work) <= limits[model.unit]);
  const all = [];
  for (const llm of data.llms.filter((one) => settings.llms.has(one.name)))
    for (const tokens of data.tokens.filter((count) => settings.tokens.has(count))) {
      const spent = costOf(cost, llm, tokens, work);
      if (spent !== undefined && keeps(llm, tokens))
        all.push({ llm, tokens, cost: spent, error: predict(parts, llm, tokens) });
    }
  const byCost = [...all].sort((a, b) => a.cost - b.cost || a.error - b.error);
  const frontier = byCost.filter((choice, index) => byCost.slice(0, index).every((one) => one.error > choice.error));
  const within = all.filter((choice) => choice.cost <= budget).sort((a, b) => a.error - b.error || a.cost - b.cost);
  return { parts, unit, byCost, frontier, within, budget };
}

// To each choice within the budget, the interval of its error and how often it is the best.
function addUncertainty({ parts, within }) {
  for (const choice of within) {
    choice.draws = draws(parts, choice.llm, choice.tokens);
    choice.interval = choice.draws && interval(choice.draws);
  }
  if (within.length && within[0].draws) shareBest(within).forEach((share, index) => { within[index].share = share; });
}

// The best V if LLMs came in every size, within those on offer: V* = beta Q / (alpha - beta) at any budget where alpha/beta is
// the same everywhere; of the additive law, the one at a budget of 2N(Q + V).
function optimalTokens(family, textTokens, flops) {
  const { alpha, beta } = family.law;
  const [least, most] = [Math.min(...data.tokens), Math.max(...data.tokens)];
  if (family.form === "additive") return flops && additiveOptimum(family.law, textTokens, flops, [least, most]);
  if (textTokens === 0) return least;
  return alpha > beta ? Math.min(Math.max((beta * textTokens) / (alpha - beta), least), most) : most;
}

// Where more tokens and a smaller LLM at the same cost stop to lower the error, by halving the range of ln V.
function additiveOptimum(law, textTokens, flops, [least, most]) {
  const gains = (V) => {
    const N = flops / (2e9 * (textTokens + V));
    return law.beta * law.B * V ** -law.beta * (textTokens + V) > law.alpha * law.A * N ** -law.alpha * V;
  };
  if (!gains(least)) return least;
  if (gains(most)) return most;
  let [low, high] = [Math.log(least), Math.log(most)];
  for (let step = 0; step < 60; step++) {
    const middle = (low + high) / 2;
    if (gains(Math.exp(middle))) low = middle; else high = middle;
  }
  return Math.exp((low + high) / 2);
}

// Amounts as vlmkit.scaling.budgets writes and reads them.
const PREFIXES = { "": 1, K: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18 };
const TIMES = { us: 1e-3, ms: 1, s: 1e3 };
const digits = (value) => (value === 0 ? "0" : String(Number(value.toPrecision(3))));

function formatAmount(amount, unit) {
  if (unit === "ms") return amount < 1000 ? `${digits(amount)} ms` : `${digits(amount / 1000)} s`;
  const rounded = Number(amount.toPrecision(3));
  const [prefix, size] = Object.entries(PREFIXES).filter(([, one]) => one <= Math.max(rounded, 1)).pop();
  return `${digits(rounded / size)} ${prefix}${unit === "FLOPs" ? "FLOPs" : "B"}`;
}

// undefined where the text is no positive amount of this unit.
function parseAmount(text, unit) {
  const match = /^\+?(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([a-z]*)$/i.exec(text.trim());
  if (!match) return undefined;
  const size = unitSize(match[2], unit);
  const amount = Number(match[1]) * size;
  return amount > 0 && Number.isFinite(amount) ? amount : undefined;
}

function unitSize(written, unit) {
  const upper = written.toUpperCase();
  if (unit === "ms") return TIMES[written.toLowerCase()];
  if (unit === "FLOPs") return PREFIXES[upper.replace(/FLOPS?$/, "")];
  const binary = /^([KMGTPE])IB$/.exec(upper);
  if (binary) return 1024 ** ("KMGTPE".indexOf(binary[1]) + 1);
  return upper.endsWith("B") ? PREFIXES[upper.slice(0, -1)] : undefined;
}
