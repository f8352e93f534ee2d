"use strict";
// Draws the charts of #data by uPlot, and sorts tables. Names are only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const holder = document.getElementById("charts");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const seriesColour = (index) => colour(`--series-${(index % 8) + 1}`);
  const CHART_PX = 200;
  const plots = [];
  let axis = "epochs";

  function scale(series) {
    const of = series.steps_per_epoch ? series : data;
    return { epochs: 1 / of.steps_per_epoch, images: of.global_batch_size, batches: 1 }[axis];
  }

  function short(value) {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (size >= 1e9) return +(value / 1e9).toPrecision(3) + "G";
    if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
    if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
    return String(+value.toPrecision(4));
  }

  // What a legend shows: the value under the pointer, else the newest before it.
  function shown(plot, series, index) {
    const values = plot.data[series];
    let at = index === null || index === undefined ? values.length - 1 : index;
    while (at >= 0 && (values[at] === null || values[at] === undefined)) at -= 1;
    return at < 0 ? "–" : short(values[at]);
  }

  function largest() {
    return Math.max(...data.charts.flatMap((chart) => chart.series.map((one) => one.x[one.x.length - 1] * scale(one))));
  }

  // Where a run was taken up again: a dashed line over the whole height.
  function drawMarks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--faint");
    ctx.setLineDash([4, 4]);
    for (const mark of data.marks || []) {
      const x = plot.valToPos(mark.batch * scale(mark), "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  function seriesOptions(series, index) {
    const stroke = seriesColour(series.colour === undefined ? index : series.colour);
    const paths = series.kind === "step" ? uPlot.paths.stepped({ align: -1 }) : uPlot.paths.linear();
    const few = series.kind === "dots" && series.x.length <= 100;
    return {
      label: series.label, stroke, width: 1.6, paths, spanGaps: true,
      points: { show: few || series.x.length === 1, size: 5, fill: stroke },
      value: (plot, _, series, index) => shown(plot, series, index),
    };
  }

  function axisOptions(more) {
    const line = { stroke: colour("--grid"), width: 1 };
    return { stroke: colour("--faint"), grid: line, ticks: line, font: "12px system-ui, sans-serif",
             values: (_, splits) => splits.map((value) => (value === null ? "" : short(value))), ...more };
  }

  function range(chart) {
    if (chart.log) return undefined;
    return (_, low, high) => {
      if (low === null) return [0, 1];
      if (low < 0) return uPlot.rangeNum(low, high, 0.1, true);
      if (chart.unit === "%") return [0, Math.min(100, high * 1.08) || 1];
      return [0, high * 1.08 || 1];
    };
  }

  function draw(chart) {
    const box = document.createElement("div");
    box.className = "chart";
    const title = document.createElement("h3");
    title.textContent = chart.title;
    const unit = document.createElement("span");
    unit.textContent = chart.unit ? ` ${chart.unit}${chart.log ? ", logarithmic" : ""}` : "";
    title.append(unit);
    box.append(title);
    holder.append(box);
    const tables = chart.series.map((one) => [one.x.map((batch) => batch * scale(one)), one.y]);
    const xOptions = { label: axis, value: (plot, _, series, index) => shown(plot, series, index) };
    const joined = uPlot.join(tables);
    const [first, last] = [joined[0][0], joined[0][joined[0].length - 1]];
    const whole = (_, low, high) => (low === first && high === last ? [0, largest()] : [low, high]);
    const plot = new uPlot({
      width: box.clientWidth, height: CHART_PX,
      scales: { x: { time: false, range: whole }, y: { distr: chart.log ? 3 : 1, range: range(chart) } },
      axes: [axisOptions({ space: 60, size: 30 }), axisOptions({ size: 52 })],
      cursor: { y: false, sync: { key: "charts", setSeries: false }, points: { size: 7 }, drag: { x: true, y: false } },
      legend: { live: true, markers: { fill: (plot, index) => plot.series[index].stroke(plot, index) } },
      hooks: { draw: [drawMarks] },
      series: [xOptions, ...chart.series.map(seriesOptions)],
    }, joined, box);
    plots.push([plot, box]);
  }

  function drawAll() {
    for (const [plot] of plots.splice(0)) plot.destroy();
    holder.replaceChildren();
    data.charts.forEach(draw);
  }

  function sortBy(table, column, header) {
    const body = table.tBodies[0];
    const down = header.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[column].dataset.value || row.cells[column].textContent.trim();
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      const difference = a - b;
      return (isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference) * (down ? -1 : 1);
    });
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("th").forEach((header, column) =>
      header.addEventListener("click", () => sortBy(table, column, header)));
  }
  if (!holder) return;
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.addEventListener("click", () => {
      axis = button.dataset.axis;
      for (const other of document.querySelectorAll("[data-axis]")) other.setAttribute("aria-pressed", String(other === button));
      drawAll();
    });
  }
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  new ResizeObserver(() => {
    for (const [plot, box] of plots) if (box.clientWidth !== plot.width) plot.setSize({ width: box.clientWidth, height: CHART_PX });
  }).observe(holder);
})();
