//! The witness: knows what really happened, and names the first promise that was broken.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use freshd::refresh::grant::{Grant, GrantId, NeedsReason, Standing};
use freshd::refresh::token::{AccessToken, RefreshToken};
use freshd::refresh::token_response::Outcome;

use crate::server::{Class, Ending};
use crate::stats::Stats;
use crate::store::{Durable, Import, Row, TokenCommit};

/// A grace is used if nothing stood in the way for so long (milliseconds).
const FAIR_CHANCE: u64 = 6_000;
/// A grant begins at most so long after it is due, where nothing stands in the way (milliseconds).
pub const LATEST: u64 = 120_000;

/// What is known of one refresh token's presentations.
#[derive(Clone, Copy, Default)]
struct Fate {
    /// Presentations of which nobody knows whether the server took them, or whose answer is not on disk.
    open: u32,
    first_sent_at: u64,
    /// When the newest of them was given up.
    lost_at: u64,
}

/// A set that the disk refused is in the spill file after this (milliseconds).
const SPILLED_WITHIN: u64 = 10_000;

#[derive(Default)]
pub struct Witness {
    pub violation: Option<String>,
    pub stats: Stats,
    /// Writes that fail are not witnessed.
    pub rehearsal: bool,
    /// When each request that is out left.
    in_flight: BTreeMap<GrantId, u64>,
    fates: BTreeMap<String, Fate>,
    /// When the last attempt at a grant ended.
    ended_at: BTreeMap<GrantId, u64>,
    /// Whose refresh token each is, or was.
    owners: HashMap<String, GrantId>,
    /// Every access token that is or was on disk in this life of the daemon.
    vouched: HashSet<String>,
    /// Sets that the daemon has received in this life and not put anywhere yet: by access token, with the
    /// refresh token that was presented for it, and when it came.
    received: BTreeMap<String, (String, u64)>,
    /// For which refresh token each access token in the spill file came.
    brought: HashMap<String, String>,
    /// Refresh tokens whose successors are safe in the spill file.
    spilled: HashSet<String>,
    /// Until when the disk failed last, so that perhaps not even the spill file could be written.
    pub failing_until: u64,
    /// Grants that came back with a copy, and which nobody has released.
    suspended: BTreeSet<GrantId>,
    /// Refresh tokens that came back with a copy: what became of them since, nobody here knows.
    restored: HashSet<String>,
    /// Refresh tokens that came for a replay, while an earlier request with the same one was without an outcome.
    overtaken: HashSet<String>,
    /// When something stood in the way of a provider's grants, or (with no name) of all: from, to, for each cause.
    troubles: BTreeMap<(&'static str, &'static str), Vec<(u64, u64)>>,
    pub stepped_at: Option<u64>,
    /// Whether all that is witnessed is printed as well.
    pub talks: bool,
}

impl Witness {
    pub fn broken(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub fn tell(&self, now: u64, what: std::fmt::Arguments<'_>) {
        if self.talks {
            eprintln!("{:>12.3} {what}", now as f64 / 1000.0);
        }
    }

    pub fn crashed(&mut self, durable: &Durable, now: u64) {
        self.stats.crashes += 1;
        self.tell(now, format_args!("the daemon dies"));
        self.in_flight.clear();
        let came_before = now.saturating_sub(SPILLED_WITHIN);
        let lost = self.received.iter().find(|(token, (_, came_at))| {
            (self.failing_until..came_before).contains(came_at)
                && !self.brought.contains_key(*token)
        });
        if let Some((token, _)) = lost.map(|(token, came)| (token.clone(), came)) {
            self.broken(format!(
                "I2: {token} dies with the daemon, held and not spilled"
            ));
        }
        self.received.clear();
        self.vouched.clear();
        for row in durable.rows.values() {
            self.vouched.extend(row.access_token.iter().map(text));
            // A write that was thought to have failed may be there after all.
            if let Some(token) = &row.refresh_token {
                self.owners.insert(token.expose().to_owned(), row.grant.id);
            }
            if !matches!(row.grant.standing, Standing::Paused(_)) {
                self.suspended.remove(&row.grant.id);
            }
        }
        for fate in self.fates.values_mut().filter(|fate| fate.open > 0) {
            fate.lost_at = now;
        }
    }

    /// A copy has taken the store's place.
    pub fn restored(&mut self, durable: &Durable, rotates: impl Fn(&str) -> bool) {
        self.stats.restores += 1;
        self.vouched.clear();
        self.ended_at.clear();
        self.owners.clear();
        self.suspended.clear();
        for row in durable.rows.values() {
            let id = row.grant.id;
            self.vouched.extend(row.access_token.iter().map(text));
            let Some(token) = &row.refresh_token else {
                continue;
            };
            self.owners.insert(token.expose().to_owned(), id);
            if rotates(&row.grant.key.provider) {
                self.suspended.insert(id);
                self.restored.insert(token.expose().to_owned());
            }
        }
    }

    /// An admin has resumed a grant by name.
    pub fn released(&mut self, id: GrantId) {
        if !self.rehearsal && self.suspended.remove(&id) {
            self.stats.released += 1;
        }
    }

    /// Something begins to stand in the way.
    pub fn trouble_begins(&mut self, provider: &'static str, cause: &'static str, now: u64) {
        self.tell(now, format_args!("{provider} {cause} begins"));
        let troubles = self.troubles.entry((provider, cause)).or_default();
        if troubles.last().is_none_or(|(_, to)| *to != u64::MAX) {
            troubles.push((now, u64::MAX));
        }
        if troubles.len() > 64 {
            troubles.drain(..32);
        }
    }

    pub fn trouble_ends(&mut self, provider: &'static str, cause: &'static str, now: u64) {
        self.tell(now, format_args!("{provider} {cause} ends"));
        if let Some((_, to)) = self
            .troubles
            .entry((provider, cause))
            .or_default()
            .last_mut()
            && *to == u64::MAX
        {
            *to = now;
        }
    }

    /// Since when nothing stands in the way of a provider's grants; `None` while something does.
    pub fn clear_since(&self, provider: &str) -> Option<u64> {
        let ends = self
            .troubles_of(provider)
            .filter_map(|troubles| troubles.last());
        let end = ends.map(|(_, to)| *to).max().unwrap_or(0);
        (end != u64::MAX).then_some(end)
    }

    fn troubles_of(&self, provider: &str) -> impl Iterator<Item = &Vec<(u64, u64)>> {
        let concerns = move |of: &str| of.is_empty() || of == provider;
        let troubles = self.troubles.iter();
        troubles.filter_map(move |((of, _), troubles)| concerns(of).then_some(troubles))
    }

    /// Whether nothing stood in the way for `length` somewhere between two moments.
    fn was_clear(&self, provider: &str, from: u64, to: u64, length: u64) -> bool {
        let mut troubles: Vec<(u64, u64)> = self.troubles_of(provider).flatten().copied().collect();
        troubles.sort_unstable();
        let mut clear_from = from;
        for (begin, end) in troubles {
            if begin.min(to) >= clear_from.saturating_add(length) {
                return true;
            }
            clear_from = clear_from.max(end);
        }
        to >= clear_from.saturating_add(length)
    }

    /// A request is about to leave; `grant` is the row that has this token, if one still has it.
    pub fn sends(
        &mut self,
        grant: Option<&Grant>,
        token: &RefreshToken,
        floor: u64,
        held: bool,
        now: u64,
    ) {
        self.stats.sent += 1;
        let Some(id) = self.owners.get(token.expose()).copied() else {
            return self.broken("a refresh token is presented that nobody brought".to_owned());
        };
        self.tell(
            now,
            format_args!("{} is presented for {grant:?}", token.expose()),
        );
        if self.in_flight.insert(id, now).is_some() {
            self.broken(format!("I1: a second attempt at {id:?} is in flight"));
        }
        if held {
            self.broken(format!("I2: {id:?} is refreshed while its set is held"));
        }
        if self.suspended.contains(&id) {
            self.broken(format!("{id:?} was restored, and nobody released it"));
        }
        if let Some(ended_at) = self.ended_at.get(&id).copied()
            && now < ended_at + floor
            && self.stepped_at.is_none_or(|stepped| stepped < ended_at)
        {
            let after = now - ended_at;
            self.broken(format!(
                "floor: {id:?} is refreshed {after} ms after its last attempt"
            ));
        }
        let fate = self.fates.entry(token.expose().to_owned()).or_insert(Fate {
            first_sent_at: now,
            ..Fate::default()
        });
        fate.open += 1;
    }

    /// The daemon has an answer, or has none and waits no longer.
    pub fn outcome(&mut self, token: &RefreshToken, outcome: &Outcome, now: u64) {
        let presented = token.expose();
        self.tell(
            now,
            format_args!("{presented} ends with {}", outcome.code()),
        );
        if let Outcome::Tokens(set) = outcome {
            let received = (presented.to_owned(), now);
            self.received.insert(text(&set.access_token), received);
        }
        let told = !matches!(outcome, Outcome::Tokens(_) | Outcome::Unknown(_));
        if let Some(id) = self.owners.get(presented) {
            self.in_flight.remove(id);
            self.ended_at.insert(*id, now);
        }
        if let Some(fate) = self.fates.get_mut(presented) {
            if told {
                fate.open -= 1;
            } else {
                fate.lost_at = now;
            }
            if fate.open == 0 {
                self.fates.remove(presented);
            }
        }
    }

    /// Since when a request of this grant is out, if one is.
    pub fn out_since(&self, id: GrantId) -> Option<u64> {
        self.in_flight.get(&id).copied()
    }

    /// Whose requests are out.
    pub fn out(&self) -> Option<GrantId> {
        self.in_flight.keys().next().copied()
    }

    /// A token set is being committed over `row`.
    pub fn commits(&mut self, row: &Row, commit: &TokenCommit) {
        if self.rehearsal {
            return;
        }
        let id = row.grant.id;
        let presented = self.taken(commit);
        if row.refresh_token.as_ref().map(RefreshToken::expose) != presented.as_deref() {
            self.broken(format!(
                "I3: a late set overwrites generation {} of {id:?}",
                row.grant.generation
            ));
        }
        self.stats.committed += 1;
        // What it brought is known from now on.
        if let Some(presented) = &presented {
            self.restored.remove(presented);
        }
        let fate = presented.and_then(|token| self.fates.remove(&token));
        let overtakes = fate.is_some_and(|fate| fate.open > 1);
        self.stats.saved_by_replay += u64::from(overtakes);
        if let Some(token) = &commit.tokens.refresh_token {
            self.owners.insert(token.expose().to_owned(), id);
            if overtakes {
                self.overtaken.insert(token.expose().to_owned());
            }
        }
        self.vouched
            .extend(commit.tokens.access_token.iter().map(text));
    }

    /// A token set has lost, and is in the revocation queue or the grant's own anyhow.
    pub fn superseded(&mut self, commit: &TokenCommit) {
        if !self.rehearsal {
            self.stats.superseded += 1;
            self.taken(commit);
        }
    }

    /// A set has found its place. Returns the refresh token that was presented for it.
    fn taken(&mut self, commit: &TokenCommit) -> Option<String> {
        let token = text(commit.tokens.access_token.as_ref()?);
        let received = self.received.remove(&token);
        let received = received.map(|(presented, _)| presented);
        let presented = received.or_else(|| self.brought.get(&token).cloned())?;
        // A server that keeps the refresh token may be shown it again, with another successor.
        self.spilled.remove(&presented);
        Some(presented)
    }

    /// Names a set that came before `at` and has found no place since.
    pub fn dropped_before(&self, at: u64) -> Option<&str> {
        let mut received = self.received.values();
        let dropped = received.find(|(_, came_at)| *came_at < at);
        dropped.map(|(presented, _)| presented.as_str())
    }

    /// A token set is being imported.
    pub fn imported(&mut self, id: GrantId, import: &Import) {
        if !self.rehearsal {
            self.ended_at.remove(&id);
            self.suspended.remove(&id);
            let tokens = &import.tokens;
            self.vouched.extend(tokens.access_token.iter().map(text));
            if let Some(token) = &tokens.refresh_token {
                self.owners.insert(token.expose().to_owned(), id);
            }
        }
    }

    /// A set is in the spill file.
    pub fn spills(&mut self, commit: &TokenCommit) {
        let Some(token) = commit.tokens.access_token.as_ref().map(text) else {
            return;
        };
        if let Some((presented, _)) = self.received.get(&token) {
            self.spilled.insert(presented.clone());
            self.brought.insert(token, presented.clone());
        }
    }

    /// A caller is answered with a token. `held` is the one that is held for this grant.
    pub fn answers(&mut self, token: &str, held: Option<&str>, lives: bool) {
        self.stats.answered += 1;
        if !self.vouched.contains(token) && held != Some(token) {
            self.broken(format!(
                "I2: {token} is answered with, and neither on disk nor held"
            ));
        }
        if !lives {
            self.broken(format!("{token} is answered with, and has ended"));
        }
    }

    /// The server was shown a superseded refresh token outside its grace. Of one that came back with a copy, nobody here
    /// could know that.
    pub fn replay(&mut self, token: &RefreshToken, nothing_left: bool, class: Class) {
        if !nothing_left && !self.restored.contains(token.expose()) {
            self.broken(format!(
                "{}, superseded, is presented while its access token lives ({class:?})",
                token.expose()
            ));
        }
    }

    /// A grant is about to need authorization, because the server refused `token`.
    pub fn verdict(
        &mut self,
        grant: &Grant,
        token: &RefreshToken,
        reason: NeedsReason,
        server: (Class, Option<Ending>),
    ) {
        if self.rehearsal {
            return;
        }
        let (id, (class, ending)) = (grant.id, server);
        let restored = self.restored.contains(token.expose());
        let presented_twice = grant.mark.is_some_and(|mark| mark.presented > 1);
        // The refused presentation has its outcome: what is still open are earlier ones.
        let fate = self.fates.get(token.expose()).copied().unwrap_or_default();
        match ending {
            None => self.broken(format!(
                "I5: {id:?} needs authorization, and the server never refused it"
            )),
            // What ended it may have happened after the copy was made.
            Some(_) if restored => {}
            Some(Ending::ByDaemon) => {
                self.broken(format!("{id:?} was revoked by the daemon itself"))
            }
            // A request of before a crash has arrived after the one that replayed it. Had it arrived before that, the
            // grant were lost as well, and nobody could know of either.
            Some(Ending::OfReplay) if self.overtaken.contains(token.expose()) => {
                self.stats.lost_rotations += 1;
            }
            Some(Ending::OfReplay) => {
                self.stats.lost_rotations += 1;
                if fate.open == 0 {
                    self.broken(format!(
                        "{id:?} is lost without an unknown outcome ({class:?})"
                    ));
                }
                if self.spilled.contains(token.expose()) {
                    self.broken(format!("{id:?} is lost although its set was spilled"));
                }
                if reason != NeedsReason::LostRotation {
                    self.broken(format!(
                        "{id:?} is lost and labelled {reason:?} ({class:?})"
                    ));
                }
                self.judge_loss(grant, fate, class);
            }
            Some(Ending::ByUser | Ending::OfDisuse) => {
                if reason == NeedsReason::LostRotation && !presented_twice {
                    self.broken(format!("{id:?} was revoked and is labelled lost"));
                }
            }
        }
    }

    /// A grant is about to need authorization, because the server went on refusing it without saying why. Only a
    /// server that goes on serving others may be believed in that (I5).
    pub fn believes_refusals(&mut self, grant: &Grant, served_ago: u64) {
        if !self.rehearsal && served_ago > 24 * 3_600_000 {
            let hours = served_ago / 3_600_000;
            self.broken(format!(
                "I5: {:?} is given up while its provider serves nobody for {hours} h",
                grant.id
            ));
        }
    }

    fn judge_loss(&mut self, grant: &Grant, fate: Fate, class: Class) {
        let id = grant.id;
        match class {
            Class::None | Class::Overlap => {
                self.broken(format!(
                    "{id:?} is lost at a server that forgives ({class:?})"
                ));
            }
            Class::Grace(grace, _) => {
                let ends_at = fate.first_sent_at + grace.as_millis() as u64;
                let provider = &grant.key.provider;
                // Presented twice in vain, as far as anybody can tell from the marks, before this time.
                let lost_again = fate.open > 1 || grant.mark.is_some_and(|mark| mark.presented > 2);
                // By a clock that was set forward it looks over; and after a suspend it is.
                let stepped = self.stepped_at.is_some_and(|at| at >= fate.first_sent_at);
                if !lost_again
                    && !stepped
                    && self.was_clear(provider, fate.lost_at, ends_at, FAIR_CHANCE)
                {
                    self.broken(format!("{id:?} is lost although its grace could be used"));
                }
            }
            Class::Strict | Class::Periodic => {}
        }
    }
}

fn text(token: &AccessToken) -> String {
    token.expose().to_owned()
}
