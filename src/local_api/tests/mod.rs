//! The API over real Unix sockets, with a keeper that notes what it was asked.

mod connections;
mod early_answers;
mod events;
mod quotas;
mod refusals;
mod routes;
mod short_way;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;

use super::export::{ExportRequest, ExportStream};
use super::keeper::{
    AuditRequest, Audited, EventStream, Events, Keeper, ListRequest, Target, Token, TokenRequest,
};
use super::limits::Limits;
use super::quotas::tests::TestClock;
use super::quotas::{Quota, Quotas};
use super::rules::{Rule, RulePeer, Rules, SharedRules, SocketKind};
use super::server::Access;
use super::types::{
    AuditList, BackupAnswer, BackupRequest, Changed, GrantList, GrantView, History, ImportAnswer,
    ImportRequest, KeysView, Problem, ProviderList, ProviderStanding, RenewalView, Status,
    UserView,
};
use super::{listen, problem, server};
use crate::refresh::grant::{Grant, GrantKey};
use crate::refresh::reading::Readable;
use crate::refresh::time::UnixTime;
use crate::refresh::token::{AccessToken, TokenSet};

/// What no log may hold.
const CANARY: &str = "canary-4f1d";

/// Notes each call; a user called `slow` waits until let go, `nobody` has no grant.
struct Recorder {
    calls: Mutex<Vec<String>>,
    audits: Mutex<Vec<String>>,
    slow: Semaphore,
    slow_began: Notify,
    draining: AtomicBool,
    /// What the next event stream brings after its first look.
    feed: Mutex<Option<mpsc::UnboundedReceiver<Events>>>,
}

impl Recorder {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    async fn token_for(&self, key: &GrantKey) -> Result<Token, Problem> {
        if key.user == "nobody" {
            return Err(problem::no_such_grant(key));
        }
        if key.user == "slow" {
            self.slow_began.notify_one();
            self.slow.acquire().await.unwrap().forget();
        }
        let known = key.user != "unknown-expiry";
        let now = UnixTime::from_millis(1_790_000_000_300);
        let tokens = TokenSet {
            access_token: Some(AccessToken::new(format!(
                "{CANARY} \"\\\u{7}ü/{}",
                key.user
            ))),
            token_type: "Bearer".into(),
            expires_at: known.then_some(UnixTime::from_millis(1_790_000_100_250)),
            obtained_at: now,
            refresh_token: None,
            refresh_token_end: None,
            scope: known.then(|| "a b".into()),
        };
        let grant = Grant {
            generation: 7,
            ..Grant::imported(key.clone(), &tokens, now)
        };
        let readable = Arc::new(Readable::new(grant, tokens.access_token));
        Ok(Token::of(readable, now).expect("it has an access token"))
    }
}

fn show(key: &GrantKey) -> String {
    format!(
        "{}/{}/{}",
        key.namespace,
        key.user,
        key.provider_and_account()
    )
}

fn view(provider: &str) -> GrantView {
    GrantView {
        namespace: "default".into(),
        user: "42".into(),
        provider: provider.into(),
        account: String::new(),
        state: "active".into(),
        reason: String::new(),
        since: UnixTime::EPOCH.rfc3339(),
        generation: 1,
        expires_at: None,
        due_at: None,
        has_refresh_token: true,
        refresh_token_expires_at: None,
        scope: None,
        imported_at: UnixTime::EPOCH.rfc3339(),
        refreshed_at: None,
        attempted_at: None,
        failures: 0,
        last_failure: None,
        unused_refreshes: 0,
    }
}

fn user_view(namespace: String, user: String) -> UserView {
    let grants = ["hubspot", "google"].map(view).into();
    UserView {
        namespace,
        user,
        last_active_at: None,
        grants,
    }
}

impl Keeper for Recorder {
    fn token_in_memory(&self, request: &TokenRequest) -> Option<Token> {
        let is_cold = ["nobody", "slow", "cold"].contains(&&*request.key.user);
        let token = (!is_cold).then(|| self.token(request).now_or_never())?;
        token.expect("it waits for nothing").ok()
    }

    async fn token(&self, request: &TokenRequest) -> Result<Token, Problem> {
        let (key, min_ttl, wait) = (show(&request.key), request.min_ttl, request.wait);
        let counts = request.counts_as_activity;
        self.note(format!(
            "token {key} min_ttl={min_ttl:?} wait={wait:?} counts={counts}"
        ));
        self.token_for(&request.key).await
    }

    async fn refresh(
        &self,
        request: &TokenRequest,
        generation: Option<u64>,
    ) -> Result<Token, Problem> {
        let (key, wait) = (show(&request.key), request.wait);
        let counts = request.counts_as_activity;
        self.note(format!(
            "refresh {key} {generation:?} wait={wait:?} counts={counts}"
        ));
        self.token_for(&request.key).await
    }

    async fn import(
        &self,
        key: GrantKey,
        tokens: ImportRequest,
        replace: bool,
        hold: bool,
    ) -> Result<ImportAnswer, Problem> {
        assert_eq!(tokens.refresh_token.as_deref(), Some(CANARY));
        self.note(format!(
            "import {} replace={replace} hold={hold}",
            show(&key)
        ));
        let result = if replace { "replaced" } else { "created" };
        Ok(ImportAnswer {
            result: result.into(),
            grant: view(&key.provider),
        })
    }

    async fn grant(&self, key: GrantKey) -> Result<GrantView, Problem> {
        self.note(format!("grant {}", show(&key)));
        Ok(view(&key.provider))
    }

    async fn history(&self, key: GrantKey) -> Result<History, Problem> {
        self.note(format!("history {}", show(&key)));
        Ok(History {
            grant: view(&key.provider),
            provider: ProviderStanding {
                state: "running".into(),
                reason: String::new(),
                since: None,
                rotation: "strict".into(),
            },
            unanswered: None,
            held: false,
            moved: false,
            store: "ok".into(),
            entries: vec![],
        })
    }

    async fn user(&self, namespace: String, user: String) -> Result<UserView, Problem> {
        self.note(format!("user {namespace}/{user}"));
        Ok(user_view(namespace, user))
    }

    async fn delete(&self, key: GrantKey, by: String) -> Result<Changed, Problem> {
        self.note(format!("delete {} by {by}", show(&key)));
        Ok(Changed { changed: 1 })
    }

    async fn delete_user(
        &self,
        namespace: String,
        user: String,
        providers: Option<Vec<String>>,
        by: String,
    ) -> Result<Changed, Problem> {
        self.note(format!(
            "delete_user {namespace}/{user} {providers:?} by {by}"
        ));
        Ok(Changed { changed: 2 })
    }

    async fn activity(&self, namespace: String, user: String) -> Result<UserView, Problem> {
        self.note(format!("activity {namespace}/{user}"));
        Ok(user_view(namespace, user))
    }

    async fn pause(&self, target: Target, by: String) -> Result<Changed, Problem> {
        self.note(format!("pause {} by {by}", show_target(&target)));
        Ok(Changed { changed: 1 })
    }

    async fn resume(&self, target: Target, _release: bool, by: String) -> Result<Changed, Problem> {
        self.note(format!("resume {} by {by}", show_target(&target)));
        Ok(Changed { changed: 1 })
    }

    async fn list(&self, request: ListRequest) -> Result<GrantList, Problem> {
        self.note(format!("{request:?}"));
        Ok(GrantList {
            grants: vec![view("hubspot")],
            next_cursor: Some("9".into()),
        })
    }

    async fn status(&self) -> Result<Status, Problem> {
        Err(problem::store_unavailable("disk full"))
    }

    async fn providers(&self) -> Result<ProviderList, Problem> {
        Ok(ProviderList { providers: vec![] })
    }

    async fn backup(&self, request: BackupRequest) -> Result<BackupAnswer, Problem> {
        self.note(format!("backup {} final={}", request.path, request.last));
        Ok(BackupAnswer {
            path: request.path,
            made_at: "2026-01-31T03:00:00Z".into(),
            bytes: 4096,
            grants: 2,
            quarantined: 0,
            revocations: 0,
        })
    }

    async fn export(
        &self,
        request: ExportRequest,
        namespace: Option<String>,
        uid: Option<u32>,
    ) -> Result<ExportStream, Problem> {
        self.note(format!(
            "export {request:?} {namespace:?} as {}",
            uid.is_some()
        ));
        Err(problem::forbidden("no"))
    }

    async fn rotate_key(&self) -> Result<KeysView, Problem> {
        self.note("rotate-key".into());
        Ok(KeysView {
            current: 2,
            rotation: None,
        })
    }

    async fn renew(&self, provider: String) -> Result<RenewalView, Problem> {
        self.note(format!("renew {provider}"));
        Ok(renewal_of(provider))
    }

    async fn renewal(&self, provider: String, dry_run: bool) -> Result<RenewalView, Problem> {
        self.note(format!("renewal {provider} dry_run={dry_run}"));
        Ok(renewal_of(provider))
    }

    async fn events(&self, after: Option<u64>) -> Result<EventStream, Problem> {
        self.note(format!("events after {after:?}"));
        let at = after.unwrap_or(40);
        let now = Events {
            from: at,
            position: at,
            caught_up: true,
            ..Events::default()
        };
        let feed = self.feed.lock().unwrap().take();
        let later = stream::unfold(feed, async |feed| {
            let mut feed = feed?;
            let events = feed.recv().await?;
            Some((events, Some(feed)))
        });
        Ok(Box::pin(stream::once(async { now }).chain(later)))
    }

    fn audit(&self, what: Audited) {
        let Audited {
            action,
            by,
            user,
            detail,
        } = what;
        self.audits
            .lock()
            .unwrap()
            .push(format!("{action} {by} {user:?} {detail}"));
    }

    async fn audited(&self, request: AuditRequest) -> Result<AuditList, Problem> {
        self.note(format!("audited {request:?}"));
        Ok(AuditList {
            entries: vec![],
            next_cursor: None,
        })
    }

    async fn metrics(&self) -> String {
        self.note("metrics".into());
        "# metrics\n".into()
    }

    async fn healthy(&self) -> Result<(), Problem> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(problem::draining(Duration::from_secs(3)));
        }
        Ok(())
    }
}

fn renewal_of(provider: String) -> RenewalView {
    RenewalView {
        provider,
        state: "running".into(),
        reason: String::new(),
        since: None,
        left: 1,
        resting: 0,
        grants: 1,
    }
}

fn show_target(target: &Target) -> String {
    match target {
        Target::Grant(key) => format!("grant {}", show(key)),
        Target::User { namespace, user } => format!("user {namespace}/{user}"),
        Target::Provider(provider) => format!("provider {provider}"),
    }
}

/// A rule for this test's own uid that allows everything.
fn rule() -> Rule {
    Rule {
        app: "crm".into(),
        peer: RulePeer::Uid(rustix::process::geteuid().as_raw()),
        namespace: "default".into(),
        providers: None,
        read: true,
        import: true,
        revoke: true,
        authorize: true,
        counts_as_activity: true,
        quota: Quota::UNLIMITED,
    }
}

/// A served socket.
struct Site {
    directory: tempfile::TempDir,
    keeper: Arc<Recorder>,
    rules: SharedRules,
    quotas: Arc<Quotas>,
    clock: TestClock,
    stop: oneshot::Sender<()>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Site {
    fn new(kind: SocketKind, rules: Vec<Rule>) -> Site {
        Site::limited(kind, rules, Limits::default())
    }

    fn shared() -> Site {
        Site::new(SocketKind::Shared, vec![rule()])
    }

    fn admin() -> Site {
        Site::new(SocketKind::Admin, vec![])
    }

    fn limited(kind: SocketKind, rules: Vec<Rule>, limits: Limits) -> Site {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen::bind(&directory.path().join("s"), 0o600, None).unwrap();
        let keeper = Arc::new(Recorder {
            calls: Mutex::default(),
            audits: Mutex::default(),
            slow: Semaphore::new(0),
            slow_began: Notify::new(),
            draining: AtomicBool::new(false),
            feed: Mutex::default(),
        });
        let rules = Arc::new(ArcSwap::from_pointee(Rules::new(rules)));
        let (stop, stopped) = oneshot::channel();
        let clock = TestClock::default();
        let quotas = Arc::new(Quotas::new(clock.running()));
        let for_server = Arc::clone(&keeper);
        let access = Access {
            rules: Arc::clone(&rules),
            quotas: Arc::clone(&quotas),
        };
        let server = tokio::spawn(async move {
            let stopped = async { stopped.await.unwrap_or(()) };
            server::serve_with(listener, kind, for_server, access, stopped, limits).await
        });
        Site {
            directory,
            keeper,
            rules,
            quotas,
            clock,
            stop,
            server,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    async fn connect(&self) -> Client {
        Client {
            stream: UnixStream::connect(self.path()).await.unwrap(),
            rest: Vec::new(),
        }
    }

    /// Asks on a connection of its own.
    async fn ask(&self, request: &str) -> Reply {
        self.connect().await.ask(request).await
    }

    /// Asks for what must be refused, and returns status, type and detail.
    async fn refused(&self, request: &str) -> (u16, String, String) {
        let reply = self.ask(request).await;
        assert_eq!(
            reply.headers["content-type"], "application/problem+json",
            "{request}"
        );
        let problem: Problem = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem.status, reply.status);
        assert!(
            self.keeper.calls().is_empty(),
            "{request} reached the keeper"
        );
        (
            reply.status,
            problem.kind.replace("urn:freshd:", ""),
            problem.detail,
        )
    }
}

/// One connection.
struct Client {
    stream: UnixStream,
    rest: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Client {
    /// Sends `METHOD /path`, then header lines if any, then after an empty line the body if any.
    async fn ask(&mut self, request: &str) -> Reply {
        let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
        let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
        let mut raw = format!("{line} HTTP/1.1\r\nhost: freshd\r\n");
        for header in headers.lines() {
            raw += &format!("{header}\r\n");
        }
        if !body.is_empty() {
            raw += &format!("content-length: {}\r\n", body.len());
        }
        self.send(format!("{raw}\r\n{body}").as_bytes()).await;
        self.reply().await.expect("an answer")
    }

    async fn send(&mut self, raw: &[u8]) {
        // A refusal may come, and the connection go, before all is sent.
        let _ = self.stream.write_all(raw).await;
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read(&mut buffer));
        let count = read
            .await
            .expect("an answer or an end in time")
            .unwrap_or(0);
        self.rest.extend_from_slice(&buffer[..count]);
        count > 0
    }

    /// Returns the next answer, or `None` when the server closed instead.
    async fn reply(&mut self) -> Option<Reply> {
        let end = loop {
            match self
                .rest
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                Some(at) => break at,
                None if self.more().await => {}
                None => return None,
            }
        };
        let head = String::from_utf8(self.rest.drain(..end + 4).collect()).unwrap();
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let length = headers
            .get("content-length")
            .map_or(0, |text| text.parse().unwrap());
        while self.rest.len() < length {
            assert!(self.more().await, "the body is cut short");
        }
        Some(Reply {
            status,
            headers,
            body: self.rest.drain(..length).collect(),
        })
    }
}
