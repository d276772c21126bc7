//! The whole daemon under a clock that is set, and days that pass in a moment.

use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::{Value, json};

use super::*;
use crate::config::{Defaults, load};
use crate::daemon::clock::Clock;
use crate::daemon::keeper::Daemon;
use crate::daemon::{Handle, start_with, view};
use crate::local_api::keeper::{Keeper, Token, TokenRequest};
use crate::local_api::types::Problem;
use crate::refresh::grant::{Grant, GrantKey, Standing};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

type Script = Box<dyn FnMut(&str) -> (u16, Value) + Send>;

/// A token endpoint that keeps what was presented and answers as told.
#[derive(Clone)]
pub(in crate::daemon) struct Server {
    presented: Arc<Mutex<Vec<String>>>,
    script: Arc<Mutex<Script>>,
    port: u16,
}

impl Server {
    /// Hands out tokens for an hour; refresh tokens stay.
    async fn start() -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server {
            presented: Arc::default(),
            script: Arc::new(Mutex::new(Box::new(|_| served(3600)))),
            port: listener.local_addr().unwrap().port(),
        };
        let asked = server.clone();
        let token = move |body: String| async move {
            let mut form = url::form_urlencoded::parse(body.as_bytes());
            let presented = form.find(|(name, _)| name == "refresh_token");
            let presented = presented.unwrap().1.into_owned();
            let (status, body) = (asked.script.lock().unwrap())(&presented);
            asked.presented.lock().unwrap().push(presented);
            let text = if body.is_null() {
                String::new()
            } else {
                body.to_string()
            };
            (StatusCode::from_u16(status).unwrap(), text)
        };
        let routes = Router::new().route("/token", post(token));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        server
    }

    pub(in crate::daemon) fn answer_with(
        &self,
        script: impl FnMut(&str) -> (u16, Value) + Send + 'static,
    ) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub(super) fn presented(&self) -> MutexGuard<'_, Vec<String>> {
        self.presented.lock().unwrap()
    }
}

pub(in crate::daemon) fn served(secs: u64) -> (u16, Value) {
    (200, json!({"access_token": "new", "expires_in": secs}))
}

pub(in crate::daemon) struct Bench {
    dir: tempfile::TempDir,
    pub(in crate::daemon) clock: Clock,
    pub(in crate::daemon) server: Server,
    pub(in crate::daemon) handle: Option<Handle>,
}

impl Bench {
    /// A daemon with one provider, `acme`, and what `provider` says about it.
    pub(in crate::daemon) async fn start(provider: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        for name in ["state", "shared", "admin"] {
            private_dir(&dir.path().join(name));
        }
        let server = Server::start().await;
        let at = dir.path().display();
        let text = format!(
            "[daemon]\nstate-dir = \"{at}/state\"\nsocket = \"{at}/shared/s\"\n\
             admin-socket = \"{at}/admin/s\"\nkey-file = \"{at}/key\"\n\
             [refresh]\nmargin = \"1m\"\n\
             [provider.acme]\nclient-id = \"id\"\nclient-auth = \"none\"\nrotation = \"none\"\n\
             token-endpoint = \"http://127.0.0.1:{}/token\"\n{provider}\n",
            server.port
        );
        std::fs::write(dir.path().join("freshd.toml"), text).unwrap();
        let mut bench = Bench {
            dir,
            clock: Clock::system(),
            server,
            handle: None,
        };
        bench.start_again().await;
        bench
    }

    pub(in crate::daemon) async fn start_again(&mut self) {
        let mut defaults = Defaults::system(&|_| None);
        defaults.daemon.make_key = true;
        let config = load(&self.dir.path().join("freshd.toml"), &defaults).unwrap();
        let started = start_with(config, Vec::new(), self.clock.clone()).await;
        self.handle = Some(started.unwrap());
    }

    /// Changes the configuration's text and has it taken.
    pub(in crate::daemon) async fn reload(&self, from: &str, to: &str) {
        let file = self.dir.path().join("freshd.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from));
        std::fs::write(&file, text.replace(from, to)).unwrap();
        let config = load(&file, &Defaults::system(&|_| None));
        self.handle.as_ref().unwrap().reload(config).await;
    }

    async fn stop(&mut self) {
        self.handle.take().unwrap().stop().await;
    }

    pub(in crate::daemon) fn shared(&self) -> &Arc<Shared> {
        &self.handle.as_ref().unwrap().shared
    }

    /// Imports a token that was obtained now and lives for an hour, and what `more` says.
    pub(in crate::daemon) async fn import(&self, user: &str, more: Value) {
        let mut body = json!({
            "access_token": format!("access-{user}"), "refresh_token": format!("refresh-{user}"),
            "expires_in": 3600,
        });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let tokens = serde_json::from_value(body).unwrap();
        let daemon = Daemon(self.shared().clone());
        daemon
            .import(key(user), tokens, false, false)
            .await
            .unwrap();
    }

    pub(in crate::daemon) async fn grant(&self, user: &str) -> Grant {
        self.shared()
            .store
            .grant(&key(user))
            .await
            .unwrap()
            .unwrap()
    }

    pub(in crate::daemon) async fn token(&self, user: &str) -> Result<Token, Problem> {
        let request = TokenRequest {
            key: key(user),
            min_ttl: Duration::from_secs(10),
            wait: Duration::from_secs(5),
            counts_as_activity: true,
        };
        Daemon(self.shared().clone()).token(&request).await
    }

    /// Lets the driver look at the clock, which it does by itself within seconds.
    async fn wake(&self) {
        view::look(self.shared()).await.unwrap();
    }

    /// Waits until `done` says so; each try wakes the driver.
    pub(in crate::daemon) async fn until<T>(
        &self,
        what: &str,
        mut done: impl AsyncFnMut() -> Option<T>,
    ) -> T {
        for _ in 0..1000 {
            self.wake().await;
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain for {what}");
    }

    pub(super) async fn until_presented(&self, count: usize) {
        let enough = async || (self.server.presented().len() >= count).then_some(());
        self.until(&format!("{count} requests"), enough).await;
        self.until("the end of all", async || {
            let look = view::look(self.shared()).await.unwrap();
            (look.in_flight == 0).then_some(())
        })
        .await;
    }

    fn in_millis(&self, length: Duration) -> i64 {
        i64::try_from(length.as_millis()).unwrap()
    }

    pub(in crate::daemon) fn set_back(&self, by: Duration) {
        self.clock.step(-self.in_millis(by));
    }

    fn set_forward(&self, by: Duration) {
        self.clock.step(self.in_millis(by));
    }
}

fn private_dir(path: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path).unwrap();
}

fn key(user: &str) -> GrantKey {
    GrantKey {
        namespace: "default".into(),
        user: user.into(),
        provider: "acme".into(),
        account: String::new(),
    }
}

fn users(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("user-{number}")).collect()
}

/// Checks that each of them was presented exactly once.
fn each_once(presented: &[String], users: &[String]) {
    let mut presented = presented.to_vec();
    presented.sort();
    let mut expected: Vec<String> = users.iter().map(|user| format!("refresh-{user}")).collect();
    expected.sort();
    assert_eq!(presented, expected);
}

#[tokio::test]
async fn a_clock_set_back_by_8_hours_is_no_storm_and_no_token_outlives_its_lifetime() {
    let bench = Bench::start("").await;
    let users = users(20);
    for user in &users {
        bench.import(user, json!({})).await;
    }
    // Cached answers know the old end too.
    bench.token("user-0").await.unwrap();
    bench.clock.pass(Duration::from_secs(1200));
    bench.set_back(8 * HOUR);
    let token = bench.token("user-0").await.unwrap();
    let left = token
        .access()
        .1
        .expires_at
        .unwrap()
        .since(bench.clock.now());
    assert!(
        left <= HOUR,
        "even before the step is noticed, not {left:?}"
    );
    for user in &users {
        let restamped = async || {
            let grant = bench.grant(user).await;
            let left = grant.expires_at().unwrap().since(bench.clock.now());
            (left <= Duration::from_secs(2400)).then_some(left)
        };
        let left = bench.until("the restamp", restamped).await;
        assert!(
            left > Duration::from_secs(2300),
            "what was left of it, not {left:?}"
        );
    }
    let token = bench.token("user-0").await.unwrap();
    assert!(
        token
            .access()
            .1
            .expires_at
            .unwrap()
            .since(bench.clock.now())
            <= Duration::from_secs(2400)
    );
    assert_eq!(bench.server.presented().len(), 0, "no storm");

    bench.clock.pass(Duration::from_secs(2341));
    bench.until_presented(users.len()).await;
    each_once(&bench.server.presented(), &users);
}

#[tokio::test]
async fn a_clock_set_forward_by_days_is_a_catch_up_under_the_rate_and_pauses_nobody() {
    let bench = Bench::start("rate = \"50/s\"").await;
    let users = users(20);
    for user in &users {
        bench.import(user, json!({})).await;
    }
    bench.wake().await;
    let began = bench.clock.running();
    bench.set_forward(4 * DAY);
    bench.until_presented(users.len()).await;
    let took = bench.clock.running() - began;
    assert!(took > Duration::from_millis(250), "all at once: {took:?}");
    each_once(&bench.server.presented(), &users);
    for user in &users {
        assert_eq!(bench.grant(user).await.standing, Standing::Active, "{user}");
    }
    // Time that passes is absence, as ever.
    bench.clock.pass(4 * DAY);
    let paused = async || {
        let standing = bench.grant("user-0").await.standing;
        (standing.reason() == "inactive").then_some(())
    };
    bench.until("the pause", paused).await;
}

#[tokio::test]
async fn a_clock_set_forward_and_back_again_loses_nothing() {
    let bench = Bench::start("").await;
    let users = users(5);
    for user in &users {
        bench.import(user, json!({})).await;
    }
    bench.wake().await;
    bench.set_forward(8 * HOUR);
    bench.until_presented(users.len()).await;
    bench.set_back(8 * HOUR);
    let restamped = async || {
        let grant = bench.grant("user-4").await;
        (grant.expires_at().unwrap().since(bench.clock.now()) <= HOUR).then_some(())
    };
    bench.until("the restamp", restamped).await;
    assert_eq!(bench.server.presented().len(), users.len());
    bench.clock.pass(HOUR);
    bench.until_presented(2 * users.len()).await;
    assert_eq!(bench.server.presented().len(), 2 * users.len());
}

#[tokio::test]
async fn when_a_provider_served_is_no_evidence_by_a_clock_that_was_set_back_since() {
    let bench = Bench::start("").await;
    let served_at = || bench.shared().providers.newest_served_at();
    bench.import("ann", json!({})).await;
    bench.clock.pass(HOUR);
    bench.until_presented(1).await;
    assert!(served_at().is_some());
    bench.clock.pass(5 * HOUR / 6);
    bench.set_back(HOUR / 2);
    let forgotten = async || served_at().is_none().then_some(());
    bench.until("the step", forgotten).await;
    bench.clock.pass(HOUR);
    bench.until_presented(2).await;
    assert!(served_at().is_some(), "until it serves again");
}

#[tokio::test]
async fn a_clock_set_back_while_no_freshd_ran_is_noticed_at_the_start() {
    let mut bench = Bench::start("").await;
    bench.import("ann", json!({})).await;
    bench.clock.pass(HOUR);
    bench.until_presented(1).await;
    bench.stop().await;
    bench.set_back(8 * HOUR);
    bench.start_again().await;
    let restamped = async || {
        let grant = bench.grant("ann").await;
        (grant.expires_at().unwrap().since(bench.clock.now()) <= HOUR).then_some(())
    };
    bench.until("the restamp", restamped).await;
    assert_eq!(bench.server.presented().len(), 1, "no storm");
    bench.clock.pass(HOUR);
    bench.until_presented(2).await;
}

#[tokio::test]
async fn a_spilled_set_is_restamped_at_a_start_with_an_earlier_clock() {
    let mut bench = Bench::start("").await;
    bench.import("ann", json!({})).await;
    let store = bench.shared().store.clone();
    bench.server.answer_with(move |_| {
        store.refuse_writes(true);
        served(3600)
    });
    bench.clock.pass(HOUR);
    let held = async || (bench.shared().held.len() == 1).then_some(());
    bench.until("the set to be held", held).await;
    bench.stop().await;
    bench.server.answer_with(|_| served(3600));
    bench.set_back(HOUR / 2);
    bench.start_again().await;
    let grant = bench.grant("ann").await;
    assert_eq!(grant.generation, 2, "it was in the spill file");
    let left = grant.expires_at().unwrap().since(bench.clock.now());
    assert!(left <= HOUR, "not {left:?}");
}

#[tokio::test]
async fn grants_that_were_never_refreshed_are_restamped_at_a_start_with_an_earlier_clock() {
    let mut bench = Bench::start("").await;
    bench.import("ann", json!({})).await;
    bench.stop().await;
    bench.set_back(8 * HOUR);
    bench.start_again().await;
    let restamped = async || {
        let grant = bench.grant("ann").await;
        (grant.expires_at().unwrap().since(bench.clock.now()) <= HOUR).then_some(())
    };
    bench.until("the restamp", restamped).await;
    bench.clock.pass(HOUR);
    bench.until_presented(1).await;
}

#[tokio::test]
async fn a_clock_that_was_set_back_by_40_s_unnoticed_holds_up_no_refresh() {
    let mut bench = Bench::start("").await;
    bench.import("ann", json!({})).await;
    bench.server.answer_with(|_| (500, Value::Null));
    bench.clock.pass(2 * HOUR);
    bench.until_presented(1).await;
    bench.server.answer_with(|_| served(3600));
    bench.stop().await;
    bench.set_back(Duration::from_secs(40));
    bench.start_again().await;
    let grant = bench.grant("ann").await;
    assert!(grant.attempted_at.unwrap() > bench.clock.now());
    assert_eq!(bench.token("ann").await.unwrap().grant().generation, 2);
}

#[tokio::test]
async fn what_is_stamped_after_the_clock_was_set_back_is_not_set_back_with_the_rest() {
    let bench = Bench::start("").await;
    let restamper = crate::daemon::steps::restamper(&bench.clock, HOUR);
    bench.clock.pass(HOUR);
    bench.import("ann", json!({})).await;
    assert_eq!(restamper(&bench.grant("ann").await), None);
}

#[tokio::test]
async fn a_failure_that_the_disk_refused_before_the_clock_was_set_back_holds_up_no_refresh() {
    let bench = Bench::start("").await;
    bench.import("ann", json!({})).await;
    let store = bench.shared().store.clone();
    bench.server.answer_with(move |_| {
        store.refuse_writes(true);
        (500, Value::Null)
    });
    bench.clock.pass(HOUR);
    bench.until_presented(1).await;
    bench.set_back(8 * HOUR);
    bench.shared().store.refuse_writes(false);
    let recorded = async || Some(bench.grant("ann").await).filter(|grant| grant.failures > 0);
    let grant = bench.until("the failure to be recorded", recorded).await;
    let now = bench.clock.now();
    assert!(grant.attempted_at.unwrap() <= now);
    assert!(grant.due_at.unwrap().since(now) < HOUR);
}

#[tokio::test]
async fn a_refusal_nobody_explains_ends_a_grant_a_day_past_expiry_and_an_import_clears_it() {
    let bench = Bench::start("").await;
    bench.server.answer_with(|presented| match presented {
        "refresh-ann" => (400, Value::Null),
        _ => served(3600),
    });
    bench.import("ann", json!({})).await;
    bench.import("bob", json!({})).await;
    let mut hours = 0;
    while bench.grant("ann").await.standing == Standing::Active {
        let before = bench.server.presented().len();
        bench.clock.pass(HOUR);
        hours += 1;
        // Both are due once an hour, whoever is away: they read.
        bench.until_presented(before + 2).await;
        let _ = bench.token("bob").await;
        assert!(hours < 40, "it is never believed");
    }
    assert_eq!(bench.grant("ann").await.standing.reason(), "refused");
    assert!(hours > 24, "believed after {hours} hours");
    let problem = bench.token("ann").await.unwrap_err();
    assert_eq!(
        (problem.status, problem.reason.as_deref()),
        (409, Some("refused"))
    );
    assert_eq!(bench.grant("bob").await.standing, Standing::Active);

    let tokens = serde_json::from_value(json!({"refresh_token": "anew"})).unwrap();
    let daemon = Daemon(bench.shared().clone());
    daemon
        .import(key("ann"), tokens, true, false)
        .await
        .unwrap();
    assert_eq!(bench.token("ann").await.unwrap().access().0.expose(), "new");
}

#[tokio::test]
async fn a_refusal_nobody_explains_is_never_believed_while_nobody_is_served() {
    let bench = Bench::start("inactive-after = \"90d\"").await;
    bench.server.answer_with(|_| (400, Value::Null));
    bench.import("ann", json!({})).await;
    bench.import("bob", json!({})).await;
    for _ in 0..30 {
        let before = bench.server.presented().len();
        bench.clock.pass(4 * HOUR);
        bench.until_presented(before + 2).await;
    }
    for user in ["ann", "bob"] {
        assert_eq!(bench.grant(user).await.standing, Standing::Active, "I5");
    }
}

#[tokio::test]
async fn an_ending_refresh_token_is_warned_of_once_also_while_its_user_is_away() {
    let log = Log::default();
    let _here = log.listen();
    let bench = Bench::start("").await;
    bench
        .import("ann", json!({"refresh_token_expires_in": 90 * 86_400}))
        .await;
    bench.clock.pass(20 * DAY);
    let paused = async || {
        let standing = bench.grant("ann").await.standing;
        (standing.reason() == "inactive").then_some(())
    };
    bench.until("the pause", paused).await;
    bench.clock.pass(62 * DAY);
    bench.until_presented(0).await;
    assert_eq!(log.count("refresh-token-expiring"), 0);
    bench.clock.pass(2 * DAY);
    let told = async || (log.count("refresh-token-expiring") > 0).then_some(());
    bench.until("the warning", told).await;
    for _ in 0..5 {
        bench.clock.pass(DAY);
        let _ = bench.token("ann").await;
    }
    assert_eq!(log.count("refresh-token-expiring"), 1, "{}", log.text());
    let shown = Daemon(bench.shared().clone())
        .grant(key("ann"))
        .await
        .unwrap();
    assert!(shown.refresh_token_expires_at.is_some());
}

#[tokio::test]
async fn an_on_demand_grant_is_refreshed_behind_a_reader_who_finds_it_inside_its_margin() {
    let bench = Bench::start("refresh = \"on-demand\"").await;
    bench.import("ann", json!({})).await;
    bench.clock.pass(Duration::from_secs(3500));
    bench.wake().await;
    assert_eq!(bench.token("ann").await.unwrap().grant().generation, 1);
    assert_eq!(
        bench.server.presented().len(),
        0,
        "100 s left are more than its margin"
    );
    bench.clock.pass(Duration::from_secs(50));
    bench.wake().await;
    assert_eq!(bench.server.presented().len(), 0, "nobody reads");
    assert_eq!(
        bench.token("ann").await.unwrap().grant().generation,
        1,
        "the reader does not wait"
    );
    bench.until_presented(1).await;
    assert_eq!(bench.token("ann").await.unwrap().grant().generation, 2);
    // Days later: expired, and nothing was sent until somebody came.
    bench.clock.pass(9 * DAY);
    bench.wake().await;
    assert_eq!(bench.server.presented().len(), 1);
    assert_eq!(bench.token("ann").await.unwrap().grant().generation, 3);
}

/// What is logged on this test's thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || log.clone())
            .with_ansi(false)
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn count(&self, event: &str) -> usize {
        self.text()
            .lines()
            .filter(|line| line.contains(event))
            .count()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
