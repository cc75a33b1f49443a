export { Recogniser } from "./recogniser.js";
export { ModelError } from "./model-folder.js";
export { AudioError } from "./signal.js";
export { readRecording, readWav } from "./wav.js";
