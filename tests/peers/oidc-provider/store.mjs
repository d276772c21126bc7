// The server's memory. The built-in one keeps about 1,000 entries and silently drops tokens, and it
// checks "consumed" and marks it later; this one keeps everything, and `consume` is compare-and-set.

import { errors } from 'oidc-provider';

// Keeps the event loop turning between reading a token and consuming it, as a database would:
// without that, simultaneous uses of one refresh token could never meet.
const pause = () => new Promise((resolve) => setImmediate(resolve));

export const counters = {
  // Refresh tokens presented after they had been used; each one killed its family.
  replays: 0,
};

const models = new Map(); // model name -> id -> entry
const families = new Map(); // grant id -> ids of its entries
const dead = new Set(); // grant ids whose family was revoked

export function revokeFamily(grantId) {
  dead.add(grantId);
  for (const { model, id } of families.get(grantId) ?? []) models.get(model)?.delete(id);
  families.delete(grantId);
}

// Returns the ids of the living grants of one user.
export function grantsOf(accountId) {
  return [...(models.get('Grant') ?? [])]
    .filter(([, entry]) => entry.payload.accountId === accountId)
    .map(([id]) => id);
}

export class Store {
  constructor(model) {
    this.model = model;
    if (!models.has(model)) models.set(model, new Map());
    this.entries = models.get(model);
  }

  async upsert(id, payload, expiresIn) {
    const { grantId } = payload;
    // A token saved by a request that was under way when its family was revoked is dead on arrival.
    if (grantId && dead.has(grantId)) return;
    if (grantId) {
      if (!families.has(grantId)) families.set(grantId, []);
      families.get(grantId).push({ model: this.model, id });
    }
    const expiresAt = expiresIn === undefined ? Infinity : Date.now() + expiresIn * 1000;
    this.entries.set(id, { payload, expiresAt });
  }

  async find(id) {
    await pause();
    const entry = this.entries.get(id);
    if (!entry || entry.expiresAt <= Date.now()) return undefined;
    if (this.model === 'RefreshToken' && entry.payload.consumed) counters.replays += 1;
    return { ...entry.payload };
  }

  async findByUid(uid) {
    return [...this.entries.values()].find((entry) => entry.payload.uid === uid)?.payload;
  }

  async findByUserCode(userCode) {
    return [...this.entries.values()].find((entry) => entry.payload.userCode === userCode)?.payload;
  }

  // Check and mark in one step: of simultaneous uses one wins, and the others end the family.
  async consume(id) {
    const entry = this.entries.get(id);
    if (!entry || entry.payload.consumed) {
      counters.replays += 1;
      if (entry?.payload.grantId) revokeFamily(entry.payload.grantId);
      throw new errors.InvalidGrant('already used');
    }
    entry.payload.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    this.entries.delete(id);
  }

  async revokeByGrantId(grantId) {
    revokeFamily(grantId);
  }
}
