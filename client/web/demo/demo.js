import * as ort from "./runtime/ort.wasm.min.mjs";
import { Recogniser, readRecording } from "./sottovoce/index.js";

const element = (id) => document.getElementById(id);
const LONGEST_S = 10;
let recogniser = null;
let last = null;

function say(sentence) {
  element("state").textContent = sentence;
}

/** What an answer means, in a sentence with its doubt. */
function describe(answer) {
  if (answer.emotion === null) return answer.abstention === "no speech" ? "Nobody speaks in it" : "Not sure";
  const others = answer.set.filter((emotion) => emotion !== answer.emotion);
  return `Sounds ${answer.emotion}${others.length ? `, or perhaps ${others.join(" or ")}` : ""}`;
}

function show(answer) {
  element("answer").hidden = false;
  element("sentence").textContent = describe(answer);
  const sets = answer.set.length ? `About ${Math.round(100 * answer.coverage)} times in 100 the right emotion is one of: ${answer.set.join(", ")}.` : "";
  element("doubt").textContent = [answer.reason && `No answer: ${answer.reason}.`, sets, answer.nextStep && `What helps: ${answer.nextStep}.`]
    .filter(Boolean)
    .join(" ");
  const ranked = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  element("chances").replaceChildren(
    ...ranked.map(([emotion, chance]) => {
      const row = document.createElement("tr");
      for (const text of [emotion, `${Math.round(100 * chance)} %`, answer.set.includes(emotion) ? "no" : "yes"]) {
        row.insertCell().textContent = text;
      }
      return row;
    }),
  );
}

async function listen(signal) {
  last = signal;
  say("Listening …");
  show(await recogniser.predict(signal));
  element("learn").disabled = false;
  say("Done.");
}

/** Runs what a button asks for; what goes wrong is said on the page. */
function guarded(work) {
  return async (event) => {
    try {
      await work(event);
    } catch (error) {
      say(error.message);
    }
  };
}

/** Records from the microphone until the button is pressed again. */
async function record() {
  const media = await navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  const context = new AudioContext();
  await context.audioWorklet.addModule("microphone.js");
  const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
  const pieces = [];
  node.port.onmessage = ({ data }) => pieces.push(data);
  context.createMediaStreamSource(media).connect(node);
  say("Speak, then press the button again.");
  const button = element("microphone");
  button.textContent = "Stop";
  await new Promise((done) => {
    button.addEventListener("click", done, { once: true });
    setTimeout(done, 1000 * LONGEST_S);
  });
  button.textContent = "Speak";
  media.getTracks().forEach((track) => track.stop());
  const rate = Math.round(context.sampleRate);
  await context.close();
  const samples = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  pieces.reduce((at, piece) => (samples.set(piece, at), at + piece.length), 0);
  if (!samples.length) throw new Error("The microphone gave no sound.");
  await listen({ samples, rate, defects: [] });
}

let recording = false;
element("microphone").addEventListener("click", guarded(async () => {
  if (recording) return;
  recording = true;
  await record().finally(() => { recording = false; });
}));
element("file").addEventListener("change", guarded(async ({ target }) => {
  if (target.files[0]) await listen(await readRecording(target.files[0]));
}));
element("learn").addEventListener("click", guarded(async () => {
  const count = await recogniser.learnVoice(last);
  await listen(last);
  say(`Used to your voice by ${count} recording${count === 1 ? "" : "s"}, until this page is closed.`);
}));

guarded(async () => {
  recogniser = await Recogniser.open("model/", { ort, detector: "detector.onnx" });
  element("file").disabled = element("microphone").disabled = false;
  say("Ready.");
})();
