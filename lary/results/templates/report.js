"use strict";
// Tables are sorted by their header buttons. #sort=<table>,<column from 0>,<asc|desc> in the address does the same.
(() => {
  const other = { asc: "desc", desc: "asc" };
  const key = (row, column) => row.cells[column].dataset.key;

  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };

  const sort = (table, column, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return direction === "asc" ? compare(x, y) : compare(y, x);
    });
    body.append(...rows);
    [...table.tHead.rows[0].cells].forEach((cell, index) =>
      cell.setAttribute("aria-sort", index === column ? `${direction}ending` : "none"));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      cell.querySelector("button").addEventListener("click", () => {
        const now = cell.getAttribute("aria-sort").replace("ending", "");
        sort(table, column, now === "none" ? cell.dataset.first : other[now]);
      });
    });
  }

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

  const all = document.getElementById("open-all");
  if (all) {
    all.hidden = false;
    all.addEventListener("click", () => {
      const runs = [...document.querySelectorAll("details.run")];
      const open = runs.some((run) => !run.open);
      runs.forEach((run) => { run.open = open; });
      all.textContent = open ? "Close all" : "Open all";
    });
  }
})();
