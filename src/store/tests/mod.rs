//! Tests of the whole store, and what they share.

mod audit;
mod backing_up;
mod counting;
mod events;
mod history;
mod opening;
mod restamping;
mod rotating;
mod sealing;
mod spilling;
mod verbs;
mod writing;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;
use tempfile::TempDir;

use super::session::Trouble;
use super::*;
use crate::refresh::grant::{Grant, GrantKey, Standing};
use crate::refresh::horizon::Due;
use crate::refresh::time::UnixTime;
use crate::refresh::token::{AccessToken, RefreshToken, RefreshTokenEnd, TokenKind, TokenSet};

/// Makes the disk fail on demand.
#[derive(Default)]
pub(super) struct Faults {
    /// Steps until the one that fails; never, from zero down.
    left: AtomicI64,
    /// How many after that one fail too.
    more: AtomicI64,
    /// All fail.
    refusing: AtomicBool,
    full: AtomicBool,
}

impl Faults {
    /// Lets the `nth` write or commit from now on fail once.
    pub(super) fn fail_nth(&self, nth: i64) {
        self.fail_from(nth, 1);
    }

    /// Lets the `nth` step from now on fail, and those after it, `times` in all.
    pub(super) fn fail_from(&self, nth: i64, times: i64) {
        self.more.store(times - 1, Ordering::SeqCst);
        self.left.store(nth, Ordering::SeqCst);
    }

    /// Returns whether the fault is still to come.
    pub(super) fn is_pending(&self) -> bool {
        self.left.load(Ordering::SeqCst) > 0
    }

    pub(super) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    pub(super) fn full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    pub(super) fn step(&self) -> Result<(), Trouble> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        let fails = left == 1 || (left == 0 && self.more.fetch_sub(1, Ordering::SeqCst) > 0);
        if !fails && !self.refusing.load(Ordering::SeqCst) {
            return Ok(());
        }
        if self.more.load(Ordering::SeqCst) > 0 {
            self.left.store(0, Ordering::SeqCst);
        }
        let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_WRITE);
        Err(Trouble::Sqlite(rusqlite::Error::SqliteFailure(
            error,
            Some("injected".into()),
        )))
    }
}

/// For tests of what stands on a store.
impl Store {
    /// Lets the disk refuse all writes from now on, or take them again.
    pub(crate) fn refuse_writes(&self, refuse: bool) {
        let refusing = &self.inner.disk.faults.refusing;
        refusing.store(refuse, Ordering::SeqCst);
    }
}

/// A store in a directory of its own.
struct Bench {
    dir: TempDir,
    kek: Kek,
    store: Store,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let kek = Kek::generate();
        let store = Store::open(options(dir.path(), &kek)).unwrap();
        Bench { dir, kek, store }
    }

    async fn reopen(self) -> Bench {
        self.store.close().await;
        let store = Store::open(options(self.dir.path(), &self.kek)).unwrap();
        Bench { store, ..self }
    }

    /// A connection of somebody who can write the database file.
    fn sql(&self) -> Connection {
        schema::connect_writer(&self.dir.path().join("freshd.db"), Duration::from_secs(5)).unwrap()
    }

    fn edit(&self, sql: &str) {
        assert!(
            self.sql().execute(sql, []).unwrap() > 0,
            "{sql} changes something"
        );
    }

    fn faults(&self) -> &Faults {
        &self.store.inner.disk.faults
    }

    async fn import(&self, user: &str) -> Grant {
        match self.store.import(import(user)).await.unwrap() {
            Imported::Created(grant) => grant,
            other => panic!("{other:?}"),
        }
    }

    /// Every row of every table.
    fn dump(&self) -> BTreeMap<&'static str, Vec<Vec<Value>>> {
        let conn = self.sql();
        let tables = [
            "grants",
            "marks",
            "history",
            "events",
            "activity",
            "providers",
            "revocations",
            "counters",
        ];
        let rows = |table| {
            let mut all = conn.prepare(&format!("SELECT * FROM {table}")).unwrap();
            let columns = all.column_count();
            all.query_map([], |row| (0..columns).map(|nth| row.get(nth)).collect())
                .unwrap()
                .map(Result::unwrap)
                .collect()
        };
        tables
            .into_iter()
            .map(|table| (table, rows(table)))
            .collect()
    }
}

fn options(dir: &Path, kek: &Kek) -> Options {
    Options {
        dir: dir.into(),
        kek: kek.clone(),
        busy_timeout: Duration::from_secs(10),
    }
}

fn at(secs: i64) -> UnixTime {
    UnixTime::from_secs(1_790_000_000 + secs)
}

fn key(user: &str) -> GrantKey {
    GrantKey {
        namespace: "default".into(),
        user: user.into(),
        provider: "hubspot".into(),
        account: String::new(),
    }
}

fn tokens(name: &str) -> TokenSet {
    TokenSet {
        access_token: Some(AccessToken::new(format!("access-{name}"))),
        token_type: "Bearer".into(),
        expires_at: Some(at(3600)),
        obtained_at: at(0),
        refresh_token: Some(RefreshToken::new(format!("refresh-{name}"))),
        refresh_token_end: Some(RefreshTokenEnd {
            expires_at: at(90_000),
            warn_at: Some(at(81_000)),
        }),
        scope: Some("crm.read crm.write".into()),
    }
}

fn import(user: &str) -> Import {
    Import {
        key: key(user),
        tokens: tokens(user),
        due_at: Some(at(3000)),
        standing: Standing::Active,
        replace: false,
        at: at(0),
    }
}

fn replacing(user: &str, name: &str) -> Import {
    Import {
        tokens: tokens(name),
        replace: true,
        at: at(50),
        ..import(user)
    }
}

/// What an attempt that presented `grant`'s refresh token brought.
fn commit(grant: &Grant, name: &str) -> TokenCommit {
    TokenCommit {
        id: grant.id,
        provider: grant.key.provider.clone(),
        presented_generation: grant.generation,
        tokens: Arc::new(tokens(name)),
        due_at: Some(at(6000)),
        standing: Standing::Active,
        unused_refreshes: 1,
        at: at(100),
    }
}

fn failure(code: &str) -> Failure {
    Failure {
        code: code.into(),
        status: None,
        due_at: Some(at(200)),
        failures: 1,
        fate_unknown: false,
        refused_since: None,
        needs_authorization: None,
        at: at(100),
    }
}

fn applied(cas: Result<Cas, StoreError>) -> Grant {
    match cas.unwrap() {
        Cas::Applied(grant) => grant,
        Cas::Lost => panic!("lost"),
    }
}

async fn waiting_revocations(store: &Store) -> Vec<(String, TokenKind, String)> {
    let mut waiting = Vec::new();
    for provider in store.revocations_due_at(UnixTime::MAX).await.unwrap() {
        let jobs = store.revocations_due(&provider, UnixTime::MAX, 100).await;
        let jobs = jobs.unwrap().into_iter();
        waiting.extend(jobs.map(|job| (job.provider, job.kind, job.token.to_string())));
    }
    waiting
}
