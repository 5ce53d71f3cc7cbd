// Sorting and searching. A table's items are its bodies, each a row and its details, or else its rows.
"use strict";
const itemsOf = table => table.matches(".detailed") ? [...table.tBodies] : [...table.tBodies[0].rows];
const firstRow = item => item.rows ? item.rows[0] : item;

function valueOf(item, column) {
  const text = firstRow(item).cells[column].dataset.v;
  return text === "" || isNaN(text) ? text : Number(text);
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

function sort(button) {
  const head = button.closest("th"), table = head.closest("table");
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const items = itemsOf(table).map(item => [valueOf(item, head.cellIndex), item]);
  // Nothing comes last, whichever way.
  items.sort(([a], [b]) => (a === "") - (b === "") || sign * compare(a, b));
  const parent = items[0]?.[1].parentNode;
  for (const [, item] of items) parent.append(item);
}

const texts = new WeakMap();
function textOf(item) {
  if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
  return texts.get(item);
}

function find(id) {
  const words = document.querySelector(`[data-find="${id}"]`).value.toLowerCase().split(/\s+/).filter(Boolean);
  const group = document.querySelector(`select[data-group="${id}"]`)?.value ?? "";
  let shown = 0;
  for (const item of itemsOf(document.getElementById(id))) {
    const fits = (!group || item.dataset.group === group) && words.every(word => textOf(item).includes(word));
    item.hidden = !fits;
    shown += fits;
  }
  document.querySelector(`[data-found="${id}"]`).value = `${shown.toLocaleString("en")} shown`;
}

function open(button) {
  const details = itemsOf(document.getElementById(button.dataset.open))
    .filter(item => !item.hidden).flatMap(item => [...item.querySelectorAll("details")]);
  const opens = details.some(one => !one.open);
  for (const one of details) one.open = opens;
}

for (const button of document.querySelectorAll(".sort")) button.addEventListener("click", () => sort(button));
for (const input of document.querySelectorAll("[data-find]")) input.addEventListener("input", () => find(input.dataset.find));
for (const select of document.querySelectorAll("select[data-group]")) select.addEventListener("change", () => find(select.dataset.group));
for (const button of document.querySelectorAll("[data-open]")) button.addEventListener("click", () => open(button));
