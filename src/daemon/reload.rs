//! From a validated configuration to what runs: at start, and again at SIGHUP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::driver::Event;
use super::providers::Live;
use super::shared::{Shared, lock};
use crate::config::{App, AppPeer, Config, ConfigError};
use crate::local_api::quotas::Quota;
use crate::local_api::rules::{Rule, RulePeer, Rules};
use crate::refresh::grant::GrantId;
use crate::token_endpoint::{Client, ClientError, Outbound};

/// Why a configuration that is right in itself can't run.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The CA bundle can't be read.
    #[error("outbound.ca-bundle {file} cannot be read", file = file.display())]
    CaBundle {
        /// The file.
        file: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A provider's HTTP client can't be made.
    #[error("provider.{provider}: {source}")]
    Client {
        /// The provider.
        provider: String,
        /// Why.
        source: ClientError,
    },
}

/// Makes the providers' clients.
pub(super) fn clients(config: &Config) -> Result<BTreeMap<String, Arc<Live>>, ApplyError> {
    let ca_bundle = match &config.outbound.ca_bundle {
        None => None,
        Some(file) => Some(std::fs::read(file).map_err(|source| ApplyError::CaBundle {
            file: file.clone(),
            source,
        })?),
    };
    let outbound = Outbound {
        proxy: config.outbound.proxy.clone(),
        ca_bundle,
    };
    config
        .providers
        .iter()
        .map(|(name, provider)| {
            let client = Client::new(provider.registration.clone(), &outbound);
            let client = client.map_err(|source| ApplyError::Client {
                provider: name.clone(),
                source,
            })?;
            let live = Live {
                config: provider.clone(),
                client,
            };
            Ok((name.clone(), Arc::new(live)))
        })
        .collect()
}

/// Makes the rules of the local API, and opens the accounts of their apps.
pub(super) fn rules(shared: &Shared, config: &Config) -> Rules {
    let apps = config.apps.iter();
    let rules: Vec<Rule> = apps.map(|(name, app)| rule(name, app)).collect();
    shared.quotas.configure(rules.iter());
    Rules::new(rules)
}

fn rule(name: &str, app: &App) -> Rule {
    Rule {
        app: name.to_owned(),
        peer: match app.peer {
            AppPeer::Uid(uid) => RulePeer::Uid(uid),
            AppPeer::Gid(gid) => RulePeer::Gid(gid),
            AppPeer::Socket(_) => RulePeer::Socket,
        },
        namespace: app.namespace.clone(),
        providers: app.providers.clone(),
        read: app.may.read,
        import: app.may.import,
        revoke: app.may.revoke,
        authorize: app.may.authorize,
        counts_as_activity: app.counts_as_activity,
        quota: Quota {
            connections: app.quota.connections,
            requests_per_second: app.quota.requests_per_second,
            alarm_users: app.quota.alarm_users_per_hour,
            users: app.quota.users_per_hour,
        },
    }
}

/// Puts new providers in force: clients, pace, stops lifted by mended credentials, margins.
pub(super) async fn apply(
    shared: &Arc<Shared>,
    config: &Config,
    live: BTreeMap<String, Arc<Live>>,
) {
    shared.metrics.configure(live.keys());
    let inactive_after = config.providers.values().map(|it| it.policy.inactive_after);
    let shortest = inactive_after.min().unwrap_or(Duration::MAX);
    shared.activity.set_inactive_after(shortest);
    for provider in shared.providers.configure(live).await {
        tracing::info!(%provider, reason = "the credentials have changed", "provider-resumed");
    }
    *lock(&shared.config_files) = config
        .files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    let _ = shared.driver.send(Event::ProvidersChanged {
        max_in_flight: Some(config.max_in_flight),
    });
    for (name, provider) in &config.providers {
        let computed_with = shared
            .providers
            .state(name)
            .and_then(|state| state.schedule);
        if computed_with != Some(provider.policy.schedule()) {
            tokio::spawn(reschedule(shared.clone(), name.clone()));
        }
    }
}

/// Rows that are rescheduled in one transaction.
const BATCH: usize = 1000;

/// Recomputes the due times of a provider's rows. What they were computed with is noted only when all is done: a crash, or a
/// reload meanwhile, begins it anew.
async fn reschedule(shared: Arc<Shared>, provider: String) {
    let Some(live) = shared.providers.find(&provider) else {
        return;
    };
    let schedule = live.config.policy.schedule();
    let mut after: Option<GrantId> = None;
    let mut changed = 0;
    loop {
        let policy = live.config.policy.clone();
        let before = shared.providers.renew_before(&provider);
        let page = shared
            .store
            .reschedule(
                &provider,
                after,
                BATCH,
                Box::new(move |grant| grant.due_with_renewal(before, grant.scheduled_at(&policy))),
            )
            .await;
        match page {
            Ok((next, rows)) => {
                changed += rows;
                after = next;
            }
            Err(error) => {
                tracing::warn!(%provider, %error, "reschedule-failed");
                return;
            }
        }
        if after.is_none() {
            break;
        }
    }
    let current = shared.providers.find(&provider);
    if current.is_none_or(|current| current.config.policy.schedule() != schedule) {
        return; // a newer reload does it again
    }
    if let Err(error) = shared.providers.set_schedule(&provider, schedule).await {
        tracing::warn!(%provider, %error, "reschedule-failed");
    }
    if changed > 0 {
        tracing::info!(%provider, grants = changed, margin = ?live.config.policy.margin, "rescheduled");
        let _ = shared.driver.send(Event::Rescheduled { provider });
    }
}

/// Says what a reload can't change, because it was fixed at the start.
pub(super) fn fixed_at_start(running: &Config, new: &Config) -> Vec<&'static str> {
    let mut fixed = Vec::new();
    if running.maintenance != new.maintenance {
        fixed.push("maintenance");
    }
    let (running, new) = (&running.daemon, &new.daemon);
    let mut check = |key, changed: bool| {
        if changed {
            fixed.push(key);
        }
    };
    check("daemon.state-dir", running.state_dir != new.state_dir);
    check("daemon.socket", running.socket != new.socket);
    check(
        "daemon.admin-socket",
        running.admin_socket != new.admin_socket,
    );
    check("daemon.key-file", running.key_file != new.key_file);
    check("daemon.cache", running.cache_bytes != new.cache_bytes);
    check("daemon.log-users", running.log_users != new.log_users);
    check("daemon.log-level", running.log_level != new.log_level);
    check("daemon.log-format", running.log_format != new.log_format);
    check(
        "daemon.metrics-listen",
        running.metrics_listen != new.metrics_listen,
    );
    check(
        "daemon.allow-export",
        running.allow_export != new.allow_export,
    );
    check(
        "daemon.revocation-days",
        running.revocation_days != new.revocation_days,
    );
    fixed
}

/// All errors of a configuration in one line.
pub(super) fn in_one_line(errors: &[ConfigError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("; ")
}
