// Call `pft serve` from JavaScript without a package (Node 18 or newer): `node client.mjs [URL]`.
// PFT_API_KEY in the environment is the key, for a server that has keys.

const url = process.argv[2] ?? "http://127.0.0.1:8000";
const scenario = "The school has given Samir a caravan without a word.";
const options = ["prudently rent the caravan", "audaciously rent the caravan"];

async function post(route, body) {
  const response = await fetch(`${url}/v1/${route}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${process.env.PFT_API_KEY ?? "none"}` },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  return response;
}

// Yield the text of a streamed reply; its events are lines of "data: JSON", and the last one says [DONE].
async function* streamed(response) {
  let rest = "";
  for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + bytes).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event.choices[0]?.delta?.content ?? "";
    }
  }
}

for (const preference of ["Daring", "Careful"]) {
  const chosen = await (await post("choose", { scenario, options, preference })).json();
  console.log(`${preference} chooses: ${chosen.option}`);
}

const messages = [{ role: "user", content: scenario }];
const body = { model: "policy", messages, preference: "Careful", max_tokens: 12, temperature: 0, stream: true };
let text = "";
for await (const part of streamed(await post("chat/completions", body))) text += part;
console.log(`Careful writes: ${text}`);
