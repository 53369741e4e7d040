"use strict";
// Histograms and line charts as SVG, without a library, for the pages of filter/report.py and scripts/report.py.
//
//   drawHistogram(figure, {title, values, low, high, range, grips, xLabel})
//       bars of values beyond the bounds are faint; null or left out: no bound. range: [least, most] of the axis,
//       else that of the values. grips: {low, high} as {at, isSet}, where to draw what a bound can be dragged
//       by, pale where there is none; they are of class "grip" and say which in data-bound. Gives the chart:
//       chart.at(clientX) is the value there, as long as it stands in the page
//   drawLines(figure, {title, lines, xLabel, yLabel, fromZero, marker})
//       lines: [{name, points: [[x, y], ...], style, opacity}], one at least with points; marker: {at, text}
//   a chart of fewer than FEW values or points says how many they are
//   yieldLine(values, total, name)
//       a line: what share of `total` pairs, in %, has at least each value
//
// A style is "line", "faint" (raw values behind a smooth line) or "dots" (a line and its points).
// Drawing into a figure again replaces its chart. Texts go in as text, never as HTML.

// Drawing units. A column of a page is about as many pixels wide, so that 11 units of text are about 11 pixels.
const WIDTH = 360;
const HEIGHT = 216;
const LEFT = 46;
const RIGHT = WIDTH - 12;
const TOP = 26;
const BOTTOM = HEIGHT - 40;

const BINS = 24;
const HEADROOM = 1.15; // of a histogram's highest bar, so that the bound's text stands free
const LOWEST_TOP = 4; // pairs: the y axis of a histogram goes at least so far
const YIELD_POINTS = 200; // of a yield line: more would not be seen
const FEW = 30; // values or points: fewer are told, as their shape says little
const GRIP = {reach: 13, width: 9, height: 26}; // of a grip: half the width that takes a finger, and what is seen

function addElement(parent, tag, attributes = {}, text = "") {
  const isSvg = parent.namespaceURI === "http://www.w3.org/2000/svg" || tag === "svg";
  const element = isSvg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const name in attributes) {
    element.setAttribute(name, attributes[name]);
  }
  element.textContent = text;
  parent.append(element);
  return element;
}

// Charts

function drawHistogram(figure, {title, values, low, high, range = null, grips = null, xLabel = ""}) {
  const bounds = [low, high].filter(isNumber);
  const xRange = range ?? widened(rangeOf([...values, ...bounds]));
  const bars = countBars(values, xRange, low, high);
  const most = Math.max(...bars.map(bar => bar.inside + bar.outside));
  const yRange = [0, Math.max(HEADROOM * most, LOWEST_TOP)];
  const step = (xRange[1] - xRange[0]) / BINS; // by so much the bars reach out at most, wherever the bound is
  const plot = addPlot(figure, title, [xRange[0] - step, xRange[1] + step], yRange, xLabel, "pairs");
  addCount(plot, values.length);
  for (const bar of bars) {
    addBar(plot, bar, 0, bar.inside, "bar");
    addBar(plot, bar, bar.inside, bar.inside + bar.outside, "bar out");
  }
  if (isNumber(low)) {
    addMarker(plot, low, `kept from ${shortNumber(low)}`, 0);
  }
  if (isNumber(high)) {
    addMarker(plot, high, `kept up to ${shortNumber(high)}`, isNumber(low) ? 1 : 0);
  }
  for (const bound in grips) {
    addGrip(plot, grips[bound].at, bound, grips[bound].isSet);
  }
  return plot;
}

// The bars {left, right, inside, outside}: how many values from left to right are within the bounds, and beyond.
// An edge lies on the first bound, so that no bar is on both sides of it.
function countBars(values, [least, most], low, high) {
  const step = (most - least) / BINS;
  const bound = isNumber(low) ? low : high;
  const first = isNumber(bound) ? bound - Math.ceil((bound - least) / step - 1e-9) * step : least;
  const bars = [];
  for (let place = 0; place <= BINS; place += 1) {
    bars.push({left: first + place * step, right: first + (place + 1) * step, inside: 0, outside: 0});
  }
  for (const value of values) {
    const place = Math.floor((value - first) / step + 1e-9);
    const bar = bars[Math.min(Math.max(place, 0), BINS)];
    if ((isNumber(low) && value < low) || (isNumber(high) && value > high)) {
      bar.outside += 1;
    } else {
      bar.inside += 1;
    }
  }
  return bars;
}

function drawLines(figure, {title, lines, xLabel, yLabel, fromZero = true, marker = null}) {
  const drawn = lines.filter(line => line.points.length);
  const points = drawn.flatMap(line => line.points);
  const xs = points.map(point => point[0]);
  const ys = points.map(point => point[1]);
  if (marker) {
    xs.push(marker.at);
  }
  if (fromZero) {
    ys.push(0);
  }
  const plot = addPlot(figure, title, widened(rangeOf(xs)), widened(rangeOf(ys)), xLabel, yLabel, drawn);
  addCount(plot, Math.max(...drawn.map(line => line.points.length)));
  drawn.forEach(line => addLine(plot, line));
  if (marker) {
    addMarker(plot, marker.at, marker.text, 0);
  }
}

function yieldLine(values, total, name = "") {
  const sorted = [...values].sort((a, b) => a - b);
  const count = Math.min(sorted.length, YIELD_POINTS);
  const points = [];
  for (let n = 0; n < count; n += 1) {
    const place = count > 1 ? Math.round(n / (count - 1) * (sorted.length - 1)) : 0;
    points.push([sorted[place], 100 * (sorted.length - place) / total]);
  }
  return {name, points, style: "line"};
}

// Parts of a chart

// The chart without its content: the legend of several lines, axes, ticks and labels.
// Gives the svg element, the functions x and y that place values in it, and at: the value below a pointer.
function addPlot(figure, title, xRange, yRange, xLabel, yLabel, lines = []) {
  figure.querySelectorAll(":scope > svg, :scope > .legend").forEach(element => element.remove());
  const height = xLabel ? HEIGHT : HEIGHT - 18; // without the label's line
  const box = `0 0 ${WIDTH} ${height}`;
  const svg = addElement(figure, "svg", {viewBox: box, role: "img", "aria-label": title});
  figure.querySelector("figcaption")?.after(svg);
  if (lines.length > 1) {
    svg.before(legendOf(lines));
  }
  const x = value => LEFT + (value - xRange[0]) / (xRange[1] - xRange[0]) * (RIGHT - LEFT);
  const y = value => BOTTOM - (value - yRange[0]) / (yRange[1] - yRange[0]) * (BOTTOM - TOP);
  for (const tick of roundTicks(yRange, 4)) {
    const at = tenth(y(tick));
    addElement(svg, "line", {class: "grid", x1: LEFT, x2: RIGHT, y1: at, y2: at});
    addText(svg, "tick", LEFT - 6, y(tick) + 4, "end", shortNumber(tick));
  }
  for (const tick of roundTicks(xRange, 5)) {
    addText(svg, "tick", x(tick), BOTTOM + 15, "middle", shortNumber(tick));
  }
  addElement(svg, "line", {class: "axis", x1: LEFT, x2: RIGHT, y1: BOTTOM, y2: BOTTOM});
  addText(svg, "label", WIDTH / 2, HEIGHT - 6, "middle", xLabel);
  addText(svg, "label", LEFT - 36, TOP - 12, "start", yLabel);
  const at = clientX => {
    const box = svg.getBoundingClientRect();
    const across = (clientX - box.left) / box.width * WIDTH;
    return xRange[0] + (across - LEFT) / (RIGHT - LEFT) * (xRange[1] - xRange[0]);
  };
  return {svg, x, y, at};
}

function legendOf(lines) {
  const legend = document.createElement("div");
  legend.className = "legend";
  for (const line of lines) {
    const entry = addElement(legend, "span");
    addElement(entry, "i", {class: `key ${line.style}`, style: `opacity: ${line.opacity ?? 1}`});
    entry.append(line.name);
  }
  return legend;
}

function addText(svg, kind, x, y, anchor, text) {
  addElement(svg, "text", {class: kind, x: tenth(x), y: tenth(y), "text-anchor": anchor}, text);
}

// A bar from one count to another, which is nothing where they are equal.
function addBar({svg, x, y}, {left, right}, from, to, kind) {
  if (to > from) {
    addElement(svg, "rect", {
      class: kind,
      x: tenth(x(left)),
      y: tenth(y(to)),
      width: tenth(x(right) - x(left) - 1),
      height: tenth(y(from) - y(to)),
      "data-count": to - from,
    });
  }
}

function addLine({svg, x, y}, {points, style, opacity = 1}) {
  const path = points.map(point => `${tenth(x(point[0]))},${tenth(y(point[1]))}`).join(" ");
  addElement(svg, "polyline", {class: `line ${style}`, points: path, opacity});
  if (style === "dots" || points.length === 1) {
    for (const point of points) {
      const place = {cx: tenth(x(point[0])), cy: tenth(y(point[1]))};
      addElement(svg, "circle", {class: `dot ${style}`, ...place, r: 2.6});
    }
  }
}

function addCount({svg}, count) {
  if (count < FEW) {
    addText(svg, "label", RIGHT, TOP - 12, "end", `n = ${count}`);
  }
}

// What a bound is dragged by: a broad strip that cannot be seen, and a knob at half its height.
function addGrip({svg, x}, value, bound, isSet) {
  const grip = addElement(svg, "g", {class: isSet ? "grip" : "grip pale", "data-bound": bound});
  const at = x(value);
  const {reach, width, height} = GRIP;
  const strip = {x: tenth(at - reach), y: TOP - 6, width: 2 * reach, height: BOTTOM - TOP + 12};
  addElement(grip, "rect", {class: "reach", ...strip});
  const knob = {x: tenth(at - width / 2), y: (TOP + BOTTOM - height) / 2, width, height, rx: width / 2};
  addElement(grip, "rect", {class: "knob", ...knob});
}

// A dashed upright line and its text, in a row of its own where several have one.
function addMarker({svg, x}, value, text, row) {
  const at = x(value);
  addElement(svg, "line", {class: "marker", x1: tenth(at), x2: tenth(at), y1: TOP - 6, y2: BOTTOM});
  const height = TOP - 1 + 12 * row;
  if (at < WIDTH / 2) {
    addText(svg, "marker-text", at + 4, height, "start", text);
  } else {
    addText(svg, "marker-text", at - 4, height, "end", text);
  }
}

// Numbers

function isNumber(value) {
  return typeof value === "number";
}

function rangeOf(values) {
  let least = Infinity;
  let most = -Infinity;
  for (const value of values) {
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  return [least, most];
}

// A range of some width, also around equal values.
function widened([least, most]) {
  if (most - least > 1e-9 * Math.max(Math.abs(least), Math.abs(most), 1e-9)) {
    return [least, most];
  }
  const margin = Math.abs(least) * 0.1 || 0.5;
  return [least - margin, most + margin];
}

// About `count` round numbers within the range: 1, 2 or 5 times a power of ten apart.
function roundTicks([least, most], count) {
  const rough = (most - least) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(step => step >= rough);
  const ticks = [];
  for (let place = Math.ceil(least / step - 1e-9); place <= most / step + 1e-9; place += 1) {
    ticks.push(Number((place * step).toPrecision(12)));
  }
  return ticks;
}

// Four digits, with a real minus: 12000 -> 12k.
function shortNumber(value) {
  const digits = number => Number(number.toPrecision(4)).toString().replace("-", "\u2212");
  if (Math.abs(value) >= 1e6) {
    return `${digits(value / 1e6)}M`;
  }
  return Math.abs(value) >= 1e4 ? `${digits(value / 1e3)}k` : digits(value);
}

function tenth(value) {
  return value.toFixed(1);
}
