//! What the demo counted, and whether that is the story as it was told.

use std::time::Duration;

use super::families::Requests;

/// Requests that dan's app opens at once.
pub const BURST: usize = 50;

/// Ann's grant is refreshed at least this often: 20 s tokens, 5 s margin, and a second for the way.
const LONGEST_CYCLE: Duration = Duration::from_secs(16);

/// Everything that was seen from outside the daemon: by its apps, its admin and the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How long the story took.
    pub elapsed: Duration,
    /// Reads that were answered with a token.
    pub reads: u64,
    /// Tokens handed out that introspection called active.
    pub checked_active: u64,
    /// Tokens handed out that introspection called not active, without a reason the daemon could not know.
    pub checked_inactive: u64,
    /// Tokens of cleo handed out after the server's owner had revoked them: the daemon can't know until it asks.
    pub served_after_revocation: u64,
    /// What the token endpoint was asked, about everybody.
    pub requests: Requests,
    /// What it was asked about ann.
    pub ann: Requests,
    /// Refreshes of ann's that came when her access token was over.
    pub late_for_ann: u64,
    /// Times bob was paused for inactivity.
    pub pauses: u64,
    /// Times bob was active again.
    pub resumes: u64,
    /// Bob's returns.
    pub returns: Vec<Return>,
    /// What the token endpoint was asked about cleo before her grant was revoked; `None` before that.
    pub cleo_before: Option<u64>,
    /// What it was asked about cleo in all.
    pub cleo: Requests,
    /// Times cleo's grant was found to need authorization.
    pub needs_authorization: u64,
    /// Dan's bursts.
    pub bursts: Vec<Burst>,
    /// Whatever else happened and should not have, in words.
    pub surprises: Vec<String>,
}

/// One return of bob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// Requests about him from his pause to his return; `None` if he was not paused.
    pub requests_while_paused: Option<u64>,
    /// Requests about him that his first read cost; `None` if it was not answered.
    pub requests_on_return: Option<u64>,
}

/// One burst of dan's app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Requests that were answered with a token.
    pub answers: usize,
    /// Different tokens among the answers.
    pub different: usize,
    /// Requests about him at the token endpoint meanwhile.
    pub requests: u64,
}

/// Compares what was seen with the story; each string is one thing that is not as told.
pub fn failures(seen: &Seen) -> Vec<String> {
    let mut failures = Vec::new();
    let mut expect = |held: bool, otherwise: String| {
        if !held {
            failures.push(otherwise);
        }
    };
    let Seen {
        reads,
        checked_inactive,
        ..
    } = *seen;
    expect(
        reads > 0,
        "apps should have read tokens: none was read".into(),
    );
    expect(
        checked_inactive == 0,
        format!("every token handed out should be active: {checked_inactive} were not"),
    );
    let checked = seen.checked_active + checked_inactive + seen.served_after_revocation;
    expect(
        checked == reads,
        format!("all {reads} tokens should be checked: {checked} were"),
    );
    let replays = seen.requests.replays;
    expect(
        replays == 0,
        format!("no refresh token should be used twice: {replays} were"),
    );
    expect_ann(seen, &mut expect);
    expect_bob(seen, &mut expect);
    expect_cleo(seen, &mut expect);
    expect_dan(seen, &mut expect);
    failures.extend(seen.surprises.iter().cloned());
    failures
}

fn expect_ann(seen: &Seen, expect: &mut impl FnMut(bool, String)) {
    let least = seen.elapsed.as_secs() / LONGEST_CYCLE.as_secs();
    let refreshes = seen.ann.refreshes;
    expect(
        refreshes >= least,
        format!("ann's token should be refreshed {least} times or more: {refreshes} were seen"),
    );
    let late = seen.late_for_ann;
    expect(
        late == 0,
        format!("ann's refreshes should come before expiry: {late} came after"),
    );
}

fn expect_bob(seen: &Seen, expect: &mut impl FnMut(bool, String)) {
    let Seen {
        pauses, resumes, ..
    } = *seen;
    expect(
        pauses > 0,
        "bob should be paused while he is away: he never was".into(),
    );
    expect(
        resumes > 0 && resumes <= pauses,
        format!("bob should be active again after each pause: {pauses} pauses, {resumes} resumes"),
    );
    expect(
        !seen.returns.is_empty(),
        "bob should come back: he never did".into(),
    );
    for bob in &seen.returns {
        match bob.requests_while_paused {
            None => expect(
                false,
                "bob should be paused when he comes back: he was not".into(),
            ),
            Some(n) => expect(
                n == 0,
                format!("the server should get no request for bob while he is paused: {n} came"),
            ),
        }
        match bob.requests_on_return {
            None => expect(
                false,
                "bob should get a token when he comes back: he got none".into(),
            ),
            Some(n) => expect(
                n == 1,
                format!("bob's first read should cost one request at the server: it cost {n}"),
            ),
        }
    }
}

fn expect_cleo(seen: &Seen, expect: &mut impl FnMut(bool, String)) {
    let times = seen.needs_authorization;
    expect(
        times == 1,
        format!("cleo should need authorization, said once: said {times} times"),
    );
    match seen.cleo_before {
        None => expect(
            false,
            "cleo's grant should be revoked by the server's owner: it was not".into(),
        ),
        Some(before) => {
            let after = seen.cleo.all.saturating_sub(before);
            expect(
                after == 1,
                format!(
                    "the server should be asked once about cleo after the revocation: {after} times"
                ),
            );
        }
    }
}

fn expect_dan(seen: &Seen, expect: &mut impl FnMut(bool, String)) {
    expect(
        !seen.bursts.is_empty(),
        format!("dan's app should open {BURST} requests: it did not"),
    );
    for burst in &seen.bursts {
        let Burst {
            answers,
            different,
            requests,
        } = *burst;
        expect(
            answers == BURST && different == 1,
            format!(
                "dan's {BURST} requests should get {BURST} equal answers: {answers} got a token, {different} different ones"
            ),
        );
        expect(
            requests == 1,
            format!(
                "dan's {BURST} requests should cost one request at the server: they cost {requests}"
            ),
        );
    }
}

/// Sums it up in one line.
pub fn summary(seen: &Seen) -> String {
    let burst_requests: Vec<String> = seen.bursts.iter().map(|b| b.requests.to_string()).collect();
    let bursts = match burst_requests.as_slice() {
        [] => "no burst yet".to_owned(),
        [one] => format!("{BURST} requests at once → {one} refresh"),
        many => format!(
            "{} times {BURST} requests at once → {} refreshes",
            many.len(),
            many.join(" + ")
        ),
    };
    format!(
        "{:.0} s: {} refreshes · {} reads · {} tokens checked active, {} not · {} handed out before freshd \
         could know of their revocation · paused {}, resumed {} · needs authorization {} · {bursts} · \
         replays seen by the server: {}",
        seen.elapsed.as_secs_f64(),
        seen.requests.refreshes,
        seen.reads,
        seen.checked_active,
        seen.checked_inactive,
        seen.served_after_revocation,
        seen.pauses,
        seen.resumes,
        seen.needs_authorization,
        seen.requests.replays,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_told() -> Seen {
        Seen {
            elapsed: Duration::from_secs(60),
            reads: 200,
            checked_active: 195,
            checked_inactive: 0,
            served_after_revocation: 5,
            requests: Requests {
                all: 14,
                refreshes: 13,
                replays: 0,
            },
            ann: Requests {
                all: 4,
                refreshes: 4,
                replays: 0,
            },
            late_for_ann: 0,
            pauses: 1,
            resumes: 1,
            returns: vec![Return {
                requests_while_paused: Some(0),
                requests_on_return: Some(1),
            }],
            cleo_before: Some(1),
            cleo: Requests {
                all: 2,
                refreshes: 1,
                replays: 0,
            },
            needs_authorization: 1,
            bursts: vec![Burst {
                answers: 50,
                different: 1,
                requests: 1,
            }],
            surprises: vec![],
        }
    }

    #[test]
    fn the_story_as_told_has_no_failures() {
        assert_eq!(failures(&as_told()), Vec::<String>::new());
    }

    #[test]
    fn each_thing_not_as_told_is_one_failure_that_says_what_was_seen() {
        type Spoil = fn(&mut Seen);
        let table: [(Spoil, &str); 20] = [
            (
                |s| (s.reads, s.checked_active, s.served_after_revocation) = (0, 0, 0),
                "none was read",
            ),
            (
                |s| (s.checked_active, s.checked_inactive) = (193, 2),
                "active: 2 were not",
            ),
            (
                |s| s.checked_active -= 3,
                "all 200 tokens should be checked: 197 were",
            ),
            (|s| s.requests.replays = 2, "used twice: 2 were"),
            (|s| s.ann.refreshes = 2, "3 times or more: 2 were seen"),
            (|s| s.late_for_ann = 1, "before expiry: 1 came after"),
            (
                |s| (s.pauses, s.resumes) = (0, 0),
                "bob should be paused while he is away",
            ),
            (|s| s.resumes = 0, "1 pauses, 0 resumes"),
            (|s| s.resumes = 2, "1 pauses, 2 resumes"),
            (|s| s.returns.clear(), "bob should come back"),
            (|s| s.returns[0].requests_while_paused = None, "he was not"),
            (
                |s| s.returns[0].requests_while_paused = Some(3),
                "while he is paused: 3 came",
            ),
            (|s| s.returns[0].requests_on_return = None, "he got none"),
            (|s| s.returns[0].requests_on_return = Some(2), "it cost 2"),
            (|s| s.needs_authorization = 0, "said 0 times"),
            (
                |s| s.cleo_before = None,
                "revoked by the server's owner: it was not",
            ),
            (|s| s.cleo.all = 9, "after the revocation: 8 times"),
            (|s| s.bursts.clear(), "open 50 requests: it did not"),
            (|s| s.bursts[0].different = 2, "50 got a token, 2 different"),
            (
                |s| {
                    s.bursts.push(Burst {
                        answers: 50,
                        different: 1,
                        requests: 7,
                    })
                },
                "they cost 7",
            ),
        ];
        for (spoil, words) in table {
            let mut seen = as_told();
            spoil(&mut seen);
            let failures = failures(&seen);
            assert!(
                failures.iter().any(|f| f.contains(words)),
                "{words}: {failures:?}"
            );
            let known = if words.starts_with("bob should be paused while") {
                2
            } else {
                1
            };
            assert_eq!(failures.len(), known, "{failures:?}");
        }
    }

    #[test]
    fn surprises_are_failures_in_their_own_words() {
        let seen = Seen {
            surprises: vec!["ann was paused".into()],
            ..as_told()
        };
        assert_eq!(failures(&seen), ["ann was paused"]);
    }

    #[test]
    fn an_ended_story_without_any_event_fails_for_each_of_the_cast() {
        let failures = failures(&Seen {
            elapsed: Duration::from_secs(60),
            ..Seen::default()
        });
        for user in ["ann", "bob", "cleo", "dan"] {
            assert!(
                failures.iter().any(|f| f.starts_with(user)),
                "{user}: {failures:?}"
            );
        }
    }

    #[test]
    fn the_summary_is_one_line_with_every_count() {
        let line = summary(&as_told());
        assert_eq!(
            line,
            "60 s: 13 refreshes · 200 reads · 195 tokens checked active, 0 not · 5 handed out before freshd \
             could know of their revocation · paused 1, resumed 1 · needs authorization 1 · 50 requests \
             at once → 1 refresh · replays seen by the server: 0"
        );
    }
}
