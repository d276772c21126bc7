//! When users were last active, in a narrow table of its own.

use rusqlite::params;

use super::rows;
use super::writer::Class;
use super::{Store, StoreError};
use crate::refresh::time::UnixTime;

impl Store {
    /// Returns when a user was last active, as far as it has been written.
    pub async fn last_activity(
        &self,
        namespace: &str,
        user: &str,
    ) -> Result<Option<UnixTime>, StoreError> {
        let (namespace, user) = (namespace.to_owned(), user.to_owned());
        self.read_for_caller(move |session| rows::last_activity(session, &namespace, &user))
            .await
    }

    /// Writes when users (namespace, user) were last active. A moment never goes back.
    ///
    /// Of a user without a grant nothing is written: a note that was still in memory when the last
    /// grant was deleted must not bring the name back.
    pub async fn note_activity(
        &self,
        notes: Vec<(String, String, UnixTime)>,
    ) -> Result<(), StoreError> {
        self.write(Class::Rest, move |session| {
            for (namespace, user, at) in &notes {
                session.write(
                    "INSERT INTO activity (namespace, user, last_active_at)
                     SELECT ?1, ?2, ?3
                        WHERE EXISTS (SELECT 1 FROM grants WHERE namespace = ?1 AND user = ?2)
                     ON CONFLICT DO UPDATE
                        SET last_active_at = max(last_active_at, excluded.last_active_at)",
                    params![namespace, user, at.as_millis()],
                )?;
            }
            Ok(())
        })
        .await
    }
}
