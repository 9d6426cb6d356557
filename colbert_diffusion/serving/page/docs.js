// The API's operations, from openapi.json. Everything is text: textContent, never markup.
"use strict";

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function shape(schema, all) {
  if (!schema) return null;
  if (schema.$ref) return shape(all[schema.$ref.split("/").pop()], all);
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return shape(choices[0], all);
  if (schema.type === "array") return schema.prefixItems ? schema.prefixItems.map((item) => shape(item, all)) : [shape(schema.items, all)];
  if (schema.properties) {
    return Object.fromEntries(Object.entries(schema.properties).map(([name, field]) => [name, field.default ?? shape(field, all)]));
  }
  return schema.enum ? schema.enum.join(" | ") : schema.type;
}

async function start() {
  const described = await (await fetch("openapi.json")).json();
  const all = described.components.schemas;
  for (const [path, operations] of Object.entries(described.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const block = element("section", "", element("h2", `${method.toUpperCase()} ${path}`), element("p", operation.description));
      block.className = "operation";
      const parameters = (operation.parameters || []).map((p) => `${p.name}${p.required ? "" : "?"}`).join(", ");
      if (parameters) block.append(element("p", `Parameters: ${parameters}`));
      const body = operation.requestBody && operation.requestBody.content["application/json"].schema;
      if (body) block.append(element("p", "Body"), element("pre", JSON.stringify(shape(body, all), null, 1)));
      const answer = operation.responses["200"].content["application/json"].schema;
      block.append(element("p", "Answer"), element("pre", JSON.stringify(shape(answer, all), null, 1)));
      document.getElementById("operations").append(block);
    }
  }
}

start();
