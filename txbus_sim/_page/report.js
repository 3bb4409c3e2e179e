"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const title = document.getElementById("timeline-title");
  const about = document.getElementById("timeline-about");
  const back = document.getElementById("timeline-back");
  const place = document.getElementById("timeline-rows");
  const tries = Array.from(document.querySelectorAll(".tries a"));

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function heading(columns) {
    const row = make("tr");
    const time = make("th", "time", "time");
    time.scope = "col";
    row.append(time);
    for (const column of columns) {
      const cell = make("th", "", data.strings[column]);
      cell.scope = "col";
      row.append(cell);
    }
    const head = make("thead");
    head.append(row);
    return head;
  }

  function seconds(ns) {
    return (ns / 1e9).toFixed(4) + " s";
  }

  // A row is [time in ns, column, kind, text, lanes that are up] or [time, -1, words].
  function line(row, columns) {
    const element = make("tr");
    const time = make("th", "time", row[1] < 0 ? "⋮" : seconds(row[0]));
    time.scope = "row";
    element.append(time);
    if (row[1] < 0) {
      const gap = make("td", "gap", data.strings[row[2]]);
      gap.colSpan = columns.length;
      element.append(gap);
      return element;
    }
    columns.forEach(function (column, number) {
      const cell = make("td", Math.floor(row[4] / 2 ** number) % 2 ? "up" : "");
      if (number === row[1]) {
        cell.classList.add(data.kinds[row[2]]);
        cell.textContent = data.strings[row[3]];
        cell.dataset.column = data.strings[column];
      }
      element.append(cell);
    });
    return element;
  }

  function draw(run) {
    const table = make("table", "timeline");
    table.setAttribute("aria-labelledby", "timeline-title");
    table.append(heading(run.columns));
    const body = make("tbody");
    for (const row of run.rows) body.append(line(row, run.columns));
    table.append(body);
    place.replaceChildren(table);
  }

  // The fragment names the run that is shown: #run-12, or the report's own.
  function show(moved) {
    const found = /^#run-([0-9]+)$/.exec(location.hash);
    const number = found && Number(found[1]) < data.tries.length ? Number(found[1]) : -1;
    const run = number < 0 ? data.run : data.tries[number];
    draw(run);
    title.textContent = number < 0 ? "Timeline" : "Timeline of " + data.strings[run.name];
    about.textContent = data.strings[run.about];
    about.className = run.failed ? "outcome-broken" : "outcome-passed";
    back.hidden = number < 0;
    // The matrix stands in another order than the runs were made.
    const chosen = tries.find(function (one) { return one.hash === "#run-" + number; });
    for (const one of tries) {
      if (one === chosen) one.setAttribute("aria-current", "true");
      else one.removeAttribute("aria-current");
    }
    if (chosen) rove(chosen);
    if (number >= 0 || moved) {
      title.scrollIntoView();
      title.focus({ preventScroll: true });
    }
  }

  // One stop of the Tab key for the whole matrix; arrows move within it.
  function rove(to) {
    for (const one of tries) one.tabIndex = one === to ? 0 : -1;
  }

  function visible() {
    return tries.filter(function (one) { return one.offsetParent !== null; });
  }

  function neighbour(from, key) {
    const seen = visible();
    const at = seen.indexOf(from);
    if (key === "ArrowRight") return seen[at + 1];
    if (key === "ArrowLeft") return seen[at - 1];
    if (key === "Home") return seen[0];
    if (key === "End") return seen[seen.length - 1];
    const row = from.closest("tr");
    const rows = Array.from(document.querySelectorAll(".matrix tbody tr")).filter(function (one) {
      return one.offsetParent !== null;
    });
    const step = key === "ArrowDown" ? 1 : -1;
    const fault = from.closest("td").cellIndex - row.cells.length;
    for (let next = rows.indexOf(row) + step; next >= 0 && next < rows.length; next += step) {
      const cell = rows[next].cells[rows[next].cells.length + fault];
      const first = cell && cell.querySelector("a");
      if (first) return first;
    }
    return undefined;
  }

  const keys = ["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"];
  document.addEventListener("keydown", function (event) {
    const from = event.target.closest ? event.target.closest(".tries a") : null;
    if (!from || !keys.includes(event.key)) return;
    event.preventDefault();
    const to = neighbour(from, event.key);
    if (to) {
      rove(to);
      to.focus();
    }
  });

  const only = document.getElementById("only-bad");
  if (only) {
    only.addEventListener("change", function () {
      document.querySelector(".matrix").classList.toggle("only-bad", only.checked);
      const seen = visible();
      if (seen.length && !seen.some(function (one) { return one.tabIndex === 0; })) rove(seen[0]);
    });
  }

  if (tries.length) rove(tries[0]);
  window.addEventListener("hashchange", function () { show(true); });
  show(false);
})();
