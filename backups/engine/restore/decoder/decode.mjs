// A second decoder of docs/backup-format.md, written from that page alone and with node:crypto alone.
//
//   node decode.mjs --key HEX --organisation O --server S --path P --restore-point R < stream > plaintext
//
// Nothing is written before the whole stream was found right. Exit code 1 and one line on standard error otherwise.
import { createDecipheriv, createHmac, hkdfSync, timingSafeEqual } from "node:crypto";
import { readFileSync, writeSync } from "node:fs";
import { parseArgs } from "node:util";

const HEADER = 128, CHUNK = 1048576, TAG = 16, SEALED = CHUNK + TAG, MAX_CHUNKS = 2 ** 32;

class Refused extends Error {}

const rotate = (word, by) => ((word << by) | (word >>> (32 - by))) >>> 0;

function quarterRound(s, a, b, c, d) {
  s[a] = s[a] + s[b]; s[d] = rotate(s[d] ^ s[a], 16);
  s[c] = s[c] + s[d]; s[b] = rotate(s[b] ^ s[c], 12);
  s[a] = s[a] + s[b]; s[d] = rotate(s[d] ^ s[a], 8);
  s[c] = s[c] + s[d]; s[b] = rotate(s[b] ^ s[c], 7);
}

export function hchacha20(key, nonce) {
  const start = Buffer.concat([Buffer.from("expand 32-byte k", "ascii"), key, nonce]);
  const s = Uint32Array.from({ length: 16 }, (_, i) => start.readUInt32LE(4 * i));
  for (let round = 0; round < 10; round++) {
    quarterRound(s, 0, 4, 8, 12); quarterRound(s, 1, 5, 9, 13);
    quarterRound(s, 2, 6, 10, 14); quarterRound(s, 3, 7, 11, 15);
    quarterRound(s, 0, 5, 10, 15); quarterRound(s, 1, 6, 11, 12);
    quarterRound(s, 2, 7, 8, 13); quarterRound(s, 3, 4, 9, 14);
  }
  const out = Buffer.alloc(32);
  [0, 1, 2, 3, 12, 13, 14, 15].forEach((word, i) => out.writeUInt32LE(s[word], 4 * i));
  return out;
}

function names({ organisation, server, path, restorePoint }) {
  const parts = [Buffer.from([1])];
  for (const name of [organisation, server, path, restorePoint]) {
    const raw = Buffer.from(name, "utf8"), length = Buffer.alloc(2);
    length.writeUInt16BE(raw.length);
    parts.push(length, raw);
  }
  return Buffer.concat(parts);
}

function chunkCipher(cipher, okm) {
  const key = okm.subarray(64, 96);
  if (cipher === 2) return { name: "aes-256-gcm", key, prefix: okm.subarray(96, 103) };
  const prefix = okm.subarray(96, 115);
  return {
    name: "chacha20-poly1305",
    key: hchacha20(key, prefix.subarray(0, 16)),
    prefix: Buffer.concat([Buffer.alloc(4), prefix.subarray(16)]),
  };
}

function openHeader(stream, dek, context) {
  if (stream.length < HEADER) throw new Refused("truncated: shorter than a header");
  const header = stream.subarray(0, HEADER), cipher = header[9];
  if (header.toString("latin1", 0, 8) !== "HEARTHST" || header[8] !== 1 || ![1, 2].includes(cipher)
    || header.readUInt16BE(10) !== 0 || header.readUInt32BE(12) !== CHUNK) throw new Refused("unknown format");
  const okm = Buffer.from(hkdfSync("sha256", dek, header.subarray(32, 64), header.subarray(0, 32), 128));
  if (!timingSafeEqual(okm.subarray(0, 32), header.subarray(64, 96))) throw new Refused("wrong key");
  const tag = createHmac("sha256", okm.subarray(32, 64)).update(header.subarray(0, 96)).update(context).digest();
  if (!timingSafeEqual(tag, header.subarray(96, 128))) throw new Refused("wrong context");
  return { ...chunkCipher(cipher, okm), associated: Buffer.concat([header, context]) };
}

function openChunk({ name, key, prefix, associated }, index, sealed) {
  if (sealed.length < TAG) throw new Refused(`truncated at chunk ${index}`);
  if (index >= MAX_CHUNKS) throw new Refused("too long");
  const place = Buffer.alloc(5);
  place.writeUInt32BE(index);
  place[4] = sealed.length < SEALED ? 1 : 0;
  const decipher = createDecipheriv(name, key, Buffer.concat([prefix, place]), { authTagLength: TAG });
  const text = sealed.subarray(0, -TAG);
  decipher.setAAD(associated, { plaintextLength: text.length });
  decipher.setAuthTag(sealed.subarray(-TAG));
  const plain = decipher.update(text);
  try {
    decipher.final();
  } catch {
    throw new Refused(`corrupted chunk ${index}`);
  }
  return plain;
}

export function decode(stream, dek, context) {
  const opener = openHeader(stream, dek, names(context)), plain = [];
  for (let index = 0, last = false; !last; index++) {
    const sealed = stream.subarray(HEADER + index * SEALED, HEADER + (index + 1) * SEALED);
    plain.push(openChunk(opener, index, sealed));
    last = sealed.length < SEALED;
  }
  return Buffer.concat(plain);
}

const text = { type: "string", default: "" };
const { values } = parseArgs({
  options: { key: text, organisation: text, server: text, path: text, "restore-point": text },
});
try {
  const context = { ...values, restorePoint: values["restore-point"] };
  const plain = decode(readFileSync(0), Buffer.from(values.key, "hex"), context);
  for (let at = 0; at < plain.length;) at += writeSync(1, plain, at);
} catch (error) {
  if (!(error instanceof Refused)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
