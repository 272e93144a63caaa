// Results to click through: a heat-map of cells, and of the selected one its interval, prompts and pictures.
// `mount(root, studies, ask)` shows what `workbench.viewer.views.Study.plain` gives; ask(study, view, at), where there is a
// kernel, has pictures drawn. Every text goes into the page as text, never as markup.

const DIVERGING = ["#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b"];
const SEQUENTIAL = ["#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c"];
const NAMES = {
  kind: "component",
  steps: "denoising steps (share of the run)",
  step: "denoising step",
  width: "layers in the window",
  site: "site",
};
const WHOLE = ["probability", "share of images", "share of pictures"]; // what goes from 0 to 1
const MARK = "•";
const NARROW = 12; // columns up to which cells show their numbers

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Three significant digits; texts stay.
function say(value) {
  if (value === null || value === undefined) return "no value";
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(3))) : String(value);
}

const called = (name) => NAMES[name] || name;

// "0.42 (95 % interval 0.31 to 0.55)"
function withInterval(value, low, high, interval) {
  if (value === null || low === null || low === undefined) return say(value);
  return `${say(value)} (${interval} ${say(low)} to ${say(high)})`;
}

// What all names begin with, up to a dot, and the rest of each.
function shortened(names) {
  const parts = names.map((name) => name.split("."));
  let shared = 0;
  const numbers = names.some((name) => name.includes("-") || /^[\d.]+$/.test(name));
  while (
    !numbers &&
    names.length > 1 &&
    parts.every((part) => part.length > shared + 1 && part[shared] === parts[0][shared])
  ) {
    shared += 1;
  }
  return [parts[0].slice(0, shared).join("."), parts.map((part) => part.slice(shared).join("."))];
}

function colourOf(view, bounds, value) {
  if (value === null) return ["#fff", "#222"];
  const stops = view.signed ? DIVERGING : SEQUENTIAL;
  const place = ((value - bounds[0]) / (bounds[1] - bounds[0] || 1)) * (stops.length - 1);
  const low = Math.min(Math.max(Math.floor(place), 0), stops.length - 2);
  const part = Math.min(Math.max(place - low, 0), 1);
  const [a, b] = [stops[low], stops[low + 1]].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const mixed = a.map((channel, i) => Math.round(channel + part * (b[i] - channel)));
  const light = 0.2126 * mixed[0] + 0.7152 * mixed[1] + 0.0722 * mixed[2] > 128;
  return [`rgb(${mixed.join(",")})`, light ? "#111" : "#fff"];
}

// One scale for all cells of a view, whichever of them are shown.
function boundsOf(view) {
  const known = view.cells.value.filter((value) => value !== null);
  const most = Math.max(...known.map(Math.abs), 0);
  if (view.signed) return [-most || -1, most || 1];
  if (WHOLE.includes(view.unit)) return [0, 1];
  return [Math.min(...known, known.length ? Infinity : 0), Math.max(...known, known.length ? -Infinity : 1)];
}

class Viewer {
  constructor(root, studies, ask) {
    this.root = root;
    this.studies = studies;
    this.ask = ask;
    this.waiting = new Set();
    this.errors = {};
    this.root.classList.add("wb-viewer");
    this.root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab leaves our arrow keys alone
    this.top = make("div", { class: "wb-top" });
    this.controls = make("div", { class: "wb-controls" });
    this.map = make("div", { class: "wb-map" });
    this.detail = make("div", { class: "wb-detail", "aria-live": "polite" });
    this.body = make("div", { class: "wb-body" }, this.map, this.detail);
    this.root.replaceChildren(this.top, this.controls, this.body);
    this.open(0);
  }

  open(number) {
    this.number = number;
    this.study = this.studies[number];
    this.at = {};
    for (const axis of this.study.choices) this.at[axis.name] = 0;
    const shown = this.study.views.length > 0; // else the lines at the top say why
    this.controls.hidden = this.body.hidden = !shown;
    if (shown) this.look(0);
    else this.showTop();
  }

  // Show a view; what is selected stays so where the view has its axis.
  look(number) {
    this.viewNumber = number;
    this.view = this.study.views[number];
    this.bounds = boundsOf(this.view);
    const strongest = this.view.cells.value.reduce(
      (best, value, i, all) =>
        value !== null && (all[best] === null || Math.abs(value) > Math.abs(all[best])) ? i : best,
      0,
    );
    const first = this.place(strongest);
    for (const axis of this.view.axes) {
      const old = this.at[axis.name];
      this.at[axis.name] = old !== undefined && old < axis.values.length ? old : first[axis.name];
    }
    if (this.value("value") === null) Object.assign(this.at, first);
    const names = this.view.axes.map((axis) => axis.name);
    if (!names.includes(this.down) || (this.across && !names.includes(this.across)) || !this.across) {
      this.down = this.view.down;
      this.across = this.view.across;
    }
    this.show();
  }

  // Axes in C order: a cell's number from its place, and back.
  index(at = this.at) {
    return this.view.axes.reduce((sum, axis) => sum * axis.values.length + at[axis.name], 0);
  }

  place(index) {
    const at = {};
    for (const axis of [...this.view.axes].reverse()) {
      at[axis.name] = index % axis.values.length;
      index = Math.floor(index / axis.values.length);
    }
    return at;
  }

  value(name, at = this.at) {
    const values = this.view.cells[name];
    return values ? values[this.index(at)] : null;
  }

  axis(name) {
    return [...this.view.axes, ...this.study.choices].find((axis) => axis.name === name);
  }

  several() {
    return this.view.axes.filter((axis) => axis.values.length > 1);
  }

  show() {
    this.showTop();
    this.showControls();
    this.showMap();
    this.showDetail();
  }

  showTop() {
    const titles = this.studies.map((study) => study.title);
    const chooser = () =>
      make(
        "label",
        {},
        "results ",
        this.chooser(titles, this.number, (i) => this.open(i), "study"),
      );
    const title = titles.length > 1 ? chooser() : make("h2", {}, this.study.title);
    this.top.replaceChildren(title, ...this.study.about.map((line) => make("p", {}, line)));
  }

  chooser(names, chosen, change, name) {
    const options = names.map((text, i) => make("option", { value: i, selected: i === chosen }, text));
    return make("select", { "data-name": name, onchange: (event) => change(Number(event.target.value)) }, ...options);
  }

  showControls() {
    const labels = this.study.views.map((view) => [view.label, view.group].filter(Boolean).join(": "));
    const rows = [
      make(
        "label",
        {},
        "measure ",
        this.chooser(labels, this.viewNumber, (i) => this.look(i), "view"),
      ),
    ];
    const names = this.several().map((axis) => axis.name);
    if (names.length > 2) {
      for (const [which, other] of [
        ["down", "across"],
        ["across", "down"],
      ]) {
        const pick = (i) => {
          if (names[i] === this[other]) this[other] = this[which];
          this[which] = names[i];
          this.show();
        };
        rows.push(
          make("label", {}, `${which} `, this.chooser(names.map(called), names.indexOf(this[which]), pick, which)),
        );
      }
    }
    const shown = [this.down, this.across];
    const pictured = this.study.live || this.study.urls.length;
    const choices = (pictured ? this.study.choices : []).filter(
      (axis) => axis.values.length > 1 && axis.name !== "prompt",
    );
    for (const axis of [...this.several(), ...choices]) {
      if (axis.ordered) rows.push(this.slider(axis));
      else if (!shown.includes(axis.name)) {
        const chooser = this.chooser(
          axis.values,
          this.at[axis.name],
          (i) => this.move({ [axis.name]: i }, true),
          axis.name,
        );
        rows.push(make("label", {}, `${called(axis.name)} `, chooser));
      }
    }
    this.controls.replaceChildren(...rows);
  }

  slider(axis) {
    const output = make("output", {}, axis.values[this.at[axis.name]]);
    const picture = this.study.choices.includes(axis) ? "picture's " : "";
    const input = make("input", {
      type: "range",
      min: 0,
      max: axis.values.length - 1,
      step: 1,
      "data-name": axis.name,
      "aria-valuetext": axis.values[this.at[axis.name]],
      oninput: (event) => this.move({ [axis.name]: Number(event.target.value) }, false),
      onchange: () => this.draw(),
    });
    input.value = this.at[axis.name];
    return make("label", {}, `${picture}${called(axis.name)} `, input, " ", output);
  }

  showMap() {
    const down = this.axis(this.down);
    const across = this.across ? this.axis(this.across) : null;
    const [downPrefix, rows] = shortened(down.values);
    const [acrossPrefix, columns] = across ? shortened(across.values) : ["", [this.view.unit]];
    const upright = columns.some((name) => name.length > 6) && columns.length > 3;
    const heads = columns.map((name) =>
      make("th", { scope: "col" }, make("span", { class: upright ? "wb-upright" : "" }, name)),
    );
    const title = (prefix, axis) => [prefix, axis ? called(axis.name) : ""].join(" ").trim();
    this.cells = [];
    const body = rows.map((name, row) => {
      this.cells.push(columns.map((_, column) => this.cell(row, column, columns.length)));
      return make("tr", {}, make("th", { scope: "row" }, name), ...this.cells[row]);
    });
    const table = make(
      "table",
      {
        role: "grid",
        "aria-label": `${this.view.label}: ${title(downPrefix, down)} by ${title(acrossPrefix, across)}`,
        onkeydown: (event) => this.key(event),
      },
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          make(
            "td",
            { class: "wb-corner" },
            `${title(downPrefix, down)} ↓`,
            make("br"),
            across ? `${title(acrossPrefix, across)} →` : "",
          ),
          ...heads,
        ),
      ),
      make("tbody", {}, ...body),
    );
    const heading = [this.view.label, this.view.group].filter(Boolean).join(": ");
    this.map.replaceChildren(
      make("h3", {}, heading),
      make("div", { class: "wb-scroll", tabindex: -1 }, table),
      this.legend(),
    );
    this.select();
  }

  cellPlace(row, column) {
    const at = { ...this.at, [this.down]: row };
    if (this.across) at[this.across] = column;
    return at;
  }

  cell(row, column, columns) {
    const at = this.cellPlace(row, column);
    const value = this.value("value", at);
    const [back, front] = colourOf(this.view, this.bounds, value);
    const mark = this.value("marked", at) ? MARK : "";
    const number = value !== null && columns <= NARROW ? this.rounded(value) : "";
    const cell = make(
      "td",
      {
        role: "gridcell",
        class: value === null ? "wb-empty" : "",
        "aria-label": this.described(at),
        title: this.described(at),
        onclick: () => {
          this.move(this.cellPlace(row, column), true);
          this.cells[row][column].focus();
        },
      },
      [number, mark].filter(Boolean).join(" "),
    );
    cell.style.backgroundColor = back;
    cell.style.color = front;
    return cell;
  }

  // As many digits as the largest cell needs for two: what is nothing beside it says 0.
  rounded(value) {
    const most = Math.max(...this.bounds.map(Math.abs)) || 1;
    const text = value.toFixed(Math.min(Math.max(1 - Math.floor(Math.log10(most)), 0), 12));
    return Number(text) === 0 ? "0" : text;
  }

  described(at) {
    const where = this.several().map((axis) => `${called(axis.name)} ${axis.values[at[axis.name]]}`);
    return `${where.join(", ")}: ${withInterval(this.value("value", at), this.value("low", at), this.value("high", at), this.view.interval)}`;
  }

  legend() {
    const stops = this.view.signed ? DIVERGING : SEQUENTIAL;
    const bar = make("span", {
      class: "wb-bar",
      role: "img",
      "aria-label": `colours from ${say(this.bounds[0])} to ${say(this.bounds[1])}`,
    });
    bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    const parts = [say(this.bounds[0]), bar, say(this.bounds[1]), make("span", {}, this.view.unit)];
    if (this.view.cells.marked && this.view.cells.marked.some(Boolean)) {
      parts.push(
        make(
          "span",
          {},
          `${MARK} ${this.view.interval} without 0, at least a tenth of the largest, of 5 prompts or more (of one prompt, seeds)`,
        ),
      );
    }
    return make("p", { class: "wb-legend" }, ...parts);
  }

  key(event) {
    const rows = this.cells.length;
    const columns = this.cells[0].length;
    const row = this.at[this.down];
    const column = this.across ? this.at[this.across] : 0;
    const steps = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [row, 0],
      End: [row, columns - 1],
      PageUp: [0, column],
      PageDown: [rows - 1, column],
    };
    if (event.key === "Enter" || event.key === " ") this.draw();
    else if (event.key in steps) {
      const [y, x] = steps[event.key];
      if (y < 0 || x < 0 || y >= rows || x >= columns) return event.preventDefault();
      this.move(this.cellPlace(y, x), false);
      this.cells[y][x].focus();
    } else return undefined;
    event.stopPropagation();
    return event.preventDefault();
  }

  // Select another place. Only what changes is made again, so that the control in hand stays.
  move(at, draw) {
    const slice = (place) =>
      this.view.axes.map((axis) => ([this.down, this.across].includes(axis.name) ? "" : place[axis.name])).join();
    const before = slice(this.at);
    Object.assign(this.at, at);
    for (const axis of [...this.view.axes, ...this.study.choices]) {
      const control = this.controls.querySelector(`[data-name="${axis.name}"]`);
      if (!control) continue;
      control.value = this.at[axis.name];
      if (control.type !== "range") continue;
      control.setAttribute("aria-valuetext", axis.values[this.at[axis.name]]);
      control.parentElement.querySelector("output").textContent = axis.values[this.at[axis.name]];
    }
    if (slice(this.at) === before) this.select();
    else this.showMap();
    if (draw) this.draw();
    else this.showDetail();
  }

  select() {
    const column = this.across ? this.at[this.across] : 0;
    this.cells.forEach((cells, row) =>
      cells.forEach((cell, i) => {
        const chosen = row === this.at[this.down] && i === column;
        cell.setAttribute("aria-selected", chosen);
        cell.tabIndex = chosen ? 0 : -1;
      }),
    );
  }

  // How pictures are named: as `workbench.viewer.views.key` names them.
  pictureKey(axes) {
    return axes
      .map((axis) => axis.name)
      .sort()
      .map((name) => `${name}=${this.at[name]}`)
      .join(" ");
  }

  pictureKeys() {
    const axes = [...this.view.axes, ...this.study.choices];
    return [this.pictureKey(axes), this.pictureKey(axes.filter((axis) => axis.name !== "step"))];
  }

  draw() {
    const [key] = this.pictureKeys();
    const wanted = this.study.live && this.ask && !(key in this.study.pictures) && this.value("value") !== null;
    const possible = this.study.choices.length || this.view.axes.some((axis) => axis.name === "step");
    if (wanted && possible && !this.waiting.has(`${this.number} ${key}`)) {
      this.waiting.add(`${this.number} ${key}`);
      const names = [...this.view.axes, ...this.study.choices].map((axis) => axis.name);
      this.ask(this.number, this.viewNumber, Object.fromEntries(names.map((name) => [name, this.at[name]])));
    }
    this.showDetail();
  }

  // What the kernel answered.
  receive({ study, key, pictures, error }) {
    this.waiting.delete(`${study} ${key}`);
    this.errors[`${study} ${key}`] = error;
    const held = this.studies[study];
    if (pictures) held.pictures[key] = pictures.map(([caption, url]) => [caption, held.urls.push(url) - 1]);
    if (study === this.number) this.showDetail();
  }

  showDetail() {
    const parts = [make("h3", {}, this.sentence()), ...this.notes(), this.showPictures()];
    if (Object.keys(this.view.references).length || Object.keys(this.view.behind).length) parts.push(this.prompts());
    for (const axis of [...this.view.axes, ...this.study.choices]) {
      const lines = axis.about[this.at[axis.name]] || [];
      if (!lines.length) continue;
      const name = `${called(axis.name)}: ${axis.values[this.at[axis.name]]}`;
      parts.push(make("h4", {}, name), make("ul", {}, ...lines.map((line) => make("li", {}, line))));
    }
    const inside = this.detail.contains(document.activeElement)
      ? document.activeElement.getAttribute("data-prompt")
      : null;
    this.detail.replaceChildren(...parts);
    if (inside !== null) this.detail.querySelector(`[data-prompt="${inside}"]`)?.focus();
  }

  sentence() {
    const where = this.view.axes
      .filter((axis) => axis.values.length > 1)
      .map((axis) => `${called(axis.name)} ${axis.values[this.at[axis.name]]}`);
    return where.join(", ");
  }

  notes() {
    const value = this.value("value");
    const text = withInterval(value, this.value("low"), this.value("high"), this.view.interval);
    const lines = [
      make(
        "p",
        { class: "wb-value" },
        `${this.view.label}: `,
        make("b", {}, text),
        value === null ? "; no prompt has this here" : ` ${this.view.unit}`,
      ),
    ];
    const totals = Object.entries(this.view.totals).map(
      ([name, [mean, low, high]]) => `${name} ${withInterval(mean, low, high, this.view.interval)}`,
    );
    const share = this.value("share");
    if (share !== null) {
      const percent = (part) => (part === null ? null : `${Number((100 * part).toPrecision(2))} %`);
      const ends = ["share_low", "share_high"].map((name) => percent(this.value(name)));
      totals.push(`the cell's share of it ${withInterval(percent(share), ends[0], ends[1], this.view.interval)}`);
    }
    const entered = this.value("prompts");
    const single = this.study.choices.some((axis) => axis.name === "seed") ? "prompt" : "picture";
    if (entered !== null && entered !== undefined) totals.push(`from ${entered} ${single}${entered === 1 ? "" : "s"}`);
    if (totals.length) lines.push(make("p", {}, totals.join("; ")));
    return lines;
  }

  showPictures() {
    const [key, without] = this.pictureKeys();
    const name = `${this.number} ${key}`;
    const found = this.study.pictures[key] || this.study.pictures[without];
    let said = "";
    if (this.waiting.has(name)) said = "drawing ...";
    else if (this.errors[name]) said = `No pictures: ${this.errors[name]}`;
    else if (
      !this.study.pictures[key] &&
      this.study.live &&
      this.value("value") !== null &&
      (this.study.choices.length || key !== without)
    ) {
      said = "Click the cell, or press Enter in it, to draw its pictures.";
    } else if (!found) said = this.study.hint;
    const figures = (found || []).map(([caption, number]) =>
      make("figure", {}, make("img", { src: this.study.urls[number], alt: caption }), make("figcaption", {}, caption)),
    );
    return make("div", { class: "wb-pictures" }, ...figures, said ? make("p", { class: "wb-said" }, said) : "");
  }

  prompts() {
    const axis = this.axis("prompt");
    const count = axis.values.length;
    const columns = [
      ...Object.entries(this.view.references).map(([name, values]) => [name, values]),
      ...Object.entries(this.view.behind).map(([name, values]) => [
        name,
        values.slice(this.index() * count, (this.index() + 1) * count),
      ]),
    ];
    const behind = columns.slice(Object.keys(this.view.references).length);
    const there = (i) => !behind.length || behind.some(([, values]) => values[i] !== null);
    const rows = axis.values.map((text, i) => {
      if (!there(i)) return ""; // a cell need not be over all prompts
      const button = make(
        "button",
        {
          type: "button",
          "data-prompt": i,
          "aria-pressed": i === this.at.prompt,
          onclick: () => this.move({ prompt: i }, true),
        },
        text,
      );
      return make(
        "tr",
        { class: i === this.at.prompt ? "wb-chosen" : "" },
        make("th", { scope: "row" }, button),
        ...columns.map(([, values]) => make("td", {}, say(values[i]))),
      );
    });
    const heads = columns.map(([name]) => make("th", { scope: "col" }, name));
    const pictured = this.study.live || this.study.urls.length ? "; the pictures are of the prompt that is chosen" : "";
    const over = ["seed", "draw"]
      .filter((name) => this.study.choices.some((each) => each.name === name))
      .map((name) => `${name}s`);
    const caption = `${over.length ? `Means of each prompt over its ${over.join(" and ")}` : "What each picture behind the cell measured"}${pictured}.`;
    return make(
      "div",
      { class: "wb-scroll" },
      make(
        "table",
        { class: "wb-prompts" },
        make("caption", {}, caption),
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "prompt"), ...heads)),
        make("tbody", {}, ...rows),
      ),
    );
  }
}

export function mount(root, studies, ask = null) {
  return new Viewer(root, studies, ask);
}

// In a notebook, as an anywidget.
function render({ model, el }) {
  const studies = structuredClone(model.get("studies"));
  const viewer = mount(el, studies, (study, view, at) => {
    model.set("asked", { study, view, at });
    model.save_changes();
  });
  const answered = () => viewer.receive(model.get("answer"));
  model.on("change:answer", answered);
  return () => model.off("change:answer", answered);
}

export default { render };
