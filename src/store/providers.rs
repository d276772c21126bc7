//! What is kept about a provider across restarts.

use std::collections::BTreeMap;

use rusqlite::params;

use super::rows::{maybe_time, millis};
use super::writer::Class;
use super::{Store, StoreError};
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
    /// Whether an admin paused the provider.
    pub paused: bool,
    /// The margin, in milliseconds, that the due times in the table were computed with.
    pub margin_ms: Option<i64>,
}

impl Store {
    /// Returns what is kept about each provider, by its name.
    pub async fn provider_states(&self) -> Result<BTreeMap<String, ProviderState>, StoreError> {
        self.read(|session| {
            let sql = "SELECT name, stopped, stopped_credentials, stopped_at, cool_down_until,
                    paused, margin_ms FROM providers";
            let states = session.all(sql, [], |row| {
                let state = ProviderState {
                    stopped: row.get(1)?,
                    stopped_credentials: row.get(2)?,
                    stopped_at: maybe_time(row, 3)?,
                    cool_down_until: maybe_time(row, 4)?,
                    paused: row.get(5)?,
                    margin_ms: row.get(6)?,
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
                        stopped_at, cool_down_until, paused, margin_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![
                        name,
                        state.stopped,
                        state.stopped_credentials,
                        millis(state.stopped_at),
                        millis(state.cool_down_until),
                        state.paused,
                        state.margin_ms,
                    ],
                )
                .map(drop)
        })
        .await
    }
}
