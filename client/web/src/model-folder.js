// The folder of an exported model, whole and verified: manifest.json hashes every file.

const FEATURE_VERSIONS = [2];

/** A model that is missing, damaged, or of another release. */
export class ModelError extends Error {}

/** Loads record and graph; with a digest, the manifest must have that SHA-256. */
export async function loadFolder(url, { digest } = {}) {
  const base = new URL(`${String(url).replace(/\/?$/, "/")}`, globalThis.location?.href);
  const raw = await load(new URL("manifest.json", base));
  if (digest && (await hash(raw)) !== digest) throw new ModelError("the model's manifest is not the one that was asked for");
  const { files } = JSON.parse(new TextDecoder().decode(raw));
  const [record, graph] = await Promise.all(
    ["model.json", "model.onnx"].map(async (name) => {
      const content = await load(new URL(name, base));
      if ((await hash(content)) !== files[name]) {
        throw new ModelError(`${name} is damaged or altered; copy the folder again`);
      }
      return content;
    }),
  );
  return { record: readRecord(JSON.parse(new TextDecoder().decode(record))), graph };
}

// What a record leaves out has its usual value, as in Python.
const USUAL = { schema: 1, format: "onnx", basis_tag: "", familiar_speech: null, unknown_voice_temperature: 1, voice_prior_utterances: 5 };

function readRecord(content) {
  const record = { ...USUAL, ...content };
  if (record.schema !== 1 || record.format !== "onnx" || !FEATURE_VERSIONS.includes(record.feature_version)) {
    throw new ModelError("the model is of another release: export it anew, or take that release's package");
  }
  return record;
}

async function load(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new ModelError(`${url} cannot be loaded (${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function hash(content) {
  if (!globalThis.crypto?.subtle) throw new ModelError("a model is verified over https or on localhost only");
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
