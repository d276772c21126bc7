//! Which rules are in force, and what a reload or a start has changed of them: for the audit.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::audit;
use super::shared::Shared;
use crate::config::{Config, describe};
use crate::local_api::keeper::Audited;
use crate::store::{AuditFilter, StoreError};

/// A note has no more bytes of changes; what is left out is counted.
const MOST: usize = 2000;

/// Apps, providers and what concerns all of them, by name, as `freshctl check-config` shows them: no secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InForce(BTreeMap<String, Vec<String>>);

impl InForce {
    pub(super) fn of(config: &Config) -> Self {
        let described = describe(config);
        let lines = |text: String| -> Vec<String> {
            let lines = text.lines().skip(1);
            lines
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect()
        };
        let apps = described.apps.iter();
        let apps = apps.map(|app| (format!("app {}", app.name), lines(app.to_string())));
        let providers = described.providers.iter();
        let providers =
            providers.map(|it| (format!("provider {}", it.name), lines(it.to_string())));
        let all = vec![
            format!("proxy {}", described.proxy.as_deref().unwrap_or("none")),
            format!(
                "ca-bundle {}",
                described.ca_bundle.as_deref().unwrap_or("none")
            ),
            format!("allow-export {}", described.allow_export),
        ];
        InForce(
            apps.chain(providers)
                .chain([("all".to_owned(), all)])
                .collect(),
        )
    }

    /// Returns what stands for it as a whole.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (name, lines) in &self.0 {
            hash.update(format!("{name}\n{}\n\n", lines.join("\n")));
        }
        let digest = hash.finalize();
        digest
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Returns each change since `old`, of which nothing is known at a start.
    fn changes(&self, old: Option<&InForce>) -> Vec<String> {
        let mut changes = Vec::new();
        for (name, now) in &self.0 {
            match old.map(|old| old.0.get(name)) {
                None => changes.push(format!("{name}: {}", now.join(", "))),
                Some(None) => changes.push(format!("{name} is new: {}", now.join(", "))),
                Some(Some(before)) => {
                    let gone: Vec<&str> = only_in(before, now);
                    let came: Vec<&str> = only_in(now, before);
                    if !gone.is_empty() || !came.is_empty() {
                        changes.push(format!("{name}: {} → {}", listed(&gone), listed(&came)));
                    }
                }
            }
        }
        let gone = old.into_iter().flat_map(|old| old.0.keys());
        let gone = gone.filter(|name| !self.0.contains_key(*name));
        changes.extend(gone.map(|name| format!("{name} is gone")));
        changes
    }

    /// Returns what the audit tells of a reload that put this in the place of `old`, if that changes anything.
    pub(super) fn reloaded(&self, old: &InForce) -> Option<Audited> {
        (self != old).then(|| self.note("reload", &self.changes(Some(old))))
    }

    fn note(&self, by: &str, changes: &[String]) -> Audited {
        let mut detail = String::new();
        let mut told = 0;
        for change in changes {
            let more = change.len() + 2;
            if told > 0 && detail.len() + more > MOST {
                break;
            }
            let end = change.floor_char_boundary(MOST);
            detail.push_str(&change[..end]);
            detail.push_str("; ");
            told += 1;
        }
        if told < changes.len() {
            detail.push_str(&format!("and {} more; ", changes.len() - told));
        }
        detail.push_str(&format!("digest {}", self.digest()));
        Audited {
            action: Audited::RULES_CHANGED,
            by: by.to_owned(),
            user: None,
            detail,
        }
    }
}

/// Tells what is in force after a start, unless the last note told of the same.
///
/// # Errors
///
/// The store can't be read.
pub(super) async fn tell_at_start(shared: &Shared, config: &Config) -> Result<(), StoreError> {
    let in_force = InForce::of(config);
    let filter = AuditFilter {
        action: Some(Audited::RULES_CHANGED.to_owned()),
        user: None,
        before: None,
    };
    let last = shared.store.notes(filter, 1).await?;
    let digest = format!("digest {}", in_force.digest());
    if !last.iter().any(|(_, note)| note.detail.ends_with(&digest)) {
        let note = in_force.note("start", &in_force.changes(None));
        audit::tell_now(shared, note).await;
    }
    Ok(())
}

fn only_in<'a>(these: &'a [String], those: &[String]) -> Vec<&'a str> {
    let missing = these.iter().filter(|line| !those.contains(line));
    missing.map(String::as_str).collect()
}

fn listed(lines: &[&str]) -> String {
    match lines {
        [] => "nothing".to_owned(),
        lines => lines.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_force(apps: &[(&str, &[&str])]) -> InForce {
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        InForce(
            apps.iter()
                .map(|(name, lines)| ((*name).to_owned(), owned(lines)))
                .collect(),
        )
    }

    #[test]
    fn a_reload_tells_what_was_widened_added_and_taken_away_and_an_idle_one_nothing() {
        let old = in_force(&[
            ("app a", &["peer uid 1", "may read"]),
            ("app b", &["may read"]),
        ]);
        let new = in_force(&[
            ("app a", &["peer uid 1", "may read, import"]),
            ("app c", &["may read"]),
        ]);
        let detail = new.reloaded(&old).unwrap().detail;
        let told = "app a: may read → may read, import; app c is new: may read; app b is gone; ";
        assert_eq!(detail, format!("{told}digest {}", new.digest()));
        assert_eq!(new.reloaded(&new), None);
        assert_ne!(old.digest(), new.digest());
    }

    #[test]
    fn a_note_is_bounded_and_says_what_it_leaves_out() {
        let names: Vec<String> = (0..100).map(|nth| format!("app {nth:03}")).collect();
        let line = "peer user ünknown, may read";
        let lines: [&str; 1] = [line];
        let apps: Vec<(&str, &[&str])> = names.iter().map(|it| (it.as_str(), &lines[..])).collect();
        let now = in_force(&apps);
        let note = now.note("start", &now.changes(None));
        assert!(note.detail.len() < MOST + 100, "{}", note.detail.len());
        assert!(note.detail.contains(" more; digest "), "{}", note.detail);
    }
}
