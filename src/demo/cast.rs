//! The users of the demo, the apps that read for them, and the one who watches.
//!
//! Each part goes on until it is dropped. The story repeats every [`ACT`]; cleo's part happens once.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::authorization_server::Event;
use super::screen::Mood;
use super::stage::{Read, Stage};
use super::tally::{BURST, Burst, Return};
use crate::local_api::types::{GrantView, TokenAnswer};

/// After this long the story begins anew.
pub const ACT: Duration = Duration::from_secs(60);
/// Bob leaves this long after an act's beginning.
const BOB_LEAVES: Duration = Duration::from_secs(10);
/// Bob returns this long after an act's beginning: his grant fell due, and rests, at 30 s.
const BOB_RETURNS: Duration = Duration::from_secs(45);
/// When the server's owner revokes cleo's grant: between her refreshes at 15 s and 30 s.
const CLEO_REVOKED: Duration = Duration::from_secs(25);
/// From here on dan's app waits for its moment.
const DAN_GATHERS: Duration = Duration::from_secs(24);
/// Dan's burst comes when his token has about this much left: less than the burst asks for, more than the margin.
const DAN_LEFT: Duration = Duration::from_secs(8);
/// How much the burst asks for.
const DAN_WANTS: Duration = Duration::from_secs(10);
/// What the apps otherwise ask for. Less than the margin, so that it is the schedule which refreshes.
const MIN_TTL: Duration = Duration::from_secs(2);
/// How often an app that is used reads.
const READ_EVERY: Duration = Duration::from_secs(1);
/// How often the watcher looks.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// What bob, his app and the watcher tell each other.
#[derive(Default)]
pub struct Bob {
    away: AtomicBool,
    /// Requests about him at the server when he was seen paused.
    requests_at_pause: Mutex<Option<u64>>,
}

impl Bob {
    fn paused_at(&self) -> MutexGuard<'_, Option<u64>> {
        self.requests_at_pause
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Reads for a user who is to be given a token whatever happens.
async fn visit(stage: &Stage, user: &str, min_ttl: Duration) -> Option<TokenAnswer> {
    match stage.read(user, min_ttl).await {
        Read::Token(answer) => return Some(answer),
        Read::Refused(problem) => stage.surprise(
            user,
            &format!(
                "got no token: HTTP {} {}: {}",
                problem.status, problem.kind, problem.detail
            ),
        ),
        Read::Failed(why) => stage.surprise(user, &format!("got no token: {why}")),
    }
    None
}

/// Ann, whose app reads every second, all the time.
pub async fn ann(stage: Arc<Stage>) {
    let mut second = every(READ_EVERY);
    loop {
        second.tick().await;
        visit(&stage, "ann", MIN_TTL).await;
    }
}

/// Bob, who is read for, leaves, is paused, and comes back.
pub async fn bob(stage: Arc<Stage>, bob: Arc<Bob>) {
    let mut act = Duration::ZERO;
    loop {
        let leaves = act + BOB_LEAVES;
        let mut second = every(READ_EVERY);
        while stage.elapsed() < leaves {
            second.tick().await;
            visit(&stage, "bob", MIN_TTL).await;
        }
        bob.away.store(true, Ordering::SeqCst);
        stage.say(
            "bob",
            Mood::Notice,
            "leaves: from now on nobody reads his token",
        );
        stage.until(act + BOB_RETURNS).await;
        come_back(&stage, &bob).await;
        act += ACT;
    }
}

async fn come_back(stage: &Stage, bob: &Bob) {
    let before = stage.server.requests("bob").all;
    let requests_while_paused = bob.paused_at().take().map(|at| before.saturating_sub(at));
    if let Some(requests) = requests_while_paused {
        let text =
            format!("comes back; requests about him at the server while he was paused: {requests}");
        stage.say("bob", Mood::Notice, &text);
    }
    bob.away.store(false, Ordering::SeqCst);
    let asked = stage.elapsed();
    let answer = visit(stage, "bob", MIN_TTL).await;
    let waited = stage.elapsed().saturating_sub(asked);
    let requests = stage.server.requests("bob").all.saturating_sub(before);
    if let Some(answer) = &answer {
        let text = format!(
            "has a fresh token (generation {}) after {:.2} s; requests at the server: {requests}",
            answer.generation,
            waited.as_secs_f64(),
        );
        stage.say("bob", Mood::Good, &text);
    }
    let requests_on_return = answer.map(|_| requests);
    stage.seen().returns.push(Return {
        requests_while_paused,
        requests_on_return,
    });
}

/// Cleo, whose grant the server's owner revokes.
pub async fn cleo(stage: Arc<Stage>) {
    let mut second = every(READ_EVERY);
    let mut refused = false;
    loop {
        second.tick().await;
        if stage.elapsed() >= CLEO_REVOKED && stage.seen().cleo_before.is_none() {
            let before = stage.server.requests("cleo").all;
            stage.server.revoke_user("cleo");
            stage.seen().cleo_before = Some(before);
        }
        match stage.read("cleo", MIN_TTL).await {
            Read::Token(_) => {}
            Read::Refused(problem) if problem.kind == "urn:freshd:needs-authorization" => {
                if !refused {
                    let text = format!(
                        "her app now gets HTTP {}: {}",
                        problem.status, problem.detail
                    );
                    stage.say("cleo", Mood::Notice, &text);
                }
                refused = true;
            }
            Read::Refused(problem) => {
                stage.surprise(
                    "cleo",
                    &format!("got no token: HTTP {}: {}", problem.status, problem.detail),
                );
            }
            Read::Failed(why) => stage.surprise("cleo", &format!("got no token: {why}")),
        }
    }
}

/// Dan, whose app opens many requests at once.
pub async fn dan(stage: Arc<Stage>) {
    let mut act = Duration::ZERO;
    loop {
        let mut second = every(2 * READ_EVERY);
        while stage.elapsed() < act + DAN_GATHERS {
            second.tick().await;
            visit(&stage, "dan", MIN_TTL).await;
        }
        gather(&stage).await;
        burst(&stage).await;
        act += ACT;
    }
}

/// Waits until dan's token has about [`DAN_LEFT`] left.
async fn gather(stage: &Stage) {
    let second = Duration::from_secs(1);
    loop {
        let answer = visit(stage, "dan", MIN_TTL).await;
        let left = Duration::from_secs(answer.and_then(|a| a.expires_in).unwrap_or(0));
        if left > DAN_LEFT + second {
            tokio::time::sleep(left - DAN_LEFT).await;
        } else if left + second < DAN_LEFT {
            // Too late for this token: the schedule is about to refresh it.
            tokio::time::sleep(second).await;
        } else {
            return;
        }
    }
}

async fn burst(stage: &Arc<Stage>) {
    let before = stage.server.requests("dan").all;
    let text = format!(
        "his app opens {BURST} requests at once, each for a token that lasts {} s; his has about {} s left",
        DAN_WANTS.as_secs(),
        DAN_LEFT.as_secs(),
    );
    stage.say("dan", Mood::Notice, &text);
    let mut requests = JoinSet::new();
    for _ in 0..BURST {
        let stage = Arc::clone(stage);
        requests.spawn(async move { visit(&stage, "dan", DAN_WANTS).await });
    }
    let answers: Vec<TokenAnswer> = requests.join_all().await.into_iter().flatten().collect();
    let different: HashSet<&str> = answers.iter().map(|a| a.access_token.as_str()).collect();
    let burst = Burst {
        answers: answers.len(),
        different: different.len(),
        requests: stage.server.requests("dan").all.saturating_sub(before),
    };
    let Burst {
        answers,
        different,
        requests,
    } = burst;
    let text = match different {
        1 => format!(
            "{answers} answers with one and the same token; requests at the server: {requests}"
        ),
        _ => {
            format!("{answers} answers with {different} tokens; requests at the server: {requests}")
        }
    };
    stage.say("dan", Mood::Good, &text);
    stage.seen().bursts.push(burst);
}

/// Tells what the server and the admin see: refreshes, refusals, and every change of standing.
pub async fn watch(stage: Arc<Stage>, bob: Arc<Bob>, mut events: UnboundedReceiver<Event>) {
    let mut known: BTreeMap<String, GrantView> = BTreeMap::new();
    let mut before_expiry: BTreeMap<String, i64> = BTreeMap::new();
    let mut look = every(WATCH_EVERY);
    loop {
        tokio::select! {
            Some(event) = events.recv() => hear(&stage, event, &mut before_expiry),
            _ = look.tick() => match stage.grants().await {
                Ok(grants) => {
                    // What the server answered before the daemon could change a grant comes first.
                    while let Ok(event) = events.try_recv() {
                        hear(&stage, event, &mut before_expiry);
                    }
                    for grant in grants {
                        if let Some(was) = known.get(&grant.user) {
                            compare(&stage, &bob, was, &grant, &before_expiry);
                        }
                        known.insert(grant.user.clone(), grant);
                    }
                }
                Err(why) => stage.surprise("admin", &format!("the grants could not be listed: {why}")),
            },
        }
    }
}

fn hear(stage: &Stage, event: Event, before_expiry: &mut BTreeMap<String, i64>) {
    match event {
        Event::Refreshed { user, before_expiry_ms } => {
            if user == "ann" && before_expiry_ms <= 0 {
                stage.seen().late_for_ann += 1;
            }
            before_expiry.insert(user, before_expiry_ms);
        }
        Event::Refused { user } => stage.say(
            &user,
            Mood::Notice,
            "the server refuses the refresh token for good (invalid_grant): trying again would help nobody",
        ),
        Event::Replayed { user } => stage.say(
            &user,
            Mood::Bad,
            "the server saw a used refresh token again and revoked the family",
        ),
        Event::Revoked { user } => stage.say(
            &user,
            Mood::Notice,
            "the server's owner revokes the grant; nobody tells freshd, whose next refresh will find out",
        ),
    }
}

fn compare(
    stage: &Stage,
    bob: &Bob,
    was: &GrantView,
    grant: &GrantView,
    before_expiry: &BTreeMap<String, i64>,
) {
    let user = grant.user.as_str();
    if grant.generation != was.generation {
        let ms = before_expiry.get(user).copied().unwrap_or(0);
        let away = user == "bob" && bob.away.load(Ordering::SeqCst);
        let text = refreshed(ms, was.generation, grant.generation, away);
        stage.say(user, Mood::Good, &text);
    }
    if (&grant.state, &grant.reason) == (&was.state, &was.reason) {
        return;
    }
    match change(user, &grant.state, &grant.reason) {
        Change::BobPaused => {
            *bob.paused_at() = Some(stage.server.requests("bob").all);
            stage.seen().pauses += 1;
            let text = "paused (inactive): unread for 15 s, so freshd lets his token end and asks the server no more";
            stage.say(user, Mood::Notice, text);
        }
        Change::BobResumed => {
            stage.seen().resumes += 1;
            stage.say(
                user,
                Mood::Good,
                "active again: his grant is back on the schedule",
            );
        }
        Change::CleoNeedsAuthorization => {
            stage.seen().needs_authorization += 1;
            let text = format!(
                "needs authorization ({}): said once; only she can mend it, by logging in again",
                grant.reason
            );
            stage.say(user, Mood::Notice, &text);
        }
        Change::Unexpected => {
            let text = format!("is {} {} and should not be", grant.state, grant.reason);
            stage.surprise(user, &text);
        }
    }
}

/// Returns what a refresh looked like from outside.
fn refreshed(before_expiry_ms: i64, from: u64, to: u64, away: bool) -> String {
    let seconds = before_expiry_ms.unsigned_abs() as f64 / 1000.0;
    let (side, comment) = match before_expiry_ms {
        ms if ms <= 0 => ("after its end", "nobody had needed it since"),
        ms if ms > 7_000 => (
            "before expiry",
            "early: an app wanted more time than was left",
        ),
        _ if away => ("before expiry", "nobody reads it, but not for 15 s yet"),
        _ => ("before expiry", "the app noticed nothing"),
    };
    format!("refreshed {seconds:.1} s {side}: generation {from} → {to} ({comment})")
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    BobPaused,
    BobResumed,
    CleoNeedsAuthorization,
    Unexpected,
}

/// Tells whether a new standing belongs to the story.
fn change(user: &str, state: &str, reason: &str) -> Change {
    match (user, state, reason) {
        ("bob", "paused", "inactive") => Change::BobPaused,
        ("bob", "active", _) => Change::BobResumed,
        ("cleo", "needs-authorization", "revoked-or-used-elsewhere") => {
            Change::CleoNeedsAuthorization
        }
        _ => Change::Unexpected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_storys_own_changes_of_standing_are_expected() {
        let table = [
            ("bob", "paused", "inactive", Change::BobPaused),
            ("bob", "active", "", Change::BobResumed),
            ("bob", "paused", "admin", Change::Unexpected),
            (
                "bob",
                "needs-authorization",
                "revoked-or-used-elsewhere",
                Change::Unexpected,
            ),
            (
                "cleo",
                "needs-authorization",
                "revoked-or-used-elsewhere",
                Change::CleoNeedsAuthorization,
            ),
            (
                "cleo",
                "needs-authorization",
                "lost-rotation (probable)",
                Change::Unexpected,
            ),
            ("ann", "paused", "inactive", Change::Unexpected),
            (
                "dan",
                "needs-authorization",
                "revoked-or-used-elsewhere",
                Change::Unexpected,
            ),
        ];
        for (user, state, reason, expected) in table {
            assert_eq!(
                change(user, state, reason),
                expected,
                "{user} {state} {reason}"
            );
        }
    }

    #[test]
    fn a_refresh_is_told_with_its_distance_from_expiry_and_why_it_came() {
        let table = [
            (
                5_240,
                false,
                "refreshed 5.2 s before expiry: generation 1 → 2 (the app noticed nothing)",
            ),
            (
                5_000,
                true,
                "refreshed 5.0 s before expiry: generation 1 → 2 (nobody reads it, but not for 15 s yet)",
            ),
            (
                8_000,
                false,
                "refreshed 8.0 s before expiry: generation 1 → 2 (early: an app wanted more time than was left)",
            ),
            (
                -10_100,
                false,
                "refreshed 10.1 s after its end: generation 1 → 2 (nobody had needed it since)",
            ),
        ];
        for (ms, away, expected) in table {
            assert_eq!(refreshed(ms, 1, 2, away), expected);
        }
    }
}
