"use strict";
// Without this script the page is complete, but can't be sorted, filtered or saved.
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const make = (tag, own, ...children) => {
    const element = Object.assign(document.createElement(tag), own);
    element.append(...children);
    return element;
  };
  const save = (name, ending, address) =>
    make("a", { download: name.toLowerCase().replace(/[^\w.-]+/g, "-") + ending, href: address }).click();

  // Tables are sorted by their header buttons. #sort=<table>,<column from 0>,<asc|desc> in the address does the same.
  const other = { asc: "desc", desc: "asc" };
  const key = (row, column) => row.cells[column].dataset.key;
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const sort = (table, column, direction) => {
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return direction === "asc" ? compare(x, y) : compare(y, x);
    });
    table.tBodies[0].append(...rows);
    [...table.tHead.rows[0].cells].forEach((cell, index) =>
      cell.setAttribute("aria-sort", index === column ? `${direction}ending` : "none"));
  };

  // Visible rows and columns as CSV: unrounded numbers, ends of intervals in columns of their own.
  const text = (cell) => {
    const copy = cell.cloneNode(true);
    all(".badge, small, .arrow, .none", copy).forEach((part) => part.remove());
    return copy.textContent.trim().replace(/\s+/g, " ").replace(/ %$/, "");
  };
  const csv = (table) => {
    const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    const shown = heads.map((_, index) => index).filter((index) => !heads[index].hidden);
    const ends = new Set(shown.filter((index) => rows.some((row) => row.cells[index].dataset.low)));
    const line = (values) => values.map((value) => {
      const safe = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
      return `"${String(safe).replace(/"/g, '""')}"`;
    }).join(",");
    const head = shown.flatMap((index) => {
      const name = text(heads[index]);
      return ends.has(index) ? [name, `${name}, low`, `${name}, high`] : [name];
    });
    const body = rows.map((row) => line(shown.flatMap((index) => {
      const cell = row.cells[index], { key: value, low = "", high = "" } = cell.dataset;
      const links = all("a[href$=json]", cell).map((link) => link.getAttribute("href")).join(" ");
      return [cell.matches(".num") && value !== undefined ? value : links || text(cell), ...(ends.has(index) ? [low, high] : [])];
    })));
    return `${[line(head), ...body].join("\r\n")}\r\n`;
  };

  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((cell, column) => cell.querySelector("button").addEventListener("click", () => {
      const now = cell.getAttribute("aria-sort").replace("ending", "");
      sort(table, column, now === "none" ? cell.dataset.first : other[now]);
    }));
    const tools = make("div", { className: "tools" });
    if (heads.length > 6) {
      tools.append(make("details", {}, make("summary", { textContent: "Columns" }), make("div", {},
        ...heads.slice(1).map((cell, index) => make("label", {}, make("input", {
          type: "checkbox", checked: true,
          onchange() { [...table.rows].forEach((row) => { row.cells[index + 1].hidden = !this.checked; }); },
        }), ` ${text(cell)}`)))));
    }
    const address = () => `data:text/csv;charset=utf-8,${encodeURIComponent(csv(table))}`;
    tools.append(make("button", { type: "button", textContent: "CSV", onclick: () => save(table.id, ".csv", address()) }));
    table.parentElement.before(tools);
  }

  // A chart as PNG, with the colours that it has now.
  for (const button of all("button.png")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const chart = button.parentElement.querySelector(".chart"), copy = chart.cloneNode(true), styles = getComputedStyle(chart);
      const width = 720, height = chart.height.baseVal.value;
      all("[hidden]", copy).forEach((part) => part.remove());
      for (const [name, value] of Object.entries({ xmlns: "http://www.w3.org/2000/svg", width, height })) copy.setAttribute(name, value);
      for (const name of ["page", "card", "ink", "muted", "line", "accent", "good"]) copy.style.setProperty(`--${name}`, styles.getPropertyValue(`--${name}`));
      copy.append(make("style", { textContent: document.querySelector("style").textContent }));
      const picture = new Image(), canvas = make("canvas", { width: 2 * (width + 40), height: 2 * (height + 70) });
      picture.onload = () => {
        const pen = canvas.getContext("2d");
        pen.scale(2, 2);
        pen.fillStyle = styles.getPropertyValue("--card");
        pen.fillRect(0, 0, width + 40, height + 70);
        pen.fillStyle = styles.getPropertyValue("--ink");
        pen.font = `600 15px ${styles.fontFamily}`;
        pen.fillText(chart.dataset.name, 20, 32, width);
        pen.drawImage(picture, 20, 50, width, height);
        save(chart.dataset.name, ".png", canvas.toDataURL());
      };
      picture.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
    });
  }

  // The filter hides rows, marks of charts and runs; charts close the gaps.
  const form = document.getElementById("filter");
  const filter = () => {
    const words = form.text.value.toLowerCase().split(/\s+/), board = form.board.value;
    const kinds = all("[name=kind]:checked", form).map((box) => box.value);
    for (const item of all("[data-kind]")) {
      const hit = kinds.includes(item.dataset.kind) && words.every((word) => item.dataset.text.includes(word));
      item.toggleAttribute("hidden", !hit || Boolean(item.dataset.board && board && item.dataset.board !== board));
    }
    for (const card of all("div[data-board]")) {
      card.hidden = Boolean(board && card.dataset.board !== board) || !card.querySelector("[data-kind]:not([hidden])");
    }
    for (const chart of all(".chart")) {
      let down = 0;
      for (const part of all(":scope > g:not([hidden])", chart)) {
        part.setAttribute("transform", `translate(0 ${down})`);
        down += Number(part.dataset.height || 22);
      }
      chart.setAttribute("height", down);
    }
    const runs = all("details.run");
    form.querySelector("output").textContent = `${runs.filter((run) => !run.hidden).length} of ${runs.length} runs`;
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  const follow = () => {
    const [, name, column, direction] = location.hash.match(/^#sort=([\w-]+),(\d+),(asc|desc)$/) || [];
    const table = name && document.getElementById(name);
    if (table && table.matches("table.sortable") && Number(column) < table.tHead.rows[0].cells.length) {
      sort(table, Number(column), direction);
      return;
    }
    // A link to a run opens it.
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", follow);
  follow();

  const opener = document.getElementById("open-all");
  if (opener) {
    opener.hidden = false;
    opener.addEventListener("click", () => {
      const runs = all("details.run"), open = runs.some((run) => !run.open);
      runs.forEach((run) => { run.open = open; });
      opener.textContent = open ? "Close all" : "Open all";
    });
  }
})();
