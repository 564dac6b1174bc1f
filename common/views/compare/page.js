"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const groups = data.groups;
  const runs = groups.flatMap((group) => group.runs);

  // What a position holds, in its order.
  const [BATCH, OPTIMIZER, TOKENS, SECONDS] = [0, 1, 2, 3];
  const clock = unitOfTime();
  const AXES = [
    { title: "batch step", index: BATCH, unit: 1 },
    { title: "optimizer step", index: OPTIMIZER, unit: 1 },
    { title: "generated tokens", index: TOKENS, unit: 1 },
    { title: "wall time", axisTitle: `wall time (${clock.name})`, index: SECONDS, unit: clock.unit },
  ];
  // Curves with fewer points show each of them.
  const FEW_POINTS = 30;

  const logged = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))].sort();
  const state = {
    axis: AXES[0],
    smoothing: 0,
    single: false,
    hidden: new Set(),
    metrics: data.first.filter((metric) => logged.includes(metric)),
  };

  // ---- numbers

  function unitOfTime() {
    const all = runs.flatMap((run) => run.positions.map((position) => position[SECONDS] ?? 0));
    const longest = all.reduce((a, b) => Math.max(a, b), 0);
    if (longest < 300) return { name: "s", unit: 1 };
    return longest < 4 * 3600 ? { name: "min", unit: 60 } : { name: "h", unit: 3600 };
  }

  /** Exponential moving average that does not lean towards its beginning. */
  function smoothed(values, weight) {
    let sum = 0;
    let total = 0;
    return values.map((value) => {
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }

  /** The points of a run on the chosen axis. Those with one key belong together across seeds. */
  function curveOf(run, metric) {
    const [at, values] = run.curves[metric] ?? [[], []];
    const own = metric.startsWith("training_step/") ? OPTIMIZER : BATCH;
    const seen = new Map();
    return smoothed(values, state.smoothing).map((y, number) => {
      const position = run.positions[at[number]];
      const place = position[own] ?? `after ${position[OPTIMIZER]}`;
      seen.set(place, (seen.get(place) ?? 0) + 1);
      const x = position[state.axis.index];
      return { key: `${place} ${seen.get(place)}`, x: x === null ? null : x / state.axis.unit, y };
    }).filter((point) => point.x !== null);
  }

  const meanOf = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  /** Mean and standard deviation over the seeds that have a point, in the order of x. */
  function meanCurve(group, metric) {
    const matched = new Map();
    for (const run of group.runs) {
      for (const point of curveOf(run, metric)) {
        if (!matched.has(point.key)) matched.set(point.key, []);
        matched.get(point.key).push(point);
      }
    }
    const points = [...matched.values()].map((all) => {
      const y = meanOf(all.map((point) => point.y));
      const squares = all.map((point) => (point.y - y) ** 2);
      const deviation = all.length > 1
        ? Math.sqrt(squares.reduce((a, b) => a + b, 0) / (all.length - 1)) : 0;
      return { x: meanOf(all.map((point) => point.x)), y, deviation, count: all.length };
    });
    return points.sort((a, b) => a.x - b.x);
  }

  // ---- curves

  /** Text as text: plotly takes some tags for its own, and {} for the names of numbers. */
  function plain(text) {
    const codes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "}": "&#125;" };
    return text.replace(/[&<>{}]/g, (character) => codes[character]);
  }

  function pale(color) {
    const parts = [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
    return `rgba(${parts.join(",")},0.15)`;
  }

  function lineTrace(group, points, label, thin, meta) {
    return {
      type: "scatter",
      mode: points.length <= FEW_POINTS ? "lines+markers" : "lines",
      x: points.map((point) => point.x),
      y: points.map((point) => point.y),
      line: { color: group.line.color, dash: group.line.dash, width: thin ? 1.4 : 2.2 },
      marker: { color: group.line.color, size: thin ? 3.5 : 4.5 },
      name: plain(label),
      meta,
    };
  }

  function tracesOf(group, metric) {
    if (state.single) {
      return group.runs.map((run) => {
        const trace = lineTrace(group, curveOf(run, metric), run.label, group.runs.length > 1, "run");
        return { ...trace, hovertemplate: `%{y:.4~g}<extra>${trace.name}</extra>` };
      });
    }
    const points = meanCurve(group, metric);
    const trace = lineTrace(group, points, group.label, false, "mean");
    if (group.runs.length === 1) {
      return [{ ...trace, hovertemplate: `%{y:.4~g}<extra>${trace.name}</extra>` }];
    }
    const upper = points.map((point) => point.y + point.deviation);
    const lower = points.map((point) => point.y - point.deviation);
    const band = {
      type: "scatter",
      mode: "lines",
      x: [...trace.x, ...trace.x.slice().reverse()],
      y: [...upper, ...lower.reverse()],
      fill: "toself",
      fillcolor: pale(group.line.color),
      line: { width: 0 },
      hoverinfo: "skip",
      meta: "band",
    };
    return [band, {
      ...trace,
      customdata: points.map((point) => [point.deviation, point.count]),
      hovertemplate: "%{y:.4~g} ± %{customdata[0]:.2~g} (%{customdata[1]})"
        + `<extra>${trace.name}</extra>`,
    }];
  }

  function layoutOf() {
    const axis = {
      gridcolor: "#e7eaef", linecolor: "#9aa1ad", zeroline: false, ticks: "outside", ticklen: 4,
      tickcolor: "#9aa1ad", showline: true, automargin: true,
    };
    // Values of runs only stand above one another where the axis counts the same for all.
    const counted = state.axis.index === BATCH || state.axis.index === OPTIMIZER;
    return {
      margin: { l: 48, r: 14, t: 12, b: 40 },
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", size: 12, color: "#16181d" },
      paper_bgcolor: "#ffffff",
      plot_bgcolor: "#ffffff",
      showlegend: false,
      hovermode: counted ? "x unified" : "closest",
      hoverlabel: { bgcolor: "#ffffff", bordercolor: "#c3c9d3", font: { size: 12, color: "#16181d" }, namelength: -1 },
      xaxis: { ...axis, title: { text: state.axis.axisTitle ?? state.axis.title, standoff: 8 }, rangemode: "tozero" },
      yaxis: { ...axis, tickformat: ".4~g" },
    };
  }

  function draw(figure) {
    const metric = figure.dataset.metric;
    const visible = groups.filter((_, number) => !state.hidden.has(number));
    const traces = visible.flatMap((group) => tracesOf(group, metric));
    // Bands lie under all lines.
    traces.sort((a, b) => (b.meta === "band") - (a.meta === "band"));
    Plotly.react(figure.querySelector(".chart"), traces.filter((trace) => trace.x.length), layoutOf(), {
      responsive: true,
      displaylogo: false,
      modeBarButtons: [["toImage", "pan2d", "zoom2d", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: metric.replaceAll("/", "_") },
    });
  }

  const figures = () => [...document.querySelectorAll("#curves figure")];

  let waiting = false;
  function drawAll() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      figures().forEach(draw);
    });
  }

  // ---- elements; all text from the runs is set as text

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function swatch(line) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    made.setAttribute("class", "line");
    made.setAttribute("aria-hidden", "true");
    const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const dashes = { solid: "none", dash: "8 5", dot: "3.5 4", dashdot: "9 4 3 4" };
    const attributes = {
      x1: 0, x2: 34, y1: 5, y2: 5, stroke: line.color, "stroke-width": 3.5,
      "stroke-dasharray": dashes[line.dash],
    };
    for (const [name, value] of Object.entries(attributes)) stroke.setAttribute(name, value);
    made.append(stroke);
    return made;
  }

  function showFigures() {
    const curves = document.getElementById("curves");
    const present = new Map(figures().map((figure) => [figure.dataset.metric, figure]));
    for (const [metric, figure] of present) {
      if (!state.metrics.includes(metric)) {
        Plotly.purge(figure.querySelector(".chart"));
        figure.remove();
      }
    }
    curves.querySelector(".nothing")?.remove();
    for (const metric of state.metrics) {
      if (present.has(metric)) continue;
      const remove = element("button", { type: "button", "aria-label": `remove ${metric}`, title: "remove" }, "✕");
      remove.addEventListener("click", () => choose(metric, false));
      const figure = element("figure", {}, element("figcaption", {}, metric, remove), element("div", { class: "chart" }));
      figure.dataset.metric = metric;
      curves.append(figure);
      draw(figure);
    }
    if (!state.metrics.length) {
      const text = logged.length ? "Choose what to draw under “metrics”." : "These runs have logged nothing yet.";
      curves.append(element("p", { class: "nothing" }, text));
    }
    document.getElementById("metric-count").textContent = `${state.metrics.length} of ${logged.length}`;
  }

  function choose(metric, wanted) {
    state.metrics = state.metrics.filter((name) => name !== metric).concat(wanted ? [metric] : []);
    for (const box of document.querySelectorAll("#metric-list input")) {
      if (box.value === metric) box.checked = wanted;
    }
    showFigures();
  }

  function showMetricList() {
    const list = document.getElementById("metric-list");
    const sections = new Map();
    for (const metric of logged) {
      const section = metric.includes("/") ? metric.slice(0, metric.indexOf("/")) : "";
      if (!sections.has(section)) sections.set(section, []);
      sections.get(section).push(metric);
    }
    for (const [section, metrics] of sections) {
      const block = element("div", {}, ...(section ? [element("h3", {}, section)] : []));
      for (const metric of metrics) {
        const box = element("input", { type: "checkbox", value: metric });
        box.checked = state.metrics.includes(metric);
        box.addEventListener("change", () => choose(metric, box.checked));
        block.append(element("label", {}, box, element("span", {}, metric)));
      }
      list.append(block);
    }
    document.getElementById("metric-search").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      for (const block of list.children) {
        const labels = [...block.querySelectorAll("label")];
        for (const label of labels) label.hidden = !label.textContent.toLowerCase().includes(wanted);
        block.hidden = labels.every((label) => label.hidden);
      }
    });
    const menu = document.getElementById("metrics");
    document.addEventListener("click", (event) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") menu.open = false;
    });
  }

  function showControls() {
    const axes = document.getElementById("axes");
    for (const axis of AXES) {
      const radio = element("input", { type: "radio", name: "axis", value: axis.title });
      radio.checked = axis === state.axis;
      radio.addEventListener("change", () => {
        state.axis = axis;
        drawAll();
      });
      axes.append(element("label", {}, radio, element("span", {}, axis.title)));
    }
    const several = groups.some((group) => group.runs.length > 1);
    document.getElementById("seeds").hidden = !several;
    document.getElementById("band-hint").hidden = !several;
    for (const radio of document.querySelectorAll("#seeds input")) {
      radio.addEventListener("change", () => {
        state.single = radio.value === "single";
        drawAll();
      });
    }
    const slider = document.getElementById("smoothing");
    slider.addEventListener("input", () => {
      state.smoothing = Number(slider.value);
      document.getElementById("smoothing-value").textContent = state.smoothing.toFixed(2);
      drawAll();
    });
  }

  function showLegend() {
    groups.forEach((group, number) => {
      const box = element("input", { type: "checkbox" });
      box.checked = true;
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(number);
        else state.hidden.add(number);
        drawAll();
      });
      const label = element("label", {}, box, swatch(group.line), element("span", {}, group.label));
      const notes = [group.note, group.runs.length > 1 ? `${group.runs.length} seeds` : ""].filter(Boolean);
      if (notes.length) label.append(element("span", { class: "note" }, notes.join(" · ")));
      document.getElementById("legend").append(label);
    });
  }

  // ---- tables

  function links(run) {
    const cell = element("div", { class: "links" });
    for (const file of run.files) cell.append(element("a", { href: file.href }, file.name));
    if (run.figures.length) {
      const items = run.figures.map((file) => element("li", {}, element("a", { href: file.href }, file.name)));
      cell.append(element("details", {}, element("summary", {}, items.length > 1 ? `${items.length} figures` : "1 figure"), element("ul", {}, ...items)));
    }
    return cell;
  }

  function showResults() {
    const [head, body] = document.querySelectorAll("#results thead, #results tbody");
    const titles = data.columns.map((column) => element("th", { class: "number", title: column.metric }, column.title.replace(" ", "\n")));
    head.append(element("tr", {}, element("th", {}, "run"), element("th", { class: "number" }, "seed"),
      element("th", { class: "number" }, "batches"), ...titles));
    for (const group of groups) {
      group.runs.forEach((run, number) => {
        const name = element("div", { class: "name" }, swatch(group.line), element("span", {}, run.label));
        body.append(element("tr", number ? {} : { class: "first" }, element("td", {}, name, links(run)),
          element("td", { class: "number" }, run.seed), element("td", { class: "number" }, run.batches),
          ...run.cells.map((text) => element("td", { class: "number" }, text))));
      });
      if (group.runs.length > 1) {
        const cells = group.spread.map((spread) => {
          const cell = element("td", { class: "number" }, spread ? spread[0] : "-");
          if (spread) cell.append(element("div", { class: "muted" }, `± ${spread[1]}`));
          return cell;
        });
        body.append(element("tr", { class: "spread" },
          element("td", {}, `mean of ${group.runs.length} seeds`), element("td"), element("td"), ...cells));
      }
    }
  }

  function showDifferences() {
    const section = document.getElementById("differences");
    if (!data.differences.length) {
      section.querySelector("div").replaceWith(element("p", { class: "hint" },
        runs.length > 1 ? "Nothing but the seeds." : "There is one run."));
      return;
    }
    const [head, body] = section.querySelectorAll("thead, tbody");
    const titles = groups.map((group) => element("th", {}, swatch(group.line), element("div", {}, group.label)));
    head.append(element("tr", {}, element("th"), ...titles));
    for (const { name, values } of data.differences) {
      const cells = values.map((value, number) =>
        element("td", number && value === values[0] ? { class: "same" } : {}, value));
      body.append(element("tr", {}, element("th", {}, name), ...cells));
    }
  }

  showControls();
  showLegend();
  showMetricList();
  showFigures();
  showResults();
  showDifferences();
})();
