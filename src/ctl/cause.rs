//! The cause of a grant's present state, in words, and what to do about it.

use super::failing::hint;
use super::grants::provider_and_account;
use super::output::exact;
use super::why::{Kind, kind, outcome, refreshes, token, whole};
use crate::local_api::types::{History, HistoryEntry};
use crate::refresh::time::UnixTime;

/// The cause of a grant's present state, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) why: String,
    pub(super) hint: String,
}

impl Cause {
    fn new(why: impl Into<String>, hint: impl Into<String>) -> Cause {
        Cause {
            why: why.into(),
            hint: hint.into(),
        }
    }
}

/// A story and the daemon's clock.
pub(super) struct Teller<'a> {
    pub(super) story: &'a History,
    pub(super) now: Option<UnixTime>,
}

impl Teller<'_> {
    /// Returns the cause of the present state, and what bears on it besides.
    pub(super) fn cause(&self) -> (Cause, Vec<String>) {
        let grant = &self.story.grant;
        let mut besides = Vec::new();
        if self.story.moved {
            let cause = Cause::new(
                "A final backup moved this store to another host: nothing is refreshed here any more.",
                "ask freshd on the other host; if the move was called off, stop freshd here and restore that copy: \
                 freshctl restore FILE --replace",
            );
            besides.extend(self.served());
            return (cause, besides);
        }
        let provider = self.provider();
        let cause = match grant.state.as_str() {
            "needs-authorization" => self.needs_authorization(),
            "paused" => self.paused(),
            _ => match provider {
                Some(cause) => {
                    besides.extend(self.store());
                    besides.extend(self.doubt());
                    besides.extend(self.served());
                    return (cause, besides);
                }
                None => return self.active(),
            },
        };
        besides.extend(provider.map(|cause| cause.why));
        besides.extend(self.store());
        besides.extend(self.served());
        (cause, besides)
    }

    fn at(&self, at: &str) -> String {
        exact(&whole(at), self.now)
    }

    /// The last entry that `wanted` knows.
    fn last(&self, wanted: impl Fn(&HistoryEntry) -> bool) -> Option<&HistoryEntry> {
        self.story.entries.iter().rev().find(|entry| wanted(entry))
    }

    /// Returns a command about this grant.
    fn command(&self, verb: &str) -> String {
        let grant = &self.story.grant;
        let (user, provider) = (&grant.user, provider_and_account(grant));
        let namespace = match grant.namespace.as_str() {
            "default" => String::new(),
            other => format!(" --namespace {other}"),
        };
        format!("freshctl {verb} {user} {provider}{namespace}")
    }

    fn needs_authorization(&self) -> Cause {
        let grant = &self.story.grant;
        let again = "let the user authorize again";
        match grant.reason.as_str() {
            "revoked-or-used-elsewhere" => Cause::new(
                format!(
                    "{} {}: the user or the provider revoked it, or another program used it.",
                    self.refused(),
                    self.earlier_uses()
                ),
                format!(
                    "{again}; if it recurs, look for another program that still refreshes this grant"
                ),
            ),
            "lost-rotation (probable)" => Cause::new(
                format!(
                    "{} {}, so the server had probably replaced it by one that never arrived: lost-rotation (probable).",
                    self.refused(),
                    self.lost_request()
                ),
                again,
            ),
            "no-refresh-token" => Cause::new(
                format!(
                    "The access token ended on {}, and there is no refresh token to renew it with.",
                    self.at(grant.expires_at.as_deref().unwrap_or(&grant.since))
                ),
                format!("{again}, with offline access; or import a refresh token"),
            ),
            "refused" => Cause::new(
                format!(
                    "{} It does so without saying why, for more than a day after the access token has ended, and serves other grants meanwhile.",
                    self.refused()
                ),
                format!(
                    "look at the app's registration at the provider; if all is well there, {again}"
                ),
            ),
            "expired" => Cause::new(
                format!(
                    "The access token ended on {} before a refresh succeeded, and this provider refreshes a token only while the old one lives.",
                    self.at(grant.expires_at.as_deref().unwrap_or(&grant.since))
                ),
                format!("{again}; and look for an outage before it ended"),
            ),
            reason => Cause::new(
                format!(
                    "It needs authorization since {}: {reason}.",
                    self.at(&grant.since)
                ),
                again,
            ),
        }
    }

    fn refusal(&self) -> Option<&HistoryEntry> {
        let generation = self.story.grant.generation;
        self.last(|e| e.event == "failed" && e.generation == generation && e.status.is_some())
    }

    /// "The server refused the refresh token 91bc0d4e with 400 invalid_grant on …."
    fn refused(&self) -> String {
        match self.refusal() {
            Some(refusal) => format!(
                "The server refused the {} with {} on {}.",
                token(refusal.presented.as_ref()),
                outcome(refusal),
                self.at(refusal.until.as_ref().unwrap_or(&refusal.at))
            ),
            None => format!(
                "The server refused the refresh token on {}.",
                self.at(&self.story.grant.since)
            ),
        }
    }

    /// What became of the refused refresh token before it was refused.
    fn earlier_uses(&self) -> String {
        let presented = self
            .refusal()
            .and_then(|refusal| refusal.presented.as_ref());
        if presented.is_none() {
            return "No earlier use of it was left without an answer".to_owned();
        }
        let worked = self.last(|e| e.event == "refreshed" && e.presented.as_ref() == presented);
        if let Some(worked) = worked {
            let last = worked.until.as_ref().unwrap_or(&worked.at);
            return format!("It had worked before, the last time on {}", self.at(last));
        }
        let answered = self.story.entries.iter().any(|e| {
            e.event == "failed"
                && e.presented.as_ref() == presented
                && e.status.is_some()
                && Some(e) != self.refusal()
        });
        if answered {
            "Every earlier use of it had been answered".to_owned()
        } else {
            "It had been presented once only".to_owned()
        }
    }

    /// What became of the request whose answer was lost.
    fn lost_request(&self) -> String {
        let generation = self.story.grant.generation;
        let lost = self.last(|entry| {
            matches!(
                entry.event.as_str(),
                "unanswered" | "interrupted" | "restored"
            ) && entry.generation == generation
        });
        match lost {
            Some(cut) if cut.event == "interrupted" => format!(
                "An earlier request with it, of {}, was cut off when freshd ended",
                self.at(&cut.at)
            ),
            Some(restored) if restored.event == "restored" => format!(
                "It had come back with a copy of {}, and had probably been used after that",
                self.at(&restored.at)
            ),
            Some(unanswered) => format!(
                "An earlier request with it, of {}, got no whole answer ({})",
                self.at(unanswered.until.as_ref().unwrap_or(&unanswered.at)),
                outcome(unanswered)
            ),
            None => "An earlier request with it got no answer".to_owned(),
        }
    }

    fn paused(&self) -> Cause {
        let grant = &self.story.grant;
        let since = self.at(&grant.since);
        let kept_alive = grant.due_at.as_deref().map_or_else(String::new, |at| {
            format!(
                " So that its refresh token does not die of disuse, it is refreshed on {}.",
                self.at(at)
            )
        });
        let back = "nothing: it resumes by itself when the user is back";
        match grant.reason.as_str() {
            "admin" => Cause::new(
                format!("An admin paused it on {since}."),
                self.command("resume"),
            ),
            "held" => Cause::new(
                format!("It was imported with hold on {since} and waits to be released."),
                format!(
                    "once the old system has stopped refreshing it: {}",
                    self.command("release")
                ),
            ),
            "restored" => Cause::new(
                format!(
                    "It came back on {since} with a copy{}, and its refresh token may have been spent since that copy was made.",
                    self.last(|entry| entry.event == "restored")
                        .map_or_else(String::new, |entry| format!(" of {}", self.at(&entry.at)))
                ),
                format!("if nothing else refreshes it: {}", self.command("release")),
            ),
            "quarantined" => Cause::new(
                format!(
                    "A sealed value of it did not open on {since}: somebody edited the database, or the disk is at fault."
                ),
                "import it anew with --replace, or let the user authorize again",
            ),
            "inactive" => Cause::new(
                format!(
                    "The user was away: no read that counts and no activity note came, so it rests since {since}.{kept_alive}"
                ),
                back,
            ),
            "unused" => Cause::new(
                format!(
                    "Nobody read its tokens: {} in a row went unused, so it rests since {since}.{kept_alive}",
                    refreshes(u64::from(grant.unused_refreshes))
                ),
                back,
            ),
            reason => Cause::new(
                format!("It is paused since {since}: {reason}."),
                self.command("resume"),
            ),
        }
    }

    /// Why no request leaves for the provider, if so.
    fn provider(&self) -> Option<Cause> {
        let (name, standing) = (&self.story.grant.provider, &self.story.provider);
        let since = |word: &str| {
            let since = standing.since.as_deref();
            since.map_or_else(String::new, |at| format!(" {word} {}", self.at(at)))
        };
        match standing.state.as_str() {
            "running" => None,
            "not-configured" => Some(Cause::new(
                format!(
                    "Provider {name} is not in the configuration, so nothing of it is refreshed."
                ),
                format!("put [provider.{name}] back into the configuration, or revoke the grant"),
            )),
            "stopped" => Some(Cause::new(
                format!(
                    "Provider {name} refuses our client, not this user ({}), so it is stopped{} and none of its grants is refreshed.",
                    standing.reason,
                    since("since")
                ),
                format!(
                    "mend provider.{name}'s client-id or client-secret, then systemctl reload freshd; or to try as it is: \
                     freshctl resume --provider-wide {name}"
                ),
            )),
            "paused" => Some(Cause::new(
                format!("An admin paused provider {name}{}.", since("on")),
                format!("freshctl resume --provider-wide {name}"),
            )),
            "cooling-down" => Some(Cause::new(
                format!(
                    "Provider {name} asked for a rest: no request leaves for it{}.",
                    since("until")
                ),
                "nothing: it goes on by itself",
            )),
            "unreachable" => Some(Cause::new(
                format!(
                    "Provider {name} is unreachable{}: requests for several grants in a row failed, so only a few are tried.",
                    since("since")
                ),
                format!(
                    "nothing for this user: it goes on by itself; or to try at once: freshctl resume --provider-wide {name}"
                ),
            )),
            other => Some(Cause::new(
                format!("Provider {name} is {other}{}.", since("since")),
                "see: freshctl providers",
            )),
        }
    }

    /// An active grant whose provider runs.
    fn active(&self) -> (Cause, Vec<String>) {
        let grant = &self.story.grant;
        let mut besides = Vec::new();
        let due = grant.due_at.as_deref().map(|at| self.at(at));
        let cause = if let Some(trouble) = self.store() {
            besides.extend(self.doubt());
            let hint = "make room, or mend the disk, under daemon.state-dir; do not kill freshd: a stop spills what it holds";
            Cause::new(trouble, hint)
        } else if !grant.has_refresh_token {
            Cause::new(
                "There is no refresh token, so the access token is served to its end and not renewed.",
                "let the user authorize again, with offline access; or import a refresh token",
            )
        } else if let Some(doubt) = self.doubt() {
            Cause::new(doubt, "nothing yet: the next attempt tells")
        } else if grant.failures > 0 {
            self.failing(due)
        } else {
            let done = match &grant.refreshed_at {
                Some(at) => format!("refreshed on {}", self.at(at)),
                None => format!("imported on {}", self.at(&grant.imported_at)),
            };
            let next = due.map_or_else(
                || "it is refreshed when a reader asks".to_owned(),
                |due| format!("the next refresh is due on {due}"),
            );
            Cause::new(
                format!("All is well: {done}; {next}."),
                "nothing has to be done",
            )
        };
        besides.extend(self.served());
        (cause, besides)
    }

    fn failing(&self, due: Option<String>) -> Cause {
        let grant = &self.story.grant;
        let failed = self.last(|entry| matches!(entry.event.as_str(), "failed" | "unanswered"));
        let how = match failed {
            Some(entry) => match kind(entry) {
                Kind::NotSent => format!("the server could not be reached ({})", outcome(entry)),
                Kind::NoAnswer => format!("no whole answer came ({})", outcome(entry)),
                Kind::Refused => format!("the server answered {}", outcome(entry)),
            },
            None => format!("{:?}", grant.last_failure.as_deref().unwrap_or("unknown")),
        };
        let code = failed.and_then(|entry| entry.code.as_deref());
        let code = code.or(grant.last_failure.as_deref());
        let last = grant.attempted_at.as_deref().unwrap_or(&grant.since);
        let attempts = match grant.failures {
            1 => "The last attempt failed".to_owned(),
            n => format!("The last {n} attempts failed"),
        };
        let next = due.map_or_else(String::new, |due| {
            format!(" The next attempt is due on {due}.")
        });
        Cause::new(
            format!(
                "{attempts}, most recently on {}: {how}. That is no verdict on the grant.{next}",
                self.at(last)
            ),
            hint(code.unwrap_or_default(), &grant.provider),
        )
    }

    /// A request whose outcome nobody knows.
    fn doubt(&self) -> Option<String> {
        let unanswered = self.story.unanswered.as_ref()?;
        let since = self.at(&unanswered.since);
        let ends = self.story.grant.expires_at.as_deref();
        let again = match self.story.provider.rotation.as_str() {
            "overlap" | "none" => "It is presented again at the next attempt.".to_owned(),
            _ => ends.map_or_else(String::new, |at| {
                format!("If no grace is left, it is presented again when the access token has ended, on {}, and not before: there might be something to lose.", self.at(at))
            }),
        };
        let last = self.story.entries.last();
        let what = match last.filter(|entry| entry.event == "unanswered") {
            Some(entry) => format!(
                "A request of {since} got no whole answer ({}): the server may have replaced the refresh token.",
                outcome(entry)
            ),
            None => self.came_back(&unanswered.since).unwrap_or_else(|| {
                format!("A request of {since} is under way, or was cut off: the server may have replaced the refresh token.")
            }),
        };
        Some(format!("{what} {again}").trim_end().to_owned())
    }

    /// Says that a copy of `made_at` was restored, where that is all that makes the refresh token doubtful.
    fn came_back(&self, made_at: &str) -> Option<String> {
        let entries = &self.story.entries;
        let came = entries
            .iter()
            .rposition(|entry| entry.event == "restored")?;
        let (restored, after) = (&entries[came], &entries[came + 1..]);
        let generation = self.story.grant.generation;
        let asked = after
            .iter()
            .any(|entry| entry.generation == generation && entry.presented.is_some());
        if restored.at != made_at || asked {
            return None;
        }
        let released = after.iter().find(|entry| entry.event == "resumed");
        let released = released.map_or_else(String::new, |entry| {
            format!(" and was released on {}", self.at(&entry.at))
        });
        Some(format!(
            "It came back on {} with a copy of {}{released}: its refresh token may have been spent since that copy was made.",
            self.at(restored.until.as_ref().unwrap_or(&restored.at)),
            self.at(made_at)
        ))
    }

    /// Trouble with the store.
    fn store(&self) -> Option<String> {
        let held = if self.story.held {
            " A newer token set is held in memory and served."
        } else {
            ""
        };
        match self.story.store.as_str() {
            "ok" if held.is_empty() => None,
            "ok" => Some(held.trim_start().to_owned()),
            trouble => Some(format!(
                "The store cannot be written ({trouble}), so no refresh token that rotates is used.{held}"
            )),
        }
    }

    /// Until when the access token is served, whatever became of the rest.
    fn served(&self) -> Option<String> {
        let grant = &self.story.grant;
        // There the cause has said it.
        if matches!(grant.reason.as_str(), "no-refresh-token" | "expired") {
            return None;
        }
        let at = grant.expires_at.as_deref()?;
        let ended = UnixTime::from_rfc3339(at)
            .zip(self.now)
            .map(|(at, now)| at <= now)?;
        Some(if ended {
            format!("The access token ended on {}.", self.at(at))
        } else {
            format!("The access token is served until {}.", self.at(at))
        })
    }
}
