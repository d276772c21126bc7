//! What the routes ask of the daemon, answered.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::audit;
use super::changes::{self, detached, store_problem};
use super::import;
use super::scrape;
use super::shared::{Shared, lock};
use super::view;
use crate::local_api::export::{ExportRequest, ExportStream};
use crate::local_api::keeper::{
    AuditRequest, Audited, EventStream, Keeper, ListRequest, Target, Token, TokenRequest,
};
use crate::local_api::problem;
use crate::local_api::types::{
    AuditList, BackupAnswer, BackupRequest, Changed, GrantList, GrantView, History, ImportAnswer,
    ImportRequest, KeysView, Problem, ProviderList, RenewalView, Status, UserView,
};
use crate::refresh::grant::{Grant, GrantId, GrantKey, PauseReason, Standing};
use crate::refresh::time::UnixTime;
use crate::store::{By, Filter, StoreError};

/// The daemon's side of the routes. Cheap to clone.
#[derive(Clone)]
pub struct Daemon(pub(super) Arc<Shared>);

impl Keeper for Daemon {
    fn token_in_memory(&self, request: &TokenRequest) -> Option<Token> {
        let token = self.token_in_memory(request)?;
        self.0.metrics.of(&request.key.provider).served();
        Some(token)
    }

    async fn token(&self, request: &TokenRequest) -> Result<Token, Problem> {
        let numbers = self.0.metrics.of(&request.key.provider);
        let token = self.token_for(request).await?;
        numbers.served();
        Ok(token)
    }

    async fn refresh(
        &self,
        request: &TokenRequest,
        generation: Option<u64>,
    ) -> Result<Token, Problem> {
        let numbers = self.0.metrics.of(&request.key.provider);
        let token = self.newer_token_for(request, generation).await?;
        numbers.served();
        Ok(token)
    }

    async fn import(
        &self,
        key: GrantKey,
        tokens: ImportRequest,
        replace: bool,
        hold: bool,
    ) -> Result<ImportAnswer, Problem> {
        let Some(live) = self.0.providers.find(&key.provider) else {
            return Err(self.provider_unknown(&key.provider));
        };
        let now = self.0.clock.now();
        let tokens = import::token_set(tokens, now, &live.config.policy)?;
        let shared = self.0.clone();
        // Detached: a caller who hangs up leaves no half of it.
        let (result, grant) = detached(async move {
            let _open = shared.moving.change().await?;
            changes::import(&shared, key, tokens, replace, hold).await
        })
        .await?;
        Ok(ImportAnswer {
            result: result.to_owned(),
            grant: view::grant(&grant),
        })
    }

    async fn grant(&self, key: GrantKey) -> Result<GrantView, Problem> {
        Ok(view::grant(&self.find(&key).await?))
    }

    async fn history(&self, key: GrantKey) -> Result<History, Problem> {
        let found = if lock(&self.0.deleting).contains(&key) {
            None
        } else {
            self.0.store.history(&key).await.map_err(store_problem)?
        };
        let (grant, entries) = found.ok_or_else(|| self.missing(&key))?;
        Ok(view::history(&self.0, &grant, &entries))
    }

    async fn user(&self, namespace: String, user: String) -> Result<UserView, Problem> {
        let grants = self.grants_of(&namespace, &user).await?;
        if grants.is_empty() {
            return Err(problem::no_such_user(&namespace, &user));
        }
        let last_active_at = self
            .0
            .activity
            .last(&namespace, &user)
            .await
            .map_err(store_problem)?;
        Ok(UserView {
            last_active_at: last_active_at.map(UnixTime::rfc3339),
            grants: grants.iter().map(view::grant).collect(),
            namespace,
            user,
        })
    }

    async fn delete(&self, key: GrantKey, by: String) -> Result<Changed, Problem> {
        self.find(&key).await?;
        let shared = self.0.clone();
        detached(async move {
            let _open = shared.moving.change().await?;
            changes::delete(&shared, key, &by).await
        })
        .await?;
        Ok(Changed { changed: 1 })
    }

    async fn delete_user(
        &self,
        namespace: String,
        user: String,
        providers: Option<Vec<String>>,
        by: String,
    ) -> Result<Changed, Problem> {
        let grants: Vec<Grant> = self
            .grants_of(&namespace, &user)
            .await?
            .into_iter()
            .filter(|grant| {
                providers
                    .as_ref()
                    .is_none_or(|names| names.contains(&grant.key.provider))
            })
            .collect();
        if grants.is_empty() {
            return Err(problem::no_such_user(&namespace, &user));
        }
        let shared = self.0.clone();
        detached(async move {
            let _open = shared.moving.change().await?;
            let keys: Vec<GrantKey> = grants.into_iter().map(|grant| grant.key).collect();
            // Unreadable at once, all of them, before the first one waits for its slot.
            let _hidden = changes::Hidden::new(&shared, keys.clone());
            let changed = keys.len() as u64;
            for key in keys {
                changes::delete(&shared, key, &by).await?;
            }
            Ok(Changed { changed })
        })
        .await
    }

    async fn activity(&self, namespace: String, user: String) -> Result<UserView, Problem> {
        let grants = self.grants_of(&namespace, &user).await?;
        if grants.is_empty() {
            return Err(problem::no_such_user(&namespace, &user));
        }
        self.0.activity.note(&namespace, &user, self.0.clock.now());
        self.wake_user(&grants, true).await?;
        self.user(namespace, user).await
    }

    async fn pause(&self, target: Target, by: String) -> Result<Changed, Problem> {
        if let Target::Provider(name) = &target {
            return self.pause_provider(name, &by).await;
        }
        let pauses = |standing| {
            !matches!(
                standing,
                Standing::NeedsAuthorization(_)
                    | Standing::Paused(
                        PauseReason::Admin
                            | PauseReason::Held
                            | PauseReason::Restored
                            | PauseReason::Quarantined
                    )
            )
        };
        let to = Standing::Paused(PauseReason::Admin);
        self.change_standing(target, pauses, to, by, "paused").await
    }

    async fn resume(&self, target: Target, release: bool, by: String) -> Result<Changed, Problem> {
        let resumes: fn(Standing) -> bool = if release {
            |standing| matches!(standing, Standing::Paused(_))
        } else {
            |standing| {
                matches!(standing, Standing::Paused(_))
                    && standing != Standing::Paused(PauseReason::Restored)
            }
        };
        // Or the next due time would find the user still away.
        let (namespace, user) = match &target {
            Target::Grant(key) => (&key.namespace, &key.user),
            Target::User { namespace, user } => (namespace, user),
            Target::Provider(name) => return self.resume_provider(name, &by).await,
        };
        self.0.activity.note(namespace, user, self.0.clock.now());
        self.change_standing(target, resumes, Standing::Active, by, "resumed")
            .await
    }

    async fn list(&self, request: ListRequest) -> Result<GrantList, Problem> {
        let after = match &request.cursor {
            None => None,
            Some(cursor) => Some(GrantId(cursor.parse().map_err(|_| {
                problem::bad_request("cursor must be the next_cursor of an earlier page")
            })?)),
        };
        let filter = Filter {
            namespace: request.namespace,
            user: request.user,
            state: request.state,
            reason: request.reason,
            ending_after: request.ending.then(|| self.0.clock.now()),
            failing_at: request.failing.then(|| self.0.clock.now()),
            provider: request.provider,
            missing_scope: request.missing_scope,
        };
        let mut grants = self
            .0
            .store
            .list(filter, after, request.limit + 1)
            .await
            .map_err(store_problem)?;
        let more = grants.len() > request.limit;
        grants.truncate(request.limit);
        let next_cursor = match grants.last() {
            Some(last) if more => Some(last.id.0.to_string()),
            _ => None,
        };
        Ok(GrantList {
            grants: grants.iter().map(view::grant).collect(),
            next_cursor,
        })
    }

    async fn status(&self) -> Result<Status, Problem> {
        view::status(&self.0).await.map_err(store_problem)
    }

    async fn providers(&self) -> Result<ProviderList, Problem> {
        let providers = view::providers(&self.0).await.map_err(store_problem)?;
        Ok(ProviderList { providers })
    }

    async fn events(&self, after: Option<u64>) -> Result<EventStream, Problem> {
        self.follow(after).await
    }

    async fn backup(&self, request: BackupRequest) -> Result<BackupAnswer, Problem> {
        self.back_up(request).await
    }

    async fn export(
        &self,
        request: ExportRequest,
        namespace: Option<String>,
        uid: Option<u32>,
    ) -> Result<ExportStream, Problem> {
        self.begin_export(request, namespace, uid).await
    }

    async fn rotate_key(&self) -> Result<KeysView, Problem> {
        self.begin_rotation().await
    }

    fn audit(&self, what: Audited) {
        if what.action == Audited::REFUSED {
            self.0.metrics.peer_refused();
        }
        audit::tell(&self.0, what);
    }

    async fn audited(&self, request: AuditRequest) -> Result<AuditList, Problem> {
        self.notes(request).await
    }

    async fn metrics(&self) -> String {
        scrape::page(&self.0).await
    }

    async fn renew(&self, provider: String) -> Result<RenewalView, Problem> {
        self.begin_renewal(provider).await
    }

    async fn renewal(&self, provider: String, dry_run: bool) -> Result<RenewalView, Problem> {
        self.look_at_renewal(provider, dry_run).await
    }

    async fn healthy(&self) -> Result<(), Problem> {
        // Both answer only while they make progress.
        if view::look(&self.0).await.is_none() {
            return Err(problem::internal());
        }
        self.0.store.alive().await.map_err(store_problem)?;
        // It may answer, and have no room for what the next refresh brings.
        match self.0.store.failing() {
            Some(failure) => Err(problem::store_unavailable(&failure)),
            None => Ok(()),
        }
    }
}

impl Daemon {
    async fn find(&self, key: &GrantKey) -> Result<Grant, Problem> {
        let found = if lock(&self.0.deleting).contains(key) {
            None
        } else {
            self.0.store.grant(key).await.map_err(store_problem)?
        };
        found.ok_or_else(|| self.missing(key))
    }

    async fn change_standing(
        &self,
        target: Target,
        from: fn(Standing) -> bool,
        to: Standing,
        by: String,
        told: &'static str,
    ) -> Result<Changed, Problem> {
        let keys: BTreeSet<GrantKey> = match target {
            Target::Grant(key) => BTreeSet::from([self.find(&key).await?.key]),
            Target::User { namespace, user } => {
                let grants = self.grants_of(&namespace, &user).await?;
                if grants.is_empty() {
                    return Err(problem::no_such_user(&namespace, &user));
                }
                grants.into_iter().map(|grant| grant.key).collect()
            }
            Target::Provider(name) => return Err(self.provider_unknown(&name)),
        };
        let shared = self.0.clone();
        detached(async move {
            let _open = shared.moving.change().await?;
            let mut changed = 0;
            for key in keys {
                changed += u64::from(
                    changes::restand(&shared, &key, from, to, By::Admin, Some(&by), told).await?,
                );
            }
            Ok(Changed { changed })
        })
        .await
    }

    async fn pause_provider(&self, name: &str, by: &str) -> Result<Changed, Problem> {
        self.configured(name)?;
        let _open = self.0.moving.change().await?;
        let paused = self.0.providers.pause(name).await;
        self.provider_changed(name, paused, by, "provider-paused")
            .await
    }

    async fn resume_provider(&self, name: &str, by: &str) -> Result<Changed, Problem> {
        self.configured(name)?;
        let _open = self.0.moving.change().await?;
        let resumed = self.0.providers.resume(name).await;
        self.provider_changed(name, resumed, by, "provider-resumed")
            .await
    }

    pub(super) fn configured(&self, name: &str) -> Result<(), Problem> {
        match self.0.providers.find(name) {
            Some(_) => Ok(()),
            None => Err(self.provider_unknown(name)),
        }
    }

    async fn provider_changed(
        &self,
        name: &str,
        written: Result<(), StoreError>,
        by: &str,
        told: &'static str,
    ) -> Result<Changed, Problem> {
        written.map_err(store_problem)?;
        tracing::info!(provider = name, by, "{told}");
        let counts = self.0.store.counts().await.map_err(store_problem)?;
        let changed = counts
            .iter()
            .filter(|count| count.provider == name)
            .map(|count| count.grants)
            .sum();
        Ok(Changed { changed })
    }
}
