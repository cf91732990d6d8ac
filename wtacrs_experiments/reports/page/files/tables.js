"use strict";
// Sorts, filters and copies the tables; what is copied are the rows shown, in the order shown.

// By numbers where the column has them, else by words; what is missing comes last, both ways.
function sortRows(table, column, descending) {
  const body = table.tBodies[0];
  const keys = new Map([...body.rows].map((row) => [row, sortKey(row.cells[column])]));
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return descending ? -order : order;
  });
  body.append(...rows);
}

function sortKey(cell) {
  if (cell.dataset.number !== undefined)
    return cell.dataset.number === "" ? null : Number(cell.dataset.number);
  const text = cell.textContent.trim();
  return text === "–" ? null : text;
}

function onSort(event) {
  const head = event.target.closest("th");
  const table = head.closest("table");
  const descending = head.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("[aria-sort]").forEach((other) => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  sortRows(table, head.cellIndex, descending);
}

// What a row says, but for where it comes from.
function said(row) {
  const cells = row.cells ? [...row.cells].filter((cell) => !cell.querySelector("details")) : [row];
  return cells
    .map((cell) => cell.textContent)
    .join(" ")
    .toLowerCase();
}

// A row stays if it holds every word that is asked for.
function onFilter(event) {
  const words = event.target.value.toLowerCase().split(/\s+/);
  document.querySelectorAll(event.target.dataset.filters).forEach((row) => {
    const text = said(row);
    row.hidden = !words.every((word) => text.includes(word));
  });
  document.querySelectorAll("#tables article").forEach((article) => {
    const rows = [...article.querySelectorAll("tbody tr")];
    const shown = rows.filter((row) => !row.hidden).length;
    say(article, shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`);
  });
}

function say(article, text) {
  article.querySelector("[role=status]").textContent = text;
}

async function onCopy(event) {
  const article = event.target.closest("article");
  const format = event.target.dataset.copy;
  const { frame, rows } = content.copies[article.id];
  const shown = [...article.querySelectorAll("tbody tr")].filter((row) => !row.hidden);
  const [before, after] = frame[format];
  const text = before + shown.map((row) => rows[row.dataset.at][format]).join("") + after;
  const box = article.querySelector("textarea");
  try {
    await navigator.clipboard.writeText(text);
    box.hidden = true;
    say(article, `copied ${shown.length} rows`);
  } catch {
    // a browser that gives no clipboard to pages from the disk
    box.hidden = false;
    box.value = text;
    box.select();
    say(article, "selected below the table: press Ctrl+C");
  }
}

document
  .querySelectorAll("thead button")
  .forEach((button) => button.addEventListener("click", onSort));
document
  .querySelectorAll("[data-filters]")
  .forEach((field) => field.addEventListener("input", onFilter));
document
  .querySelectorAll("[data-copy]")
  .forEach((button) => button.addEventListener("click", onCopy));
