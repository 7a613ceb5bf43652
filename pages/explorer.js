// The page of a curation: a map on a canvas, and lists of images that can be ticked and saved. DATA is set before.
(() => {
  const COLOURS = ["#4e9af1", "#f2844b", "#45c07a", "#c274e0", "#e3c044", "#ee6290", "#3ecaca", "#a9b1bc", "#8f7cf0", "#9ccc4f"];
  const STEP = 120; // items that are added to a list at a time
  const bytes = text => Uint8Array.from(atob(text), char => char.charCodeAt(0));
  const shorts = text => new Uint16Array(bytes(text).buffer);
  const P = DATA.points, COUNT = DATA.names.length;
  const X = shorts(P.x), Y = shorts(P.y), LABEL = shorts(P.label);
  const SPLIT = bytes(P.split), CLUSTER = bytes(P.cluster), SCORE = bytes(P.score), KEEP = bytes(DATA.keep);
  const unticked = new Map(); // name of a list -> images that are not ticked in it
  let selection = [];

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== false) node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }

  const className = image => LABEL[image] === 0xFFFF ? "" : DATA.classes[LABEL[image]];
  const splitName = image => DATA.splits[SPLIT[image]];

  function picture(image, px) {
    const each = DATA.columns ** 2, row = Math.floor(image % each / DATA.columns), column = image % DATA.columns;
    const node = make("span", { class: "picture", role: "img", "aria-label": DATA.names[image] });
    node.style.backgroundImage = `url("${DATA.sheets[Math.floor(image / each)]}")`;
    node.style.backgroundPosition = `-${column * px}px -${row * px}px`;
    node.style.backgroundSize = `${DATA.columns * px}px auto`;
    return node;
  }

  // A picture with its name, its class and split, and a box that ticks it in a list.
  function item(image, list, why = "", px = 96) {
    const off = unticked.get(list) || new Set();
    const label = make("label", {}, picture(image, px));
    if (list) {
      const box = make("input", { type: "checkbox" });
      box.checked = !off.has(image);
      box.addEventListener("change", () => {
        if (!unticked.has(list)) unticked.set(list, new Set());
        unticked.get(list)[box.checked ? "delete" : "add"](image);
      });
      label.append(box, " ");
    }
    label.append(DATA.names[image]);
    const about = [splitName(image), className(image), why].filter(Boolean).join(", ");
    return make("div", { class: "item" }, label, make("span", { class: "why" }, about));
  }

  // Adds `total` nodes to a parent, STEP at a time.
  function grow(parent, total, build) {
    const more = make("button", { type: "button" });
    let done = 0;
    function add() {
      const end = Math.min(done + STEP, total);
      for (; done < end; done++) parent.append(build(done));
      more.textContent = `${(total - done).toLocaleString("en")} more`;
      more.hidden = done === total;
    }
    more.addEventListener("click", add);
    add();
    return make("div", { class: "bar" }, more);
  }

  function save(name, images, comment) {
    const lines = [`# ${comment}`, ...images.map(image => DATA.names[image])];
    const link = make("a", { download: name, href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"])) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const ticked = (list, images) => [...new Set(images)].filter(image => !(unticked.get(list) || new Set()).has(image));

  function saving(list, images, what) {
    const names = () => ticked(list, images());
    const train = () => {
      const without = new Set(names());
      return [...Array(COUNT).keys()].filter(image => KEEP[image] && !without.has(image));
    };
    const bar = make("div", { class: "bar" }, make("button", { type: "button", onclick: () =>
      save(`${list}.txt`, names(), `${what}, ticked on the page`) }, "Save the ticked names"));
    if (DATA.total === COUNT) bar.append(make("button", { type: "button", onclick: () =>
      save("keep.txt", train(), `keep.txt without the ticked of: ${what}`) }, "Save keep.txt without them"));
    return bar;
  }

  // ---- map

  const SCHEMES = {
    class: { of: image => LABEL[image], name: value => value === 0xFFFF ? "no label" : DATA.classes[value] },
    split: { of: image => SPLIT[image], name: value => DATA.splits[value] },
    cluster: { of: image => CLUSTER[image], name: value => `cluster ${value + 1}` },
    "near others": { of: image => SCORE[image], name: value => value, isScale: true },
  };
  const view = { x: 0, y: 0, scale: 1, scheme: DATA.classes.length > 1 ? "class" : "cluster" };

  function rgb(scheme, value) {
    if (SCHEMES[scheme].isScale) return [40 + value * .8, 90 + value * .6, 255 - value * .8];
    const text = value === 0xFFFF ? "#a9b1bc" : COLOURS[value % COLOURS.length];
    return [1, 3, 5].map(at => parseInt(text.slice(at, at + 2), 16));
  }

  function place(image, size) {
    return [(X[image] / 65535 - view.x) * view.scale * size, (Y[image] / 65535 - view.y) * view.scale * size];
  }

  function draw(canvas, outline) {
    const size = canvas.width, context = canvas.getContext("2d"), scheme = SCHEMES[view.scheme];
    const picture = context.createImageData(size, size), data = picture.data;
    const chosen = new Set(selection), half = COUNT > 20000 && view.scale < 4 ? 1 : 2;
    for (let image = 0; image < COUNT; image++) {
      const [x, y] = place(image, size), own = rgb(view.scheme, scheme.of(image));
      const colour = chosen.size && !chosen.has(image) ? own.map(part => part * .35) : own;
      for (let dy = -half; dy < half; dy++) for (let dx = -half; dx < half; dx++) {
        const column = Math.round(x) + dx, row = Math.round(y) + dy;
        if (column >= 0 && row >= 0 && column < size && row < size) {
          const at = 4 * (row * size + column);
          data[at] = colour[0]; data[at + 1] = colour[1]; data[at + 2] = colour[2]; data[at + 3] = 255;
        }
      }
    }
    context.putImageData(picture, 0, 0);
    if (outline && outline.length) {
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.beginPath();
      outline.forEach(([x, y]) => context.lineTo(x, y));
      context.stroke();
    }
  }

  function inside(outline, x, y) {
    let is = false;
    for (let i = 0, j = outline.length - 1; i < outline.length; j = i++) {
      const [xi, yi] = outline[i], [xj, yj] = outline[j];
      if ((yi > y) !== (yj > y) && x < (xj - xi) * (y - yi) / (yj - yi) + xi) is = !is;
    }
    return is;
  }

  function legend() {
    const scheme = SCHEMES[view.scheme], node = make("div", { class: "legend" });
    if (scheme.isScale) return make("div", { class: "legend" }, "blue: far from all others, yellow: many are near");
    const values = new Map();
    for (let image = 0; image < COUNT; image++) values.set(scheme.of(image), (values.get(scheme.of(image)) || 0) + 1);
    const largest = [...values].sort((a, b) => b[1] - a[1]);
    for (const [value, count] of largest.slice(0, 30)) {
      const entry = make("span", {}, `${scheme.name(value)} (${count.toLocaleString("en")})`);
      entry.style.setProperty("--colour", `rgb(${rgb(view.scheme, value)})`);
      node.append(entry);
    }
    if (largest.length > 30) node.append(`and ${largest.length - 30} more`);
    return node;
  }

  function showMap(panel) {
    const canvas = make("canvas", { width: 1000, height: 1000, tabindex: 0, id: "map",
      "aria-label": "Map of the images. Arrow keys move it, plus and minus zoom, A selects what is in view, Escape nothing." });
    const side = make("div", { class: "side" }), key = make("div");
    let outline = null, moved = null;
    const at = event => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
    };
    const redraw = () => draw(canvas, outline);
    function choose(images) {
      selection = images;
      side.replaceChildren(make("p", {}, selection.length ? `${selection.length.toLocaleString("en")} images are selected`
        : "Draw around points to see their images. Shift and drag moves the map, the wheel zooms; so do arrows, + and -."));
      if (selection.length) {
        const grid = make("div", { class: "items small" });
        side.append(saving("selection", () => selection, "images selected on the map"));
        side.append(grid, grow(grid, selection.length, n => item(selection[n], "selection", "", 64)));
      }
      redraw();
    }
    function zoom(factor, x = 500, y = 500) {
      const size = canvas.width, scale = Math.min(200, Math.max(1, view.scale * factor));
      view.x += x / size * (1 / view.scale - 1 / scale);
      view.y += y / size * (1 / view.scale - 1 / scale);
      view.scale = scale;
      redraw();
    }
    canvas.addEventListener("pointerdown", event => {
      canvas.setPointerCapture(event.pointerId);
      if (event.shiftKey) moved = at(event); else outline = [at(event)];
    });
    canvas.addEventListener("pointermove", event => {
      const [x, y] = at(event);
      if (moved) {
        view.x -= (x - moved[0]) / canvas.width / view.scale;
        view.y -= (y - moved[1]) / canvas.width / view.scale;
        moved = [x, y];
        redraw();
      } else if (outline) {
        outline.push([x, y]);
        const context = canvas.getContext("2d");
        context.strokeStyle = "#fff";
        context.lineWidth = 2;
        context.beginPath();
        context.moveTo(...outline[outline.length - 2]);
        context.lineTo(x, y);
        context.stroke();
      }
    });
    canvas.addEventListener("pointerup", () => {
      const own = outline;
      outline = moved = null;
      if (own) choose(own.length < 3 ? [] : [...Array(COUNT).keys()].filter(image => inside(own, ...place(image, canvas.width))));
    });
    canvas.addEventListener("wheel", event => {
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.25 : .8, ...at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", event => {
      const step = .1 / view.scale, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (moves[event.key]) {
        view.x += moves[event.key][0];
        view.y += moves[event.key][1];
        redraw();
      } else if (event.key === "+" || event.key === "=") zoom(1.25);
      else if (event.key === "-") zoom(.8);
      else if (event.key === "Escape") choose([]);
      else if (event.key === "a" || event.key === "A") choose([...Array(COUNT).keys()].filter(image =>
        place(image, canvas.width).every(value => value >= 0 && value <= canvas.width)));
      else return;
      event.preventDefault();
    });
    const scheme = make("select", { id: "scheme", onchange: () => {
      view.scheme = scheme.value;
      key.replaceChildren(legend());
      redraw();
    } }, ...Object.keys(SCHEMES).map(name => make("option", { value: name, ...(name === view.scheme ? { selected: "" } : {}) }, name)));
    const how = DATA.kind === "tsne" ? "t-SNE: images that are alike are near; distances between islands mean little." : "The first two principal components.";
    const part = COUNT < DATA.total ? ` ${COUNT.toLocaleString("en")} of ${DATA.total.toLocaleString("en")} images.` : "";
    panel.append(make("p", {}, how + part), make("div", { class: "bar" }, make("label", { for: "scheme" }, "Colour"), scheme));
    key.append(legend());
    panel.append(key, make("div", { class: "stage" }, canvas, side));
    choose(selection);
  }

  // ---- lists

  function showPairs(panel, list, pairs, ticks, what, title) {
    panel.append(make("p", {}, title), saving(list, () => pairs.flatMap(ticks), what));
    const parent = make("div");
    panel.append(parent, grow(parent, pairs.length, n => make("div", { class: "pair" }, make("div", {}, pairs[n].about),
      make("div", { class: "items" }, ...pairs[n].images.map(image =>
        item(image, ticks(pairs[n]).includes(image) ? list : "", image === pairs[n].kept ? "kept" : ""))))));
  }

  function showList(panel, list, entries, what, title) {
    const grid = make("div", { class: "items" });
    panel.append(make("p", {}, title), saving(list, () => entries.map(entry => entry.image), what));
    panel.append(grid, grow(grid, entries.length, n => item(entries[n].image, list, entries[n].why)));
  }

  function showQuality(panel) {
    const NS = "http://www.w3.org/2000/svg";
    panel.append(make("p", {}, "Each measure with the images at both ends; what is too dark or blurred is for you to say."));
    for (const measure of DATA.quality) {
      const chart = document.createElementNS(NS, "svg"), most = Math.max(...measure.counts);
      chart.setAttribute("viewBox", `0 0 ${measure.counts.length} 10`);
      chart.setAttribute("preserveAspectRatio", "none");
      measure.counts.forEach((count, bin) => {
        const bar = document.createElementNS(NS, "rect"), height = 10 * count / most;
        for (const [key, value] of Object.entries({ x: bin + .05, y: 10 - height, width: .9, height })) bar.setAttribute(key, value);
        chart.append(bar);
      });
      const range = `from ${measure.low.toPrecision(4)} to ${measure.high.toPrecision(4)} (99 % of the images)`;
      const section = make("section", { class: "measure" }, make("h2", {}, measure.name), make("p", {}, `${measure.about}; ${range}`), chart);
      for (const end of ["lowest", "highest"]) {
        const list = `${measure.name}-${end}`, grid = make("div", { class: "items small" });
        section.append(make("details", {}, make("summary", {}, end), saving(list, () => measure[end].map(([image]) => image), list), grid));
        grid.append(...measure[end].map(([image, value]) => item(image, list, String(value), 64)));
      }
      panel.append(section);
    }
  }

  function table(header, rows) {
    const cells = (tag, row) => row.map(value => make(tag, typeof value === "number" ? { class: "number" } : {}, String(value)));
    return make("table", {}, make("tr", {}, ...cells("th", header)), ...rows.map(row => make("tr", {}, ...cells("td", row))));
  }

  function showClasses(panel) {
    const rows = DATA.classes.map((name, label) => [name, ...DATA.counts.map(counts => counts[label])]);
    panel.append(table(["class", ...DATA.splits], rows));
  }

  function showTable(panel) {
    const word = make("input", { type: "search", id: "word" }), found = make("div");
    const search = () => {
      const rows = [];
      for (let image = 0; image < COUNT && rows.length < 200; image++) {
        const row = [DATA.names[image], splitName(image), className(image), CLUSTER[image] + 1, SCORE[image]];
        if (row.slice(0, 3).some(text => text.toLowerCase().includes(word.value.toLowerCase()))) rows.push(row);
      }
      found.replaceChildren(table(["image", "split", "class", "cluster", "near others (0 to 255)"], rows));
    };
    word.addEventListener("input", search);
    panel.append(make("div", { class: "bar" }, make("label", { for: "word" }, "Name, split or class"), word), found);
    search();
  }

  const leaks = DATA.leaks.map(leak => ({ images: [leak.image, leak.train], about: leak.about, kept: leak.image }));
  const groups = DATA.groups.map(group => ({ images: group.members, about: group.about, kept: group.kept }));
  const labels = DATA.labels.map(doubt => ({ image: doubt.image, why: doubt.why }));
  const outliers = DATA.outliers.map(image => ({ image, why: "" }));
  const TABS = {
    Map: showMap,
    [`Leaks (${leaks.length})`]: panel => showPairs(panel, "leaks", leaks, pair => [pair.images[1]], "training images that val has",
      "Images of val, each beside an image of train that shows the same; the ticked ones are of train."),
    [`Groups (${groups.length})`]: panel => showPairs(panel, "copies", groups, group => group.images.filter(image => image !== group.kept),
      "copies of images that are kept", "Images that show the same. One of each group is kept; the others are ticked."),
    [`Labels (${labels.length})`]: panel => showList(panel, "labels", labels, "images with doubtful labels",
      "Labels that copies or most of the nearest images contradict, the most doubtful first."),
    [`Outliers (${outliers.length})`]: panel => showList(panel, "outliers", outliers, "outliers", "Images far from all others, the farthest first."),
    Quality: showQuality,
    Classes: showClasses,
    Table: showTable,
  };
  if (DATA.notes.length) TABS[`Notes (${DATA.notes.length})`] = panel => panel.append(make("ul", {}, ...DATA.notes.map(note => make("li", {}, note))));

  function open(name) {
    const panel = document.getElementById("panel");
    panel.replaceChildren();
    for (const tab of document.querySelectorAll("#tabs button")) {
      tab.setAttribute("aria-selected", tab.textContent === name);
      tab.tabIndex = tab.textContent === name ? 0 : -1;
    }
    TABS[name](panel);
  }

  const tabs = document.getElementById("tabs");
  for (const name of Object.keys(TABS)) tabs.append(make("button", { type: "button", role: "tab", onclick: () => open(name) }, name));
  tabs.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], all = [...tabs.children];
    if (step) {
      const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
      open(next.textContent);
      next.focus();
    }
  });
  open("Map");
})();
