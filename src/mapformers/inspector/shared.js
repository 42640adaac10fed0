"use strict";
// What both pages of the inspector need.
const at = (id) => document.getElementById(id);
const element = (name, text, type) => { const e = document.createElement(name); if (text !== undefined) e.textContent = text; if (type) e.className = type; return e; };
const bytesOf = (id) => {
  const text = atob(at(id).textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
};
const lazy = (make) => { const held = new Map(); return (id) => { if (!held.has(id)) held.set(id, make(bytesOf(id))); return held.get(id); }; };
const facts = JSON.parse(at("facts").textContent);
