// filter.html: a selection that can be changed, and what it keeps. It stands behind charts.js in the page.
//
// data.rows: [key, flags, a score for each of data.scores]; data.pictures: row number -> [input, edit, caption].
// data.main: the scores that are shown first, with pictures beside them.
// Texts go in as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 24;
const BESIDE = 4; // pairs in each of the two groups beside a histogram
const NEAR = 0.25; // standard deviations of a score: a pair nearer to a bound is borderline
const BARELY = 1e-9; // standard deviations: how far out a pair is that has the last one's score
const OVERLAPS = [0.5, 0.7, 0.9]; // the yield is also drawn for pairs with such an overlap
const ALWAYS_SHOWN = ["clip_gain", "clip_directional", "overlap_iou", "lpips_input_edit"];
const STEPS = 400; // of a bound that is dragged, over a histogram's width
const COPIED_MS = 1500; // so long a button says that it copied

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
const pictured = Object.keys(data.pictures).map(Number);

// The selection, as filter/selection.py's Criteria has it.
const low = {...data.at_least};
const high = {...data.at_most};
const share = {keep: data.keep, by: data.by}; // by: a score, with a "-" before it where low is good
const vetoed = new Set(data.veto);

const charts = []; // functions of all verdicts that draw one anew
let first = 0; // of the cards that are shown
let saved = data.veto.join(" "); // the vetoes that somebody has

function deviation(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / values.length) || 1;
}

function short(value) {
  return value === null ? "none" : Number(value.toPrecision(4)).toString();
}

// What a command or a field says: all digits of a score.
function exact(value) {
  return Number(value.toPrecision(6)).toString();
}

// The selection

const rankings = {}; // by -> rows that have the score, best first, of equals the first
function ranking(by) {
  const name = by.replace("-", "");
  const sign = by.startsWith("-") ? 1 : -1;
  if (!rankings[by]) {
    const rows = column[name].map((_, row) => row).filter(row => column[name][row] !== null);
    rankings[by] = rows.sort((a, b) => sign * (column[name][a] - column[name][b]) || a - b);
  }
  return rankings[by];
}

// The nearest whole number, of two the even one, as Python's round gives it.
function round(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + below % 2 : Math.round(value);
}

// The best share: its rows, the score, whether high is good (1) or low (-1), and its last pair's; or null.
let latestShare = {keep: null, by: "", best: null};
function bestShare() {
  const {keep, by} = share;
  if (latestShare.keep !== keep || latestShare.by !== by) {
    latestShare = {keep, by, best: keep === null ? null : shareOf(keep, by)};
  }
  return latestShare.best;
}

function shareOf(keep, by) {
  const rows = ranking(by).slice(0, round(keep * data.rows.length));
  const name = by.replace("-", "");
  const last = rows.length ? column[name][rows.at(-1)] : null;
  return {rows: new Set(rows), name, sign: by.startsWith("-") ? -1 : 1, last};
}

// How far inside all bounds a pair lies, in standard deviations of the nearest bound's score, and a function that
// says why it is out where that is negative: of 15,000 pairs few reasons are read.
// A veto puts it out, but leaves it its place among the others: `unvetoed`.
function judge(row, best) {
  const verdict = judgeScores(row, best);
  if (isVetoed(row)) {
    return {margin: -Infinity, why: () => "vetoed", unvetoed: verdict.margin};
  }
  return {...verdict, unvetoed: verdict.margin};
}

function judgeScores(row, best) {
  const flag = data.reject.find(name => data.rows[row][1].includes(name));
  if (flag) {
    return {margin: -Infinity, why: () => `flagged ${flag}`};
  }
  let nearest = {margin: Infinity, why: () => ""};
  for (const [limits, sign, side] of [[low, 1, "below"], [high, -1, "above"]]) {
    for (const name in limits) {
      const value = column[name][row];
      if (value === null) {
        return {margin: -Infinity, why: () => `no ${name}`};
      }
      const margin = sign * (value - limits[name]) / spread[name];
      if (margin < nearest.margin) {
        nearest = {margin, why: () => `${name} ${short(value)} ${side} ${short(limits[name])}`};
      }
    }
  }
  if (best) {
    const margin = shareMargin(row, best);
    if (margin < nearest.margin) {
      nearest = {margin, why: () => `not in the best ${percent(share.keep)} % by ${share.by}`};
    }
  }
  return nearest.margin < 0 ? nearest : {margin: nearest.margin, why: () => ""};
}

function shareMargin(row, {rows, name, sign, last}) {
  const value = column[name][row];
  if (value === null || last === null) {
    return -Infinity;
  }
  const margin = sign * (value - last) / spread[name];
  return rows.has(row) ? Math.max(margin, 0) : Math.min(margin, -BARELY);
}

function percent(part) {
  return Number((100 * part).toPrecision(6));
}

// The bounds that a score's histogram shows: its own, or the end of the best share where that asks for more.
function shownBounds(name) {
  const bounds = {low: low[name], high: high[name]};
  const best = bestShare();
  if (best && best.name === name && best.last !== null) {
    if (best.sign > 0) {
      bounds.low = Math.max(best.last, bounds.low ?? -Infinity);
    } else {
      bounds.high = Math.min(best.last, bounds.high ?? Infinity);
    }
  }
  return bounds;
}

// What selects the same on the command line.
function command() {
  const items = [];
  for (const name of present) {
    if (low[name] !== undefined || high[name] !== undefined) {
      const from = low[name] === undefined ? "" : exact(low[name]);
      const to = high[name] === undefined ? "" : `:${exact(high[name])}`;
      items.push(`${name}=${from}${to}`);
    }
  }
  if (share.keep !== null) {
    items.push(`keep=${exact(share.keep)} by=${share.by}`);
  }
  if (vetoed.size) {
    items.push(`veto=${vetoPath()}`);
  }
  const selection = items.length ? `--select ${items.join(" ")}` : "task.clip_gain=null task.overlap=null";
  return `${data.command} ${selection}`;
}

// Vetoes: single pairs that somebody does not want

// In the order of the rows, so that the same vetoes are the same text.
function vetoedKeys() {
  return data.rows.map(row => row[0]).filter(key => vetoed.has(key));
}

// Another file for other vetoes: a browser would call a second file of one name "... (1)".
function vetoName() {
  let hash = 0;
  for (const letter of vetoedKeys().join(" ")) {
    hash = (31 * hash + letter.charCodeAt(0)) % 0xffffff;
  }
  return `${data.task}-veto-${hash.toString(16)}.txt`;
}

function vetoPath() {
  if (data.veto_file && vetoedKeys().join(" ") === data.veto.join(" ")) {
    return /^[\w./~-]+$/.test(data.veto_file) ? data.veto_file : `'${data.veto_file}'`;
  }
  return `~/Downloads/${vetoName()}`;
}

function vetoText() {
  return `${vetoedKeys().join("\n")}\n`;
}

function toggleVeto(row) {
  const key = data.rows[row][0];
  if (!vetoed.delete(key)) {
    vetoed.add(key);
  }
  drawAll();
}

function saveVeto() {
  const link = document.createElement("a");
  link.href = `data:text/plain;charset=utf-8,${encodeURIComponent(vetoText())}`;
  link.download = vetoName();
  link.click();
  saved = vetoedKeys().join(" ");
  drawVetoes();
}

function drawVetoes() {
  const keys = vetoedKeys().join(" ");
  byId("vetoes").hidden = !vetoed.size;
  const isSaved = keys === saved ? "" : ", not saved yet";
  byId("vetoed").textContent = `${vetoed.size} vetoed${isSaved}`;
}

function copyBy(button, text) {
  const words = button.textContent;
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    setTimeout(() => {
      button.textContent = words;
    }, COPIED_MS);
  };
}

// The charts

function addChart(parent, title, meaning) {
  const figure = addElement(parent, "figure", {class: "chart"});
  const caption = addElement(figure, "figcaption", {}, title);
  addElement(caption, "span", {}, meaning);
  return figure;
}

function addYieldChart(parent) {
  const figure = addChart(parent, "Yield", "share of the pairs that have this CLIP gain");
  const total = data.rows.length;
  const lines = [yieldLine(known(column.clip_gain), total, "all")];
  for (const overlap of present.includes("overlap_iou") ? OVERLAPS : []) {
    const gains = column.clip_gain.filter((_, row) => column.overlap_iou[row] >= overlap);
    lines.push({...yieldLine(known(gains), total, `overlap from ${overlap}`), opacity: 1.15 - overlap});
  }
  charts.push(() => {
    const bound = shownBounds("clip_gain").low;
    const marker = bound === undefined ? null : {at: bound, text: "bound"};
    const labels = {xLabel: "CLIP gain asked for", yLabel: "% of the pairs"};
    drawLines(figure, {title: "Yield", lines, ...labels, marker});
  });
}

// A histogram whose bounds can be dragged or typed. isShown: whether it is worth drawing now.
function addScoreChart(parent, name, isShown) {
  const figure = addChart(parent, name, data.meanings[name]);
  const values = known(column[name]);
  const fields = addElement(figure, "div", {class: "bounds"});
  const inputs = [addBound(fields, name, "at least", low), addBound(fields, name, "at most", high)];
  let chart = null;
  let range = null;
  let drawn = ""; // the bounds in the chart
  charts.push(() => {
    inputs.forEach(showBound => showBound());
    const shown = shownBounds(name);
    const wanted = [shown.low, shown.high, low[name], high[name]].join(" ");
    if (isShown() && wanted !== drawn) {
      drawn = wanted;
      const reach = [low[name], high[name]].filter(isNumber);
      range = widened(rangeOf([...values, ...reach]));
      const grips = {
        low: {at: low[name] ?? range[0], isSet: name in low},
        high: {at: high[name] ?? range[1], isSet: name in high},
      };
      chart = drawHistogram(figure, {title: name, values, ...shown, range, grips});
    }
  });
  letDrag(figure, name, () => range, clientX => chart.at(clientX));
}

// Drag the grips of a figure's chart. A bound that is dragged to the chart's end is none.
// range: gives the chart's range; at: the value below a pointer.
function letDrag(figure, name, range, at) {
  let drag = null; // what moves the bound
  figure.onpointerdown = event => {
    const grip = event.target.closest(".grip");
    if (grip) {
      drag = dragOf(name, grip.dataset.bound, range(), at);
      figure.setPointerCapture(event.pointerId);
      event.preventDefault();
    }
  };
  figure.onpointermove = event => {
    if (drag) {
      drag(event.clientX);
    }
  };
  figure.onpointerup = figure.onpointercancel = () => {
    drag = null;
  };
}

// A function of a pointer's place that moves a bound, drawn once a frame at most.
function dragOf(name, bound, range, at) {
  const [limits, end] = bound === "low" ? [low, range[0]] : [high, range[1]];
  const step = 10 ** Math.floor(Math.log10((range[1] - range[0]) / STEPS));
  const least = bound === "low" ? range[0] : low[name] ?? range[0];
  const most = bound === "low" ? high[name] ?? range[1] : range[1];
  let pending = false;
  return clientX => {
    const value = Number((Math.round(at(clientX) / step) * step).toPrecision(6));
    if ((bound === "low" && value <= end) || (bound === "high" && value >= end)) {
      delete limits[name];
    } else {
      limits[name] = Math.min(Math.max(value, least), most);
    }
    if (!pending) {
      pending = true;
      requestAnimationFrame(() => {
        pending = false;
        showFirst();
      });
    }
  };
}

// A field for a bound; gives the function that shows it there.
function addBound(parent, name, words, limits) {
  const label = addElement(parent, "label", {}, `${words} `);
  const attributes = {type: "number", step: "any", "data-score": name, "data-bound": words};
  const input = addElement(label, "input", attributes);
  input.oninput = () => {
    if (input.value === "") {
      delete limits[name];
    } else {
      limits[name] = Number(input.value);
    }
    showFirst();
  };
  return () => {
    if (document.activeElement !== input) {
      input.value = limits[name] === undefined ? "" : exact(limits[name]);
    }
  };
}

// A main score: its histogram, and beside it the pairs at its bounds.
function addMainScore(name) {
  const row = addElement(byId("main"), "div", {class: "row"});
  addScoreChart(row, name, () => true);
  const groups = addElement(row, "div", {class: "groups"});
  charts.push(verdicts => {
    groups.replaceChildren();
    for (const {title, rows} of pairsAt(name)) {
      const group = addElement(groups, "div");
      addElement(group, "h3", {}, title);
      const thumbs = addElement(group, "div", {class: "thumbs"});
      rows.forEach(place => thumbs.append(thumbOf(place, name, verdicts[place], rows)));
    }
  });
}

// The pairs next to a score's bounds, on either side; its lowest and its highest where it has none.
function pairsAt(name) {
  const bounds = shownBounds(name);
  const value = row => column[name][row];
  const rows = pictured.filter(row => value(row) !== null);
  if (bounds.low === undefined && bounds.high === undefined) {
    rows.sort((a, b) => value(a) - value(b));
    return [
      {title: `Lowest ${name}`, rows: rows.slice(0, BESIDE)},
      {title: `Highest ${name}`, rows: rows.slice(-BESIDE).reverse()},
    ];
  }
  const best = bestShare();
  const inside = row => {
    const above = value(row) - (bounds.low ?? -Infinity);
    const below = (bounds.high ?? Infinity) - value(row);
    const isLeftOut = best && best.name === name && !best.rows.has(row);
    return Math.min(above, below, isLeftOut ? -BARELY * spread[name] : Infinity);
  };
  const nearest = rows.sort((a, b) => Math.abs(inside(a)) - Math.abs(inside(b)));
  return [
    {title: "Just kept by it", rows: nearest.filter(row => inside(row) >= 0).slice(0, BESIDE)},
    {title: "Just dropped by it", rows: nearest.filter(row => inside(row) < 0).slice(0, BESIDE)},
  ];
}

// Elements are made once, so that a bound can be dragged without pictures that flicker.
const made = {};
function madeOnce(id, make) {
  made[id] ??= make();
  return made[id];
}

function addPictures(parent, row) {
  const [input, edit] = data.pictures[row];
  const pictures = addElement(parent, "div", {class: "pair"});
  addElement(pictures, "img", {src: input, alt: "input"});
  addElement(pictures, "img", {src: edit, alt: "edit"});
}

function thumbOf(row, name, verdict, rows) {
  const thumb = madeOnce(`${name} ${row}`, () => {
    const button = document.createElement("button");
    addPictures(button, row);
    addElement(button, "span", {}, short(column[name][row]));
    return button;
  });
  thumb.className = `thumb ${verdictOf(verdict)} ${isVetoed(row) ? "vetoed" : ""}`;
  thumb.title = verdict.why() || "kept";
  thumb.onclick = () => enlarge(row, rows);
  return thumb;
}

function verdictOf({margin}) {
  return margin < 0 ? "rejected" : "accepted";
}

function isVetoed(row) {
  return vetoed.has(data.rows[row][0]);
}

// The best share

function addShare(parent) {
  const box = addElement(parent, "div", {class: "share"});
  addElement(box, "b", {}, "Or keep a share of the pairs");
  addElement(box, "span", {class: "hint"}, "The best of all pairs by one score; the bounds hold besides.");
  const label = addElement(box, "label", {}, "the best ");
  const keep = addElement(label, "input", {type: "number", id: "keep", min: 0, max: 100, step: "any"});
  label.append(" % by ");
  const by = addElement(label, "select", {id: "by"});
  present.forEach(name => addElement(by, "option", {}, name));
  label.append(" where ");
  const order = addElement(label, "select", {id: "order"});
  addElement(order, "option", {value: ""}, "high is good");
  addElement(order, "option", {value: "-"}, "low is good");
  const slider = addElement(box, "input", {type: "range", id: "keep-slider", min: 1, max: 100});
  slider.setAttribute("aria-label", "share of the pairs to keep, in percent");
  const none = addElement(box, "button", {id: "no-share"}, "No share");

  const change = text => {
    const part = Number(text) / 100;
    share.keep = text !== "" && part > 0 && part <= 1 ? part : null;
    share.by = order.value + by.value;
    showFirst();
  };
  keep.oninput = () => change(keep.value);
  slider.oninput = () => change(slider.value);
  none.onclick = () => change("");
  order.oninput = () => change(keep.value);
  by.oninput = () => {
    order.value = by.value.startsWith("lpips") ? "-" : "";
    change(keep.value);
  };
  charts.push(() => {
    by.value = share.by.replace("-", "");
    order.value = share.by.startsWith("-") ? "-" : "";
    slider.value = percent(share.keep ?? 1);
    none.disabled = share.keep === null;
    if (document.activeElement !== keep) {
      keep.value = share.keep === null ? "" : percent(share.keep);
    }
  });
}

// The cards

const SHOWN = {
  all: () => true,
  accepted: ({margin}) => margin >= 0,
  rejected: ({margin}) => margin < 0,
  borderline: ({margin}) => Math.abs(margin) <= NEAR,
  vetoed: (verdict, row) => isVetoed(row),
};

// The numbers of the rows whose pictures are in the file and that pass the controls, in the order asked for.
function chosenRows(verdicts) {
  const fits = SHOWN[byId("show").value];
  const flag = byId("flag").value;
  const text = byId("text").value.toLowerCase();
  const sort = byId("sort").value;
  const rows = pictured.filter(row =>
    fits(verdicts[row], row)
    && (!flag || data.rows[row][1].includes(flag))
    && data.pictures[row][2].toLowerCase().includes(text));
  const rank = row => sort ? column[sort][row] ?? -Infinity : verdicts[row].unvetoed;
  return rows.sort((a, b) => {
    if (rank(a) === rank(b)) {
      return a - b;
    }
    return rank(b) > rank(a) ? 1 : -1;
  });
}

function cardOf(row, verdict, rows) {
  const [key, flags] = data.rows[row];
  const card = madeOnce(`card ${row}`, () => {
    const figure = document.createElement("figure");
    addPictures(addElement(figure, "button", {class: "open", "aria-label": "enlarge"}), row);
    const caption = addElement(figure, "figcaption", {title: key}, data.pictures[row][2]);
    addElement(caption, "span", {class: "numbers"});
    addElement(caption, "span", {class: "why"});
    addElement(figure, "button", {class: "veto"});
    return figure;
  });
  const shown = [...ALWAYS_SHOWN, ...Object.keys(low), ...Object.keys(high), byId("sort").value];
  const names = present.filter(name => shown.includes(name));
  const scores = names.map(name => `${name}\u00a0${short(column[name][row])}`);
  card.className = `card ${verdictOf(verdict)}${isVetoed(row) ? " vetoed" : ""}`;
  card.querySelector(".numbers").textContent = [...scores, ...flags].join(" \u00b7 ");
  card.querySelector(".why").textContent = verdict.why();
  card.querySelector(".open").onclick = () => enlarge(row, rows);
  drawVetoButton(card.querySelector(".veto"), row);
  return card;
}

function drawVetoButton(button, row) {
  button.textContent = isVetoed(row) ? "Vetoed: take back" : "Veto";
  button.setAttribute("aria-pressed", isVetoed(row));
  button.onclick = () => toggleVeto(row);
}

function drawCards(verdicts) {
  const rows = chosenRows(verdicts);
  const lastPage = Math.max(0, Math.ceil(rows.length / PER_PAGE) - 1);
  first = Math.min(first, lastPage * PER_PAGE);
  const end = Math.min(first + PER_PAGE, rows.length);
  byId("cards").replaceChildren(...rows.slice(first, end).map(row => cardOf(row, verdicts[row], rows)));
  byId("page").textContent = rows.length ? `${first + 1} to ${end} of ${rows.length}` : "none";
  byId("back").disabled = first === 0;
  byId("next").disabled = end === rows.length;
}

// A pair enlarged

let large = {row: -1, rows: []}; // the pair, and those that Back and Next go through

function enlarge(row, rows) {
  large = {row, rows};
  drawLarge();
  if (!byId("large").open) {
    byId("large").showModal();
    byId("large-cut").focus();
  }
}

function drawLarge() {
  const {row, rows} = large;
  if (row < 0) {
    return;
  }
  const [input, edit, words] = data.pictures[row];
  const place = rows.indexOf(row);
  byId("large-input").src = input;
  byId("large-edit").src = edit;
  byId("large-words").textContent = words;
  byId("large-key").textContent = `${data.rows[row][0]}, ${place + 1} of ${rows.length}`;
  byId("large-why").textContent = judge(row, bestShare()).why();
  byId("large-numbers").replaceChildren();
  for (const name of present) {
    const line = addElement(byId("large-numbers"), "tr", {title: data.meanings[name]});
    addElement(line, "td", {}, name);
    addElement(line, "td", {}, short(column[name][row]));
  }
  drawVetoButton(byId("large-veto"), row);
  byId("large-back").disabled = place <= 0;
  byId("large-next").disabled = place + 1 >= rows.length;
}

function turn(steps) {
  const place = large.rows.indexOf(large.row) + steps;
  if (large.rows[place] !== undefined) {
    enlarge(large.rows[place], large.rows);
  }
}

function buildLarge() {
  const dialog = byId("large");
  byId("large-cut").oninput = () => {
    byId("large-body").style.setProperty("--cut", `${byId("large-cut").value}%`);
  };
  byId("large-back").onclick = () => turn(-1);
  byId("large-next").onclick = () => turn(1);
  byId("large-close").onclick = () => dialog.close();
  dialog.onclick = event => {
    if (event.target === dialog) { // beside what is in it
      dialog.close();
    }
  };
  dialog.onclose = () => {
    large = {row: -1, rows: []};
  };
  dialog.onkeydown = event => {
    if (event.key === "v") {
      toggleVeto(large.row);
    } else if (event.key === "PageUp" || event.key === "PageDown") {
      turn(event.key === "PageDown" ? 1 : -1);
      event.preventDefault();
    }
  };
}

// The page

function drawAll() {
  const total = data.rows.length;
  const best = bestShare();
  const verdicts = data.rows.map((_, row) => judge(row, best));
  const kept = verdicts.filter(({margin}) => margin >= 0).length;
  const near = verdicts.filter(({margin}) => Math.abs(margin) <= NEAR).length;
  byId("yield").textContent = total ? `${(100 * kept / total).toFixed(1)} %` : "no pairs";
  byId("counts").textContent =
    `${kept} of ${total} pairs pass; ${near} lie within ${NEAR} standard deviations of a bound`;
  byId("command").textContent = command();
  charts.forEach(draw => draw(verdicts));
  drawCards(verdicts);
  drawVetoes();
  drawLarge();
}

function showFirst() {
  first = 0;
  drawAll();
}

function buildScores() {
  const main = data.main.filter(name => present.includes(name));
  const others = present.filter(name => !main.includes(name));
  main.forEach(addMainScore);
  if (present.length) {
    const row = addElement(byId("main"), "div", {class: "row"});
    if (present.includes("clip_gain")) {
      addYieldChart(row);
    }
    addShare(row);
  }
  const folded = byId("folded");
  others.forEach(name => addScoreChart(byId("charts"), name, () => folded.open));
  byId("folded-title").textContent = `The other ${others.length} scores`;
  folded.hidden = !others.length;
  folded.ontoggle = drawAll;
}

function build() {
  byId("title").textContent = data.title;
  byId("about").textContent = data.about;
  byId("shown").textContent =
    `Input left, edit right. ${pictured.length} of ${data.rows.length} pairs have their pictures in this file: `
    + "those nearest to the bounds, the extremes of the scores above, and the rest evenly from the best to the "
    + "worst. Veto a pair that you do not want: the vetoes are a file, and veto= in the line above says where it "
    + "lies.";
  buildScores();
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
  buildLarge();
  copyBy(byId("copy"), command);
  copyBy(byId("copy-veto"), vetoText);
  byId("copy-veto").addEventListener("click", () => {
    saved = vetoedKeys().join(" ");
    drawVetoes();
  });
  byId("save").onclick = saveVeto;
  byId("clear").onclick = () => {
    vetoed.clear();
    drawAll();
  };
  window.onbeforeunload = event => {
    const keys = vetoedKeys().join(" ");
    if (keys && keys !== saved) {
      event.preventDefault();
    }
  };
  drawAll();
}

build();
