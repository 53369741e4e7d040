// filter.html: bounds on the scores that can be moved, and what they keep. It stands behind charts.js in the page.
//
// data.rows: [key, flags, a score for each of data.scores]; data.pictures: row number -> [input, edit, caption].
// Texts go in as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 24;
const NEAR = 0.25; // standard deviations of a score: a pair nearer to a bound is borderline
const OVERLAPS = [0.5, 0.7, 0.9]; // the yield is also drawn for pairs with such an overlap
const ALWAYS_SHOWN = ["clip_gain", "clip_directional", "overlap_iou", "lpips_input_edit"];

const byId = id => document.getElementById(id);
const known = values => values.filter(value => value !== null);

const column = {}; // score -> its value in each row
data.scores.forEach((name, place) => {
  column[name] = data.rows.map(row => row[place + 2]);
});
const present = data.scores.filter(name => known(column[name]).length);
const spread = {}; // score -> its standard deviation
for (const name of present) {
  spread[name] = deviation(known(column[name]));
}
const low = {...data.at_least};
const high = {...data.at_most};
const charts = []; // functions that draw one anew
let first = 0; // of the cards that are shown

function deviation(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / values.length) || 1;
}

function short(value) {
  return value === null ? "none" : Number(value.toPrecision(4)).toString();
}

// How far inside all bounds a pair lies, in standard deviations of the nearest bound's score, and why it is out
// where that is negative.
function judge(row) {
  const flag = data.reject.find(name => data.rows[row][1].includes(name));
  if (flag) {
    return {margin: -Infinity, why: `flagged ${flag}`};
  }
  let nearest = {margin: Infinity, why: ""};
  for (const [limits, sign, side] of [[low, 1, "below"], [high, -1, "above"]]) {
    for (const name in limits) {
      const value = column[name][row];
      if (value === null) {
        return {margin: -Infinity, why: `no ${name}`};
      }
      const margin = sign * (value - limits[name]) / spread[name];
      if (margin < nearest.margin) {
        nearest = {margin, why: `${name} ${short(value)} ${side} ${short(limits[name])}`};
      }
    }
  }
  return nearest.margin < 0 ? nearest : {margin: nearest.margin, why: ""};
}

// The charts

function addChart(title, meaning) {
  const figure = addElement(byId("charts"), "figure", {class: "chart"});
  const caption = addElement(figure, "figcaption", {}, title);
  addElement(caption, "span", {}, meaning);
  return figure;
}

function addYieldChart() {
  const figure = addChart("Yield", "share of the pairs that have this CLIP gain");
  const total = data.rows.length;
  const lines = [yieldLine(known(column.clip_gain), total, "all")];
  for (const overlap of present.includes("overlap_iou") ? OVERLAPS : []) {
    const gains = column.clip_gain.filter((_, row) => column.overlap_iou[row] >= overlap);
    lines.push({...yieldLine(known(gains), total, `overlap from ${overlap}`), opacity: 1.15 - overlap});
  }
  charts.push(() => {
    const marker = low.clip_gain === undefined ? null : {at: low.clip_gain, text: "bound"};
    const labels = {xLabel: "CLIP gain asked for", yLabel: "% of the pairs"};
    drawLines(figure, {title: "Yield", lines, ...labels, marker});
  });
}

function addScoreChart(name) {
  const figure = addChart(name, data.meanings[name]);
  const values = known(column[name]);
  charts.push(() => drawHistogram(figure, {title: name, values, low: low[name], high: high[name]}));
  const bounds = addElement(figure, "div", {class: "bounds"});
  addBound(bounds, name, "at least", low);
  addBound(bounds, name, "at most", high);
}

function addBound(parent, name, words, limits) {
  const label = addElement(parent, "label", {}, `${words} `);
  const attributes = {type: "number", step: "any", "data-score": name, "data-bound": words};
  const input = addElement(label, "input", attributes);
  if (limits[name] !== undefined) {
    input.value = short(limits[name]);
  }
  input.oninput = () => {
    if (input.value === "") {
      delete limits[name];
    } else {
      limits[name] = Number(input.value);
    }
    showFirst();
  };
}

// The cards

const SHOWN = {
  all: () => true,
  accepted: margin => margin >= 0,
  rejected: margin => margin < 0,
  borderline: margin => Math.abs(margin) <= NEAR,
};

// The numbers of the rows whose pictures are in the file and that pass the controls, in the order asked for.
function chosenRows(verdicts) {
  const fits = SHOWN[byId("show").value];
  const flag = byId("flag").value;
  const text = byId("text").value.toLowerCase();
  const sort = byId("sort").value;
  const rows = Object.keys(data.pictures).map(Number).filter(row =>
    fits(verdicts[row].margin)
    && (!flag || data.rows[row][1].includes(flag))
    && data.pictures[row][2].toLowerCase().includes(text));
  const rank = row => sort ? column[sort][row] ?? -Infinity : verdicts[row].margin;
  return rows.sort((a, b) => {
    if (rank(a) === rank(b)) {
      return a - b;
    }
    return rank(b) > rank(a) ? 1 : -1;
  });
}

function addCard(row, {margin, why}) {
  const [input, edit, words] = data.pictures[row];
  const [key, flags] = data.rows[row];
  const verdict = margin < 0 ? "rejected" : "accepted";
  const card = addElement(byId("cards"), "figure", {class: `card ${verdict}`});
  const pictures = addElement(card, "div");
  addElement(pictures, "img", {src: input, alt: "input", title: "input"});
  addElement(pictures, "img", {src: edit, alt: "edit", title: "edit"});
  const caption = addElement(card, "figcaption", {title: key}, words);
  const shown = [...ALWAYS_SHOWN, ...Object.keys(low), ...Object.keys(high), byId("sort").value];
  const names = present.filter(name => shown.includes(name));
  const scores = names.map(name => `${name}\u00a0${short(column[name][row])}`);
  addElement(caption, "span", {class: "numbers"}, [...scores, ...flags].join(" \u00b7 "));
  addElement(caption, "span", {class: "why"}, why);
}

function drawCards(verdicts) {
  const rows = chosenRows(verdicts);
  const lastPage = Math.max(0, Math.ceil(rows.length / PER_PAGE) - 1);
  first = Math.min(first, lastPage * PER_PAGE);
  const end = Math.min(first + PER_PAGE, rows.length);
  byId("cards").replaceChildren();
  rows.slice(first, end).forEach(row => addCard(row, verdicts[row]));
  byId("page").textContent = rows.length ? `${first + 1} to ${end} of ${rows.length}` : "none";
}

// The page

// What selects the same on the command line.
function command() {
  const bounds = [];
  for (const name of present) {
    if (low[name] !== undefined || high[name] !== undefined) {
      const from = low[name] === undefined ? "" : short(low[name]);
      const to = high[name] === undefined ? "" : `:${short(high[name])}`;
      bounds.push(`${name}=${from}${to}`);
    }
  }
  const selection = bounds.length ? `--select ${bounds.join(" ")}` : "task.clip_gain=null task.overlap=null";
  return `${data.command} ${selection}`;
}

function drawAll() {
  const total = data.rows.length;
  const verdicts = data.rows.map((_, row) => judge(row));
  const kept = verdicts.filter(({margin}) => margin >= 0).length;
  const near = verdicts.filter(({margin}) => Math.abs(margin) <= NEAR).length;
  byId("yield").textContent = total ? `${(100 * kept / total).toFixed(1)} %` : "no pairs";
  byId("counts").textContent =
    `${kept} of ${total} pairs pass; ${near} lie within ${NEAR} standard deviations of a bound`;
  byId("command").textContent = command();
  charts.forEach(draw => draw());
  drawCards(verdicts);
}

function showFirst() {
  first = 0;
  drawAll();
}

function build() {
  byId("title").textContent = data.title;
  byId("about").textContent = data.about;
  const pictured = Object.keys(data.pictures).length;
  byId("shown").textContent =
    `Input left, edit right. ${pictured} of ${data.rows.length} pairs have their pictures in this file: `
    + "those nearest to the bounds, and the rest evenly from the best to the worst.";
  if (present.includes("clip_gain")) {
    addYieldChart();
  }
  present.forEach(addScoreChart);
  present.forEach(name => addElement(byId("sort"), "option", {}, name));
  data.flags.forEach(name => addElement(byId("flag"), "option", {}, name));
  for (const id of ["show", "flag", "text", "sort"]) {
    byId(id).oninput = showFirst;
  }
  byId("back").onclick = () => {
    first = Math.max(0, first - PER_PAGE);
    drawAll();
  };
  byId("next").onclick = () => {
    first += PER_PAGE;
    drawAll();
  };
  drawAll();
}

build();
