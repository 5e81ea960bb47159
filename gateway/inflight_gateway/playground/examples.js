// What the empty page offers: one request of each kind, with the settings that it needs.

const CITIES = {
  type: "object",
  properties: {
    cities: {
      type: "array",
      minItems: 3,
      maxItems: 3,
      items: {
        type: "object",
        properties: { name: { type: "string", maxLength: 24 }, country: { type: "string", maxLength: 24 } },
        required: ["name", "country"],
        additionalProperties: false,
      },
    },
  },
  required: ["cities"],
  additionalProperties: false,
};

const WEATHER = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city right now",
      parameters: {
        type: "object",
        properties: { city: { type: "string", maxLength: 32 }, unit: { enum: ["celsius", "fahrenheit"] } },
        required: ["city", "unit"],
        additionalProperties: false,
      },
    },
  },
];

const written = (value) => JSON.stringify(value, null, 2);

export const EXAMPLES = {
  plain: { ask: "Why do planes fly? Answer in a few sentences.", settings: { format: "text", tools: "" } },
  schema: {
    ask: "Name three large cities and their countries.",
    settings: { format: "json_schema", schema: written(CITIES), tools: "" },
  },
  tool: {
    ask: "What is the weather in Paris?",
    settings: { format: "text", tools: written(WEATHER), tool_choice: "required" },
  },
};
