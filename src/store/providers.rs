//! What is kept about a provider across restarts.

use std::collections::BTreeMap;

use rusqlite::params;

use super::rows::{maybe_time, millis};
use super::writer::Class;
use super::{Store, StoreError};
use crate::refresh::pacing::Unreachable;
use crate::refresh::time::UnixTime;

/// What is kept about a provider across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderState {
    /// Why no request leaves (`invalid_client`), if so.
    pub stopped: Option<String>,
    /// A keyed fingerprint of the client credentials that were refused; see [`Store::fingerprint`].
    pub stopped_credentials: Option<Vec<u8>>,
    /// Since when it is stopped.
    pub stopped_at: Option<UnixTime>,
    /// No request leaves before this.
    pub cool_down_until: Option<UnixTime>,
    /// When it last served a token set; may be a minute behind after a crash.
    pub served_at: Option<UnixTime>,
    /// That it can't be reached, if so.
    pub unreachable: Option<Unreachable>,
    /// Whether an admin paused the provider.
    pub paused: bool,
    /// What the due times in the table were computed with; see [`Policy::schedule`](crate::refresh::policy::Policy::schedule).
    pub schedule: Option<String>,
    /// Every token set from before this is to be replaced; see [`renewal`](crate::refresh::renewal).
    pub renew_before: Option<UnixTime>,
}

impl Store {
    /// Returns what is kept about each provider, by its name.
    pub async fn provider_states(&self) -> Result<BTreeMap<String, ProviderState>, StoreError> {
        self.read(|session| {
            let sql = "SELECT name, stopped, stopped_credentials, stopped_at, cool_down_until,
                    paused, schedule, served_at, unreachable_since, probe_at,
                    renew_before FROM providers";
            let states = session.all(sql, [], |row| {
                let unreachable = match (maybe_time(row, 8)?, maybe_time(row, 9)?) {
                    (Some(since), Some(probe_at)) => Some(Unreachable { since, probe_at }),
                    _ => None,
                };
                let state = ProviderState {
                    stopped: row.get(1)?,
                    stopped_credentials: row.get(2)?,
                    stopped_at: maybe_time(row, 3)?,
                    cool_down_until: maybe_time(row, 4)?,
                    paused: row.get(5)?,
                    schedule: row.get(6)?,
                    served_at: maybe_time(row, 7)?,
                    unreachable,
                    renew_before: maybe_time(row, 10)?,
                };
                Ok((row.get(0)?, state))
            })?;
            Ok(states.into_iter().collect())
        })
        .await
    }

    /// Replaces what is kept about one provider.
    pub async fn set_provider_state(
        &self,
        name: &str,
        state: ProviderState,
    ) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(Class::Rest, move |session| {
            session
                .write(
                    "INSERT OR REPLACE INTO providers (name, stopped, stopped_credentials,
                        stopped_at, cool_down_until, paused, schedule, served_at,
                        unreachable_since, probe_at, renew_before)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                    params![
                        name,
                        state.stopped,
                        state.stopped_credentials,
                        millis(state.stopped_at),
                        millis(state.cool_down_until),
                        state.paused,
                        state.schedule,
                        millis(state.served_at),
                        millis(state.unreachable.map(|it| it.since)),
                        millis(state.unreachable.map(|it| it.probe_at)),
                        millis(state.renew_before),
                    ],
                )
                .map(drop)
        })
        .await
    }
}
