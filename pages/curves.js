// Draws the charts of a page: lines over a common axis, values under the pointer, smoothing, a logarithmic axis.
(() => {
  const W = 640, H = 340, L = 88, R = 28, T = 12, B = 60;
  const COLOURS = ["#3b7dd8", "#d9622b", "#2e9e5b", "#a24fc4", "#c9a227", "#c43d6b", "#2aa5a5", "#7a7a7a"];
  const NS = "http://www.w3.org/2000/svg";

  function make(name, attributes, parent, text) {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.appendChild(node);
    return node;
  }

  function show(value) {
    const size = Math.abs(value);
    const short = +value.toPrecision(4);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? short.toExponential() : String(short);
  }

  // About five round values between two bounds.
  function ticks(low, high) {
    const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 2.5, 5, 10].find(factor => factor * power >= rough);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
    return found;
  }

  // Powers of ten between two logarithms; where these are few, also their doubles and fivefolds.
  function logTicks(low, high) {
    const every = Math.max(1, Math.ceil((high - low) / 7)), found = [];
    for (let k = Math.floor(low); k <= high; k++) {
      for (const factor of high - low < 2 ? [1, 2, 5] : k % every === 0 ? [1] : []) {
        const at = k + Math.log10(factor);
        if (at >= low && at <= high) found.push(at);
      }
    }
    return found;
  }

  // Exponential moving average, without a bias towards the first value.
  function smooth(points, share) {
    let sum = 0, weight = 0;
    return points.map(([x, y]) => {
      sum = share * sum + (1 - share) * y;
      weight = share * weight + (1 - share);
      return [x, sum / weight];
    });
  }

  function draw(figure, chart) {
    const box = figure.querySelector(".plot"), isLog = figure.querySelector(".log").checked;
    const share = +figure.querySelector(".smooth").value;
    const lines = chart.curves.map(([name, points]) => [name, share ? smooth(points, share) : points]);
    const fits = y => !isLog || y > 0;
    const xs = lines.flatMap(([, points]) => points.map(([x]) => x));
    const ys = lines.flatMap(([, points]) => points.map(([, y]) => y)).filter(fits).map(y => isLog ? Math.log10(y) : y);
    box.replaceChildren();
    if (!xs.length || !ys.length) return;
    let [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    if (y0 === y1) { y0 -= Math.abs(y0) / 2 || 0.5; y1 += Math.abs(y1) / 2 || 0.5; }
    const gap = 0.04 * (y1 - y0);
    [y0, y1] = [y0 - gap, y1 + gap];
    const px = x => L + (x - x0) / (x1 - x0) * (W - L - R);
    const py = y => T + (y1 - (isLog ? Math.log10(y) : y)) / (y1 - y0) * (H - T - B);
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": chart.title }, box);
    for (const x of ticks(x0, x1)) {
      make("line", { class: "rule", x1: px(x), x2: px(x), y1: T, y2: H - B }, svg);
      make("text", { x: px(x), y: H - B + 24, "text-anchor": "middle" }, svg, show(x));
    }
    for (const y of (isLog ? logTicks : ticks)(y0, y1)) {
      const value = isLog ? 10 ** y : y;
      make("line", { class: "rule", x1: L, x2: W - R, y1: py(value), y2: py(value) }, svg);
      make("text", { x: L - 6, y: py(value) + 7, "text-anchor": "end" }, svg, show(value));
    }
    make("text", { x: (L + W - R) / 2, y: H - 8, "text-anchor": "middle" }, svg, chart.x_label);
    lines.forEach(([, points], number) => {
      const colour = COLOURS[number % COLOURS.length], kept = points.filter(([, y]) => fits(y));
      const path = kept.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ");
      make("polyline", { points: path, fill: "none", stroke: colour, "stroke-width": 2 }, svg);
      if (kept.length === 1) make("circle", { cx: px(kept[0][0]), cy: py(kept[0][1]), r: 3, fill: colour }, svg);
    });
    const mark = make("line", { class: "mark", y1: T, y2: H - B, visibility: "hidden" }, svg);
    svg.addEventListener("pointermove", event => {
      const frame = svg.getBoundingClientRect(), at = x0 + ((event.clientX - frame.left) / frame.width * W - L) / (W - L - R) * (x1 - x0);
      const near = lines.filter(([, points]) => points.length).map(([name, points]) =>
        [name, points.reduce((best, point) => Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best)]);
      const x = near[0][1][0];
      mark.setAttribute("x1", px(x));
      mark.setAttribute("x2", px(x));
      mark.setAttribute("visibility", "visible");
      const values = near.map(([name, point]) => (near.length > 1 ? `${name} ` : "") + show(point[1]));
      figure.querySelector("output").textContent = `${chart.x_label} ${show(x)}: ${values.join(", ")}`;
    });
    svg.addEventListener("pointerleave", () => {
      mark.setAttribute("visibility", "hidden");
      figure.querySelector("output").textContent = "";
    });
  }

  for (const figure of document.querySelectorAll("figure.chart")) {
    const chart = JSON.parse(figure.querySelector("script").textContent), legend = figure.querySelector(".legend");
    if (chart.curves.length > 1) {
      chart.curves.forEach(([name], number) => {
        const entry = document.createElement("span");
        entry.textContent = name;
        entry.style.setProperty("--colour", COLOURS[number % COLOURS.length]);
        legend.appendChild(entry);
      });
    }
    for (const control of figure.querySelectorAll("input")) control.addEventListener("input", () => draw(figure, chart));
    draw(figure, chart);
  }
})();
