//! What was understood: the answer of `freshctl check-config`. Holds no secret.

use std::fmt;

use serde::Serialize;

use super::value::show_duration;
use super::{App, AppPeer, Config, LogUsers};
use crate::profile::Provider;
use crate::refresh::policy::Rotation;

/// A configuration in words: `Display` for people, `Serialize` for programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The files it was read from, in order.
    pub files: Vec<String>,
    /// Where the state is.
    pub state_dir: String,
    /// The shared socket.
    pub socket: String,
    /// The admin socket.
    pub admin_socket: String,
    /// The key file.
    pub key_file: String,
    /// The cache's size in bytes; 0 is off.
    pub cache_bytes: usize,
    /// `error` to `trace`.
    pub log_level: String,
    /// `plain` or `hash`.
    pub log_users: &'static str,
    /// `auto`, `text` or `json`.
    pub log_format: &'static str,
    /// The loopback address of `/metrics`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<String>,
    /// Whether every admin may export secrets.
    pub allow_export: bool,
    /// How many days a revocation is tried.
    pub revocation_days: u32,
    /// Requests at once, over all providers.
    pub max_in_flight: usize,
    /// When, where and how many nightly backups are kept, or `off`.
    pub backup: String,
    /// Cron expression, or `off`.
    pub optimize: String,
    /// Cron expression, or `off`.
    pub purge: String,
    /// The proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The additional certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// By name.
    pub providers: Vec<ProviderDescription>,
    /// By name.
    pub apps: Vec<AppDescription>,
    /// Systemd credentials that were not read, because only the service can.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread_credentials: Vec<String>,
}

/// One provider.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProviderDescription {
    /// Its name.
    pub name: String,
    /// The profile under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Where refresh requests go.
    pub token_endpoint: String,
    /// Where revocations go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation_endpoint: Option<String>,
    /// `basic`, `body` or `none`.
    pub client_auth: &'static str,
    /// The client identifier, which is not a secret (RFC 6749 §2.2).
    pub client_id: String,
    /// The rotation class.
    pub rotation: &'static str,
    /// How long an old refresh token still works, such as `30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<String>,
    /// Such as `5m`.
    pub margin: String,
    /// Such as `3d`.
    pub inactive_after: String,
    /// Such as `1s`.
    pub floor: String,
    /// Refreshes in a row that nobody read, before a grant rests.
    pub max_unused_refreshes: u32,
    /// Where the server does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token_lifetime: Option<String>,
    /// After this long unused, a refresh token is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token_idle_lifetime: Option<String>,
    /// Whether paused grants are refreshed before that.
    pub keep_alive: bool,
    /// `scheduled` or `on-demand`.
    pub refresh: &'static str,
    /// The server refuses to refresh an access token that is younger than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_not_before: Option<String>,
    /// Whether the server takes a refresh only while the old access token lives.
    pub refresh_while_alive: bool,
    /// How long an unexplained refusal goes on before it is believed, such as `1d`.
    pub refuse_after: String,
    /// How long before a refresh token's end we warn, such as `7d`.
    pub refresh_token_warning: String,
    /// What means `invalid_grant` here.
    pub dead_grant_codes: Vec<String>,
    /// Requests at once.
    pub max_in_flight: usize,
    /// Requests per second; absent where there is no limit of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_second: Option<f64>,
    /// For a connection, such as `5s`.
    pub connect_timeout: String,
    /// For a whole request, such as `30s`.
    pub deadline: String,
    /// The scopes the app asks for.
    pub scopes: Vec<String>,
}

/// One app.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AppDescription {
    /// Its name.
    pub name: String,
    /// `uid 33`, `gid 33` or `socket /run/…`.
    pub peer: String,
    /// Its namespace.
    pub namespace: String,
    /// Its providers; `*` is all.
    pub providers: Vec<String>,
    /// Its verbs.
    pub may: Vec<&'static str>,
    /// Whether its reads keep users awake.
    pub counts_as_activity: bool,
    /// Connections at once.
    pub max_connections: usize,
    /// Requests a second.
    pub max_requests_per_second: u32,
    /// Users whose tokens it reads in an hour, before that is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm_users_per_hour: Option<usize>,
    /// Users whose tokens it may read in an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_users_per_hour: Option<usize>,
}

/// Says what was understood.
pub fn describe(config: &Config) -> Description {
    let daemon = &config.daemon;
    let off = |cron: &Option<String>| cron.clone().unwrap_or_else(|| "off".into());
    Description {
        files: config
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect(),
        state_dir: daemon.state_dir.display().to_string(),
        socket: daemon.socket.display().to_string(),
        admin_socket: daemon.admin_socket.display().to_string(),
        key_file: daemon.key_file.display().to_string(),
        cache_bytes: daemon.cache_bytes,
        log_level: daemon.log_level.clone(),
        log_format: daemon.log_format.name(),
        metrics_listen: daemon.metrics_listen.map(|address| address.to_string()),
        log_users: match daemon.log_users {
            LogUsers::Plain => "plain",
            LogUsers::Hash => "hash",
        },
        allow_export: daemon.allow_export,
        revocation_days: daemon.revocation_days,
        max_in_flight: config.max_in_flight,
        backup: match &config.maintenance.backup {
            Some(backup) => format!(
                "{} to {}, {} are kept",
                backup.cron,
                backup.dir.display(),
                backup.keep
            ),
            None => "off".into(),
        },
        optimize: off(&config.maintenance.optimize),
        purge: off(&config.maintenance.purge),
        proxy: config.outbound.proxy.as_ref().map(ToString::to_string),
        ca_bundle: config
            .outbound
            .ca_bundle
            .as_ref()
            .map(|path| path.display().to_string()),
        providers: config
            .providers
            .iter()
            .map(|(name, it)| provider(name, it))
            .collect(),
        apps: config.apps.iter().map(|(name, it)| app(name, it)).collect(),
        unread_credentials: Vec::new(),
    }
}

fn provider(name: &str, provider: &Provider) -> ProviderDescription {
    let Provider {
        registration,
        policy,
        pace,
        ..
    } = provider;
    ProviderDescription {
        name: name.into(),
        profile: provider.profile.clone(),
        token_endpoint: registration.token_endpoint.to_string(),
        revocation_endpoint: registration
            .revocation_endpoint
            .as_ref()
            .map(ToString::to_string),
        client_auth: registration.client_auth.name(),
        client_id: registration.client_id.clone(),
        rotation: policy.rotation.name(),
        grace: match policy.rotation {
            Rotation::Grace(grace) => Some(show_duration(grace)),
            _ => None,
        },
        margin: show_duration(policy.margin),
        inactive_after: show_duration(policy.inactive_after),
        floor: show_duration(policy.floor),
        max_unused_refreshes: policy.max_unused_refreshes,
        access_token_lifetime: policy.default_lifetime.map(show_duration),
        refresh_token_idle_lifetime: policy.refresh_token_idle_lifetime.map(show_duration),
        keep_alive: policy.keep_alive,
        refresh: policy.mode.name(),
        refresh_not_before: policy.refresh_not_before.map(show_duration),
        refresh_while_alive: policy.refresh_while_alive,
        refuse_after: show_duration(policy.refuse_after),
        refresh_token_warning: show_duration(policy.refresh_token_warning),
        dead_grant_codes: registration.dead_grant_codes.clone(),
        max_in_flight: pace.max_in_flight,
        rate_per_second: pace.rate,
        connect_timeout: show_duration(registration.connect_timeout),
        deadline: show_duration(registration.deadline),
        scopes: provider.scopes.clone(),
    }
}

fn app(name: &str, app: &App) -> AppDescription {
    let verbs = [
        ("read", app.may.read),
        ("import", app.may.import),
        ("revoke", app.may.revoke),
        ("authorize", app.may.authorize),
    ];
    AppDescription {
        name: name.into(),
        peer: match &app.peer {
            AppPeer::Uid(uid) => format!("uid {uid}"),
            AppPeer::Gid(gid) => format!("gid {gid}"),
            AppPeer::Socket(path) => format!("socket {}", path.display()),
        },
        namespace: app.namespace.clone(),
        providers: app.providers.clone().unwrap_or_else(|| vec!["*".into()]),
        may: verbs
            .iter()
            .filter(|(_, may)| *may)
            .map(|(verb, _)| *verb)
            .collect(),
        counts_as_activity: app.counts_as_activity,
        max_connections: app.quota.connections,
        max_requests_per_second: app.quota.requests_per_second.get(),
        alarm_users_per_hour: app.quota.alarm_users_per_hour,
        max_users_per_hour: app.quota.users_per_hour,
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "files         {}", self.files.join(", "))?;
        writeln!(f, "state         {}", self.state_dir)?;
        writeln!(f, "socket        {}", self.socket)?;
        writeln!(f, "admin socket  {}", self.admin_socket)?;
        writeln!(f, "key file      {}", self.key_file)?;
        match self.cache_bytes {
            0 => writeln!(f, "cache         off")?,
            bytes => writeln!(f, "cache         {} KiB", bytes >> 10)?,
        }
        writeln!(
            f,
            "log           {}, users {}, format {}",
            self.log_level, self.log_users, self.log_format
        )?;
        if let Some(address) = &self.metrics_listen {
            writeln!(f, "metrics       http://{address}/metrics")?;
        }
        if self.allow_export {
            writeln!(f, "export        every admin may export secrets")?;
        }
        writeln!(f, "revocations   tried for {} days", self.revocation_days)?;
        writeln!(f, "in flight     {} at once", self.max_in_flight)?;
        writeln!(
            f,
            "maintenance   backup {}; optimize {}, purge {} (UTC)",
            self.backup, self.optimize, self.purge
        )?;
        if let Some(proxy) = &self.proxy {
            writeln!(f, "proxy         {proxy}")?;
        }
        if let Some(bundle) = &self.ca_bundle {
            writeln!(f, "certificates  the system's and {bundle}")?;
        }
        self.providers
            .iter()
            .try_for_each(|provider| write!(f, "\n{provider}"))?;
        self.apps.iter().try_for_each(|app| write!(f, "\n{app}"))?;
        if !self.unread_credentials.is_empty() {
            let names = self.unread_credentials.join(", ");
            writeln!(
                f,
                "\nnot read, because only the service can: systemd credentials {names}"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for ProviderDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let profile = self
            .profile
            .as_ref()
            .map(|name| format!(" (profile {name})"));
        writeln!(f, "provider {}{}", self.name, profile.unwrap_or_default())?;
        writeln!(f, "  tokens      {}", self.token_endpoint)?;
        let revocation = self.revocation_endpoint.as_deref().unwrap_or("no endpoint");
        writeln!(f, "  revocation  {revocation}")?;
        writeln!(
            f,
            "  client      {}, authentication {}",
            self.client_id, self.client_auth
        )?;
        let grace = self
            .grace
            .as_ref()
            .map(|grace| format!(" {grace}"))
            .unwrap_or_default();
        writeln!(f, "  rotation    {}{grace}", self.rotation)?;
        writeln!(f, "  margin      {}, floor {}", self.margin, self.floor)?;
        let unused = self.max_unused_refreshes;
        writeln!(
            f,
            "  rests       after {} or {unused} unused refreshes",
            self.inactive_after
        )?;
        if let Some(idle) = &self.refresh_token_idle_lifetime {
            let keeps = if self.keep_alive {
                "kept alive"
            } else {
                "not kept alive"
            };
            writeln!(f, "  idle        refresh tokens end after {idle}, {keeps}")?;
        }
        let mut when = vec![self.refresh.to_owned()];
        if let Some(age) = &self.refresh_not_before {
            when.push(format!("not before a token is {age} old"));
        }
        if self.refresh_while_alive {
            when.push("only while the old token lives".to_owned());
        }
        writeln!(f, "  refresh     {}", when.join(", "))?;
        writeln!(
            f,
            "  refusals    believed {} past expiry, if unexplained",
            self.refuse_after
        )?;
        writeln!(
            f,
            "  warning     {} before a refresh token's end",
            self.refresh_token_warning
        )?;
        if let Some(lifetime) = &self.access_token_lifetime {
            writeln!(
                f,
                "  lifetime    {lifetime} where the server does not say it"
            )?;
        }
        if !self.dead_grant_codes.is_empty() {
            writeln!(f, "  dead grant  {}", self.dead_grant_codes.join(", "))?;
        }
        let rate = match self.rate_per_second {
            Some(rate) => format!("{rate} requests per second"),
            None => "no rate limit".into(),
        };
        writeln!(f, "  pace        {} at once, {rate}", self.max_in_flight)?;
        writeln!(
            f,
            "  time        {} to connect, {} in all",
            self.connect_timeout, self.deadline
        )?;
        if !self.scopes.is_empty() {
            writeln!(f, "  scopes      {}", self.scopes.join(" "))?;
        }
        Ok(())
    }
}

impl fmt::Display for AppDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "app {}", self.name)?;
        writeln!(f, "  peer        {}", self.peer)?;
        writeln!(f, "  namespace   {}", self.namespace)?;
        writeln!(f, "  providers   {}", self.providers.join(", "))?;
        writeln!(f, "  may         {}", self.may.join(", "))?;
        let keeps = if self.counts_as_activity {
            "keep users awake"
        } else {
            "keep nobody awake"
        };
        writeln!(f, "  reads       {keeps}")?;
        let (connections, requests) = (self.max_connections, self.max_requests_per_second);
        write!(
            f,
            "  limits      {connections} connections, {requests} requests a second"
        )?;
        if let Some(most) = self.max_users_per_hour {
            write!(f, ", {most} users an hour")?;
        }
        if let Some(alarm) = self.alarm_users_per_hour {
            write!(f, ", told beyond {alarm} users an hour")?;
        }
        writeln!(f)
    }
}
