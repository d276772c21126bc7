//! What is on disk: rows, revocations, and what is kept of providers and users.

use std::collections::BTreeMap;

use freshd::refresh::grant::{AccessFacts, Grant, GrantId, GrantKey, Mark, PauseReason, Standing};
use freshd::refresh::reading::Readable;
use freshd::refresh::time::UnixTime;
use freshd::refresh::token::{AccessToken, RefreshToken, TokenSet};

use super::{Import, ProviderState, RevocationId, TokenCommit};

/// A grant's refresh tokens are remembered for so many generations, as in `src/store/fingerprints.rs`.
const REMEMBERED: u64 = 32;

#[derive(Clone)]
pub struct Row {
    pub grant: Grant,
    pub access_token: Option<AccessToken>,
    pub refresh_token: Option<RefreshToken>,
    /// What its tokens are sealed with.
    pub key: u32,
    known: Vec<(u64, RefreshToken)>,
}

#[derive(Clone)]
pub struct Job {
    pub id: RevocationId,
    pub provider: String,
    pub token: String,
    pub tries: u32,
    pub created_at: UnixTime,
    pub next_at: UnixTime,
    pub key: u32,
}

#[derive(Clone, Default)]
pub struct Durable {
    pub rows: BTreeMap<GrantId, Row>,
    pub ids: BTreeMap<GrantKey, GrantId>,
    pub revocations: BTreeMap<RevocationId, Job>,
    pub providers: BTreeMap<String, ProviderState>,
    pub activity: BTreeMap<(String, String), UnixTime>,
    pub written_at: Option<UnixTime>,
    used_ids: i64,
    used_jobs: i64,
}

impl Durable {
    /// What everything is sealed with.
    pub fn keys(&self) -> impl Iterator<Item = u32> {
        let rows = self.rows.values().map(|row| row.key);
        rows.chain(self.revocations.values().map(|job| job.key))
    }

    pub fn find(&self, key: &GrantKey) -> Option<&Row> {
        self.rows.get(self.ids.get(key)?)
    }

    pub fn at_generation(&mut self, id: GrantId, generation: u64) -> Option<&mut Row> {
        let row = self.rows.get_mut(&id)?;
        (row.grant.generation == generation).then_some(row)
    }

    pub fn create(&mut self, import: &Import, key: u32) -> Grant {
        self.used_ids += 1;
        let id = GrantId(self.used_ids);
        let mut row = Row {
            grant: Grant {
                id,
                ..Grant::imported(import.key.clone(), &import.tokens, import.at)
            },
            access_token: None,
            refresh_token: None,
            key,
            known: Vec::new(),
        };
        row.take_in(import, key);
        let grant = row.grant.clone();
        self.ids.insert(import.key.clone(), id);
        self.rows.insert(id, row);
        grant
    }

    pub fn remove(&mut self, key: &GrantKey) -> Option<Row> {
        let id = self.ids.remove(key)?;
        self.rows.remove(&id)
    }

    pub fn queue_lost_set(&mut self, commit: &TokenCommit, key: u32) {
        let Some(token) = &commit.tokens.refresh_token else {
            return;
        };
        let row = self.rows.get(&commit.id);
        if !row.is_some_and(|row| row.knows(token)) {
            self.queue(&commit.provider, token.expose(), commit.at, key);
        }
    }

    pub fn queue(&mut self, provider: &str, token: &str, at: UnixTime, key: u32) {
        self.used_jobs += 1;
        let job = Job {
            id: RevocationId(self.used_jobs),
            provider: provider.to_owned(),
            token: token.to_owned(),
            tries: 0,
            created_at: at,
            next_at: at,
            key,
        };
        self.revocations.insert(job.id, job);
    }

    /// What `freshctl restore` makes of a copy: who was erased since stays erased, what rotates waits to be released.
    pub fn restored(
        mut self,
        made_at: UnixTime,
        at: UnixTime,
        erased: &[GrantKey],
        rotates: impl Fn(&str) -> bool,
    ) -> Durable {
        for key in erased {
            self.remove(key);
        }
        let absent = [PauseReason::Inactive, PauseReason::Unused].map(Standing::Paused);
        for row in self.rows.values_mut() {
            let grant = &mut row.grant;
            if !rotates(&grant.key.provider) {
                continue;
            }
            if grant.standing == Standing::Active || absent.contains(&grant.standing) {
                grant.version += 1;
                grant.standing = Standing::Paused(PauseReason::Restored);
                grant.standing_since = at;
                grant.due_at = None;
            }
            grant.mark.get_or_insert(Mark {
                first_sent_at: made_at,
                presented: 1,
            });
        }
        self
    }
}

impl Row {
    pub fn take_in(&mut self, import: &Import, key: u32) {
        let grant = &mut self.grant;
        grant.version += 1;
        grant.standing = import.standing;
        grant.standing_since = import.at;
        grant.due_at = import.due_at;
        grant.imported_at = import.at;
        grant.refreshed_at = None;
        grant.attempted_at = None;
        grant.failures = 0;
        grant.last_failure = None;
        grant.refused_since = None;
        grant.unused_refreshes = 0;
        let generation = grant.generation + 1;
        self.put(generation, &import.tokens, key);
    }

    /// Takes what an attempt brought. A pause that came meanwhile stays.
    pub fn commit(&mut self, commit: &TokenCommit, key: u32) {
        let grant = &mut self.grant;
        (grant.standing, grant.due_at) = match grant.standing {
            put @ Standing::Paused(
                PauseReason::Admin | PauseReason::Held | PauseReason::Restored,
            ) if put != commit.standing => (put, None),
            _ => (commit.standing, commit.due_at),
        };
        grant.version += 1;
        grant.refreshed_at = Some(commit.at);
        grant.attempted_at = Some(commit.at);
        grant.failures = 0;
        grant.last_failure = None;
        grant.refused_since = None;
        grant.unused_refreshes = commit.unused_refreshes;
        let generation = grant.generation + 1;
        self.put(generation, &commit.tokens, key);
    }

    /// Takes a token set; the mark goes.
    fn put(&mut self, generation: u64, tokens: &TokenSet, key: u32) {
        let grant = &mut self.grant;
        grant.generation = generation;
        grant.access = tokens.access_token.as_ref().map(|_| AccessFacts {
            token_type: tokens.token_type.clone(),
            obtained_at: tokens.obtained_at,
            expires_at: tokens.expires_at,
        });
        grant.has_refresh_token = tokens.refresh_token.is_some();
        grant.refresh_token_end = tokens.refresh_token_end;
        grant.scope.clone_from(&tokens.scope);
        grant.mark = None;
        self.key = key;
        self.access_token.clone_from(&tokens.access_token);
        self.refresh_token.clone_from(&tokens.refresh_token);
        if let Some(token) = &tokens.refresh_token {
            self.known
                .retain(|(at, known)| known != token && *at + REMEMBERED > generation);
            self.known.push((generation, token.clone()));
        }
    }

    pub fn knows(&self, token: &RefreshToken) -> bool {
        self.known.iter().any(|(_, known)| known == token)
    }

    pub fn readable(&self) -> Readable {
        Readable::new(self.grant.clone(), self.access_token.clone())
    }
}
