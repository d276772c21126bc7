//! The verbs, each as `src/store/` has it.

use std::collections::BTreeSet;

use freshd::refresh::grant::{Grant, GrantId, GrantKey, Mark, PauseReason, Standing};
use freshd::refresh::horizon::Due;
use freshd::refresh::policy::REFUSED_BACKOFF_CAP;
use freshd::refresh::reading::Readable;
use freshd::refresh::time::UnixTime;
use freshd::refresh::token::TokenKind;

use super::keys::opens;
use super::{
    Attemptable, By, Cas, Disk, Failure, Import, Imported, ProviderState, Restamper, RevocationId,
    RevocationJob, Row, Store, StoreError, TokenCommit, linger,
};
use crate::world::{Break, world};

fn applied(row: Option<&mut Row>, change: impl FnOnce(&mut Grant)) -> Result<Cas, StoreError> {
    let Some(row) = row else { return Ok(Cas::Lost) };
    row.grant.version += 1;
    change(&mut row.grant);
    Ok(Cas::Applied(row.grant.clone()))
}

impl Store {
    pub fn fingerprint(&self, _: &str, _: &[u8]) -> [u8; 32] {
        [0; 32]
    }

    pub fn failing(&self) -> Option<String> {
        (world().disk.get() != Disk::Sound).then(|| "the disk".to_owned())
    }

    pub fn watch(&self) {}

    pub async fn alive(&self) -> Result<(), StoreError> {
        self.write(|_, _| Ok(())).await
    }

    /// When an earlier life last wrote.
    pub fn written_at(&self) -> Option<UnixTime> {
        self.written_at
    }

    pub async fn set_provider_state(
        &self,
        name: &str,
        state: ProviderState,
    ) -> Result<(), StoreError> {
        self.write(|_, durable| {
            durable.providers.insert(name.to_owned(), state);
            Ok(())
        })
        .await
    }

    pub async fn grant_by_id(&self, id: GrantId) -> Result<Option<Grant>, StoreError> {
        self.read(|durable| Some(durable.rows.get(&id)?.grant.clone()))
            .await
    }

    pub async fn grant(&self, key: &GrantKey) -> Result<Option<Grant>, StoreError> {
        self.read(|durable| Some(durable.find(key)?.grant.clone()))
            .await
    }

    pub async fn grants_of_user(&self, _: &str, user: &str) -> Result<Vec<Grant>, StoreError> {
        self.read(|durable| {
            let rows = durable.ids.values().map(|id| &durable.rows[id].grant);
            rows.filter(|grant| grant.key.user == user)
                .cloned()
                .collect()
        })
        .await
    }

    pub async fn readable(
        &self,
        key: &GrantKey,
        _: UnixTime,
    ) -> Result<Option<Readable>, StoreError> {
        self.read(|durable| {
            let row = durable.find(key)?;
            opens(row.key, "an access token");
            Some(row.readable())
        })
        .await
    }

    pub async fn attemptable(
        &self,
        id: GrantId,
        _: UnixTime,
    ) -> Result<Option<Attemptable>, StoreError> {
        self.read(|durable| {
            let row = durable.rows.get(&id)?;
            opens(row.key, "a refresh token");
            let key = &row.grant.key;
            let user = (key.namespace.clone(), key.user.clone());
            Some(Attemptable {
                grant: row.grant.clone(),
                last_active_at: durable.activity.get(&user).copied(),
                refresh_token: row.refresh_token.clone(),
            })
        })
        .await
    }

    pub async fn due_within(
        &self,
        provider: &str,
        after: Option<(UnixTime, GrantId)>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError> {
        self.read(|durable| {
            let due = |row: &Row| {
                let grant = &row.grant;
                let due_at = grant.due_at.filter(|at| *at <= until)?;
                let wanted = grant.key.provider == provider
                    && after.is_none_or(|after| (due_at, grant.id) > after);
                wanted.then_some(Due {
                    id: grant.id,
                    due_at,
                    expires_at: grant.expires_at(),
                    version: grant.version,
                })
            };
            let mut rows: Vec<Due> = durable.rows.values().filter_map(due).collect();
            rows.sort_by_key(|row| (row.due_at, row.id));
            rows.truncate(limit);
            rows
        })
        .await
    }

    pub async fn begin_attempt(
        &self,
        id: GrantId,
        generation: u64,
        unchanged: Option<(u64, Option<Mark>)>,
        at: UnixTime,
    ) -> Result<Cas, StoreError> {
        if world().disk.get() == Disk::Full {
            linger().await;
            return Err(StoreError::NoSpace);
        }
        self.write(|world, durable| {
            let found = durable
                .at_generation(id, generation)
                .filter(|row| unchanged.is_none_or(|it| it == (row.grant.version, row.grant.mark)));
            let Some(row) = found else {
                return Ok(Cas::Lost);
            };
            if world.broken != Some(Break::NoMark) {
                let mark = row.grant.mark.get_or_insert(Mark {
                    first_sent_at: at,
                    presented: 0,
                });
                mark.presented += 1;
            }
            Ok(Cas::Applied(row.grant.clone()))
        })
        .await
    }

    pub async fn commit_tokens(&self, commit: TokenCommit) -> Result<Cas, StoreError> {
        self.write(|world, durable| {
            let key = world.keys.borrow().current;
            let cas = world.broken != Some(Break::NoCas);
            let row = durable.rows.get_mut(&commit.id);
            let at_generation =
                |row: &&mut Row| !cas || row.grant.generation == commit.presented_generation;
            let Some(row) = row.filter(at_generation) else {
                durable.queue_lost_set(&commit, key);
                world.witness.borrow_mut().superseded(&commit);
                return Ok(Cas::Lost);
            };
            world.witness.borrow_mut().commits(row, &commit);
            row.commit(&commit, key);
            Ok(Cas::Applied(row.grant.clone()))
        })
        .await
    }

    pub async fn record_failure(
        &self,
        id: GrantId,
        generation: u64,
        failure: Failure,
    ) -> Result<Cas, StoreError> {
        self.write(|world, durable| {
            if let Some(reason) = failure.needs_authorization
                && let Some(row) = durable.at_generation(id, generation)
            {
                world.witness_verdict(row, reason);
            }
            applied(durable.at_generation(id, generation), |grant| {
                let put_away = matches!(
                    grant.standing,
                    Standing::Paused(
                        PauseReason::Admin | PauseReason::Held | PauseReason::Restored
                    )
                );
                if !(put_away && grant.due_at.is_none()) {
                    grant.due_at = failure.due_at;
                }
                if let Some(reason) = failure.needs_authorization {
                    grant.standing = Standing::NeedsAuthorization(reason);
                    grant.standing_since = failure.at;
                }
                grant.attempted_at = Some(failure.at);
                grant.failures = failure.failures;
                grant.last_failure = Some(failure.code);
                grant.refused_since = failure.refused_since;
                if !failure.fate_unknown
                    && let Some(mark) = &mut grant.mark
                {
                    mark.presented = mark.presented.saturating_sub(1);
                    grant.mark = grant.mark.filter(|mark| mark.presented > 0);
                }
            })
        })
        .await
    }

    pub async fn warn_of_end(
        &self,
        id: GrantId,
        generation: u64,
        _: UnixTime,
    ) -> Result<Cas, StoreError> {
        self.write(|world, durable| {
            world.witness.borrow_mut().stats.warned += 1;
            applied(durable.at_generation(id, generation), |grant| {
                if let Some(end) = &mut grant.refresh_token_end {
                    end.warn_at = None;
                }
            })
        })
        .await
    }

    pub async fn stamped_after(
        &self,
        now: UnixTime,
        after: Option<GrantId>,
        limit: usize,
    ) -> Result<Vec<GrantId>, StoreError> {
        self.read(|durable| {
            let rows = durable.rows.values().map(|row| &row.grant);
            let ahead = rows.filter(|grant| {
                Some(grant.id) > after && grant.restamped(now, Default::default()).is_some()
            });
            ahead.map(|grant| grant.id).take(limit).collect()
        })
        .await
    }

    pub async fn restamp_rest(&self, now: UnixTime) -> Result<(), StoreError> {
        self.write(|_, durable| {
            for job in durable.revocations.values_mut() {
                job.created_at = job.created_at.min(now);
                job.next_at = job.next_at.min(now + REFUSED_BACKOFF_CAP);
            }
            for at in durable.activity.values_mut() {
                *at = (*at).min(now);
            }
            Ok(())
        })
        .await
    }

    pub async fn restamp(&self, ids: Vec<GrantId>, restamp: Restamper) -> Result<u64, StoreError> {
        self.write(|world, durable| {
            let mut changed = 0;
            for id in ids {
                if let Some(row) = durable.rows.get_mut(&id)
                    && let Some(grant) = restamp(&row.grant)
                {
                    let version = row.grant.version + 1;
                    row.grant = Grant { version, ..grant };
                    row.key = world.keys.borrow().current;
                    changed += 1;
                }
            }
            Ok(changed)
        })
        .await
    }

    pub async fn make_marked_due(&self, provider: &str) -> Result<Vec<GrantId>, StoreError> {
        self.write(|_, durable| {
            let rests = [PauseReason::Inactive, PauseReason::Unused].map(Standing::Paused);
            let mut made = Vec::new();
            for row in durable.rows.values_mut() {
                let grant = &mut row.grant;
                let goes_on = grant.standing == Standing::Active || rests.contains(&grant.standing);
                if grant.key.provider == provider
                    && goes_on
                    && let Some(mark) = grant.mark
                {
                    grant.version += 1;
                    grant.due_at = Some(mark.first_sent_at);
                    made.push(grant.id);
                }
            }
            Ok(made)
        })
        .await
    }

    pub async fn set_due(
        &self,
        id: GrantId,
        generation: u64,
        due_at: Option<UnixTime>,
    ) -> Result<Cas, StoreError> {
        self.write(|_, durable| {
            applied(durable.at_generation(id, generation), |grant| {
                grant.due_at = due_at;
            })
        })
        .await
    }

    pub async fn set_standing(
        &self,
        id: GrantId,
        standing: Standing,
        due_at: Option<UnixTime>,
        by: By,
        at: UnixTime,
    ) -> Result<Option<Grant>, StoreError> {
        self.write(|world, durable| {
            let Some(row) = durable.rows.get_mut(&id) else {
                return Ok(None);
            };
            world.witness_standing(&row.grant, standing, by);
            if row.grant.standing != standing {
                row.grant.standing_since = at;
            }
            row.grant.version += 1;
            row.grant.standing = standing;
            row.grant.due_at = due_at;
            Ok(Some(row.grant.clone()))
        })
        .await
    }

    pub async fn import(&self, import: Import) -> Result<Imported, StoreError> {
        self.write(|world, durable| {
            let key = world.keys.borrow().current;
            let Some(row) = durable.find(&import.key) else {
                let grant = durable.create(&import, key);
                world.witness.borrow_mut().imported(grant.id, &import);
                return Ok(Imported::Created(grant));
            };
            let token = import.tokens.refresh_token.as_ref();
            if token.is_some_and(|token| row.knows(token)) {
                return Ok(Imported::Unchanged(row.grant.clone()));
            }
            if !import.replace {
                return Ok(Imported::Exists(row.grant.clone()));
            }
            let id = row.grant.id;
            world.witness.borrow_mut().imported(id, &import);
            let row = durable.rows.get_mut(&id).expect("just found");
            row.take_in(&import, key);
            Ok(Imported::Replaced(row.grant.clone()))
        })
        .await
    }

    pub async fn delete(
        &self,
        key: &GrantKey,
        at: UnixTime,
        revoke: bool,
    ) -> Result<Option<Grant>, StoreError> {
        linger().await;
        {
            let world = world();
            if world.disk.get() != Disk::Sound {
                return Err(StoreError::Unavailable);
            }
            // The journal of erasures comes first.
            world.erased.borrow_mut().push((world.wall(), key.clone()));
        }
        self.write(|world, durable| {
            let Some(row) = durable.remove(key) else {
                return Ok(None);
            };
            if let Some(token) = row.refresh_token.filter(|_| revoke) {
                let key = world.keys.borrow().current;
                durable.queue(&row.grant.key.provider, token.expose(), at, key);
            }
            Ok(Some(row.grant))
        })
        .await
    }

    pub async fn note_activity(
        &self,
        users: Vec<(String, String, UnixTime)>,
    ) -> Result<(), StoreError> {
        self.write(|_, durable| {
            let users = users
                .into_iter()
                .map(|(namespace, user, at)| ((namespace, user), at));
            durable.activity.extend(users);
            Ok(())
        })
        .await
    }

    pub async fn last_activity(
        &self,
        namespace: &str,
        user: &str,
    ) -> Result<Option<UnixTime>, StoreError> {
        let user = (namespace.to_owned(), user.to_owned());
        self.read(|durable| durable.activity.get(&user).copied())
            .await
    }

    pub async fn revocations_due_at(&self, now: UnixTime) -> Result<Vec<String>, StoreError> {
        // Asked each 30 s, for months.
        if world().durable.borrow().revocations.is_empty() {
            return Ok(Vec::new());
        }
        self.read(|durable| {
            let jobs = durable.revocations.values();
            let due = jobs.filter(|job| job.next_at <= now);
            let providers: BTreeSet<_> = due.map(|job| job.provider.clone()).collect();
            providers.into_iter().collect()
        })
        .await
    }

    pub async fn revocations_due(
        &self,
        provider: &str,
        now: UnixTime,
        limit: usize,
    ) -> Result<Vec<RevocationJob>, StoreError> {
        self.read(|durable| {
            let jobs = durable.revocations.values();
            let jobs = jobs.filter(|job| job.provider == provider);
            let due = jobs.filter(|job| job.next_at <= now).take(limit);
            due.map(|job| {
                opens(job.key, "a revocation");
                RevocationJob {
                    id: job.id,
                    provider: job.provider.clone(),
                    kind: TokenKind::Refresh,
                    token: job.token.clone().into(),
                    tries: job.tries,
                    created_at: job.created_at,
                }
            })
            .collect()
        })
        .await
    }

    pub async fn revocation_done(&self, id: RevocationId) -> Result<(), StoreError> {
        self.write(|_, durable| {
            durable.revocations.remove(&id);
            Ok(())
        })
        .await
    }

    pub async fn revocation_later(
        &self,
        id: RevocationId,
        next_at: UnixTime,
    ) -> Result<(), StoreError> {
        self.write(|_, durable| {
            if let Some(job) = durable.revocations.get_mut(&id) {
                job.tries += 1;
                job.next_at = next_at;
            }
            Ok(())
        })
        .await
    }
}
