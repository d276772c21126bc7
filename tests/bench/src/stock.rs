//! Stores with many grants: filled once through the store's own verbs, kept below target/, copied for each run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use freshd::refresh::grant::{GrantKey, Standing};
use freshd::refresh::time::UnixTime;
use freshd::refresh::token::{AccessToken, RefreshToken, TokenSet};
use freshd::store::{Import, Imported, Kek, Options, ProviderState, SCHEMA_VERSION, Store};
use futures_util::future::join_all;
use rusqlite::Connection;

use crate::daemon::Site;
use crate::owned::remove;
use crate::{Error, Lab};

/// The length of every access token.
pub const TOKEN_BYTES: usize = 1200;
/// The provider of nearly all grants.
pub const MAIN: &str = "main";
/// The provider of every fiftieth grant.
pub const OTHER: &str = "other";
/// How the policy of a provider with default margins is named; see `Policy::schedule`.
const SCHEDULE: &str = "300000";
/// Nothing of a stock is due, and no token ends, before so many days have passed.
const FAR: Duration = Duration::from_secs(300 * 86_400);
/// Imports that wait for the writer at once.
const BATCH: u64 = 8192;

/// Returns the provider of the `nth` grant, counted from 0.
pub fn provider(nth: u64) -> &'static str {
    if nth % 50 == 49 { OTHER } else { MAIN }
}

/// Returns the user of the `nth` grant.
pub fn user(nth: u64) -> String {
    format!("user-{nth:08}")
}

/// Returns the path at which the token of the `nth` grant is read.
pub fn token_path(nth: u64) -> String {
    format!("/v1/users/{}/grants/{}/token", user(nth), provider(nth))
}

/// Returns an access token of [`TOKEN_BYTES`] bytes.
pub fn access_token(nth: u64, generation: u64) -> String {
    let mut token = format!("a.{nth:010}.{generation:06}.");
    let mut state = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ generation;
    while token.len() < TOKEN_BYTES {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) as usize % 62;
        token.push(char::from(
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[at],
        ));
    }
    token
}

/// Returns a refresh token that says whose it is.
pub fn refresh_token(nth: u64, generation: u64) -> String {
    format!(
        "r.{nth:010}.{generation:06}.{:044}",
        nth * 7919 + generation
    )
}

/// Returns whose a refresh token is, and its generation.
pub fn read_refresh_token(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.strip_prefix("r.")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

/// Puts a store of `grants` grants into the site, none of them due.
pub fn put(lab: &Lab, site: &Site, grants: u64) -> Result<(), Error> {
    let stock = filled(lab, grants)?;
    for name in ["state", "key"] {
        let to = site.dir.join(name);
        let _ = std::fs::remove_dir_all(&to);
        let copied = Command::new("cp")
            .arg("-a")
            .arg("--reflink=auto")
            .arg(stock.join(name))
            .arg(&to)
            .status()?;
        if !copied.success() {
            return Err(format!("cp ended with {copied}").into());
        }
    }
    // What was filled days ago would count as users who are away.
    let conn = open(&site.database())?;
    let oldest: i64 = conn.query_row(
        "SELECT coalesce(min(imported_at), 0) FROM grants WHERE id < 100",
        [],
        |row| row.get(0),
    )?;
    if now_ms() - oldest > 86_400_000 {
        conn.execute("UPDATE grants SET imported_at = ?1", [now_ms()])?;
        checkpoint(&conn)?;
    }
    Ok(())
}

/// Returns the directory of a filled store, which is made if it is not there yet.
fn filled(lab: &Lab, grants: u64) -> Result<PathBuf, Error> {
    let of_size = format!("stock-{grants}-");
    // With another schema, or other tokens (the letter), it is another one.
    let stock = lab.directory.join(format!("{of_size}{SCHEMA_VERSION}a"));
    if stock.join("done").exists() {
        return Ok(stock);
    }
    remove(&lab.directory, &of_size);
    std::fs::create_dir_all(&stock)?;
    let began = Instant::now();
    eprintln!("  filling a store with {grants} grants ...");
    let kek = Kek::generate();
    kek.write_new(&stock.join("key"))?;
    let store = Store::open(Options {
        dir: stock.join("state"),
        kek,
        busy_timeout: Duration::from_secs(10),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(fill(&store, grants))?;
    eprintln!("  filled in {:.0} s", began.elapsed().as_secs_f64());
    std::fs::write(stock.join("done"), b"")?;
    Ok(stock)
}

/// A grant that becomes due, with a token that ends.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    pub nth: u64,
    /// Milliseconds since the epoch, as is the end.
    pub due_at: i64,
    pub expires_at: i64,
}

/// Gives grants other tokens, with these ends and due times. Only while no freshd runs on the store.
pub fn put_due(site: &Site, dues: &[Due]) -> Result<(), Error> {
    let store = Store::open(Options {
        dir: site.state(),
        kek: Kek::read_file(&site.key())?,
        busy_timeout: Duration::from_secs(10),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        for some in dues.chunks(BATCH as usize) {
            let imports = some.iter().map(|due| store.import(replacement(*due)));
            for imported in join_all(imports).await {
                if !matches!(imported?, Imported::Replaced(_)) {
                    return Err("a grant was not replaced".into());
                }
            }
        }
        store.close().await;
        Ok(())
    })
}

fn replacement(due: Due) -> Import {
    let (now, expires_at) = (now_ms(), UnixTime::from_millis(due.expires_at));
    let mut import = import(due.nth, u64::MAX, UnixTime::from_millis(now));
    import.tokens.access_token = Some(AccessToken::new(access_token(due.nth, 2)));
    import.tokens.refresh_token = Some(RefreshToken::new(refresh_token(due.nth, 2)));
    import.tokens.obtained_at = UnixTime::from_millis(now.min(due.expires_at - 3_600_000));
    import.tokens.expires_at = Some(expires_at);
    import.due_at = Some(UnixTime::from_millis(due.due_at));
    import.replace = true;
    import
}

async fn fill(store: &Store, grants: u64) -> Result<(), Error> {
    let now = UnixTime::from_millis(now_ms());
    let mut from = 0;
    while from < grants {
        let to = (from + BATCH).min(grants);
        let imports = (from..to).map(|nth| store.import(import(nth, grants, now)));
        for imported in join_all(imports).await {
            if !matches!(imported?, Imported::Created(_)) {
                return Err("a grant of the stock was there already".into());
            }
        }
        from = to;
    }
    for name in [MAIN, OTHER] {
        let state = ProviderState {
            schedule: Some(SCHEDULE.into()),
            ..ProviderState::default()
        };
        store.set_provider_state(name, state).await?;
    }
    store.close().await;
    Ok(())
}

/// Whether the token of the `nth` of so many grants has ended: the last twentieth's have.
pub fn has_ended(nth: u64, grants: u64) -> bool {
    nth >= grants - grants / 20
}

fn import(nth: u64, grants: u64, now: UnixTime) -> Import {
    // One second apart, so that there is an order.
    let order = Duration::from_secs(nth);
    let expires_at = if has_ended(nth, grants) {
        now - Duration::from_secs(60 + grants) + order
    } else {
        now + FAR + order
    };
    Import {
        key: GrantKey {
            namespace: "default".into(),
            user: user(nth),
            provider: provider(nth).into(),
            account: String::new(),
        },
        tokens: TokenSet {
            access_token: Some(AccessToken::new(access_token(nth, 1))),
            token_type: "Bearer".into(),
            expires_at: Some(expires_at),
            obtained_at: now,
            refresh_token: Some(RefreshToken::new(refresh_token(nth, 1))),
            refresh_token_end: None,
            scope: Some("files.read files.write".into()),
        },
        due_at: Some(now + FAR + order),
        standing: Standing::Active,
        replace: false,
        at: now,
    }
}

/// Opens a store's database as freshd's writer does. Only while no freshd runs on it.
pub fn open(database: &Path) -> Result<Connection, Error> {
    let conn = Connection::open(database)?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.set_db_config(
        rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG,
        true,
    )?;
    Ok(conn)
}

/// Empties the log into the database.
pub fn checkpoint(conn: &Connection) -> Result<(), Error> {
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}
