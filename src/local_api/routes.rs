//! The routes, all but the connection's work around them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::{Method, StatusCode, Uri};
use serde::Deserialize;

use super::call::Call;
use super::events;
use super::export;
use super::keeper::{AuditRequest, Audited, Keeper, ListRequest, Target, TokenRequest};
use super::limits::Limits;
use super::problem;
use super::request::{self, Query};
use super::rules::{SocketKind, Verb};
use super::token_body::TokenBody;
use super::types::{
    AuditList, BackupAnswer, BackupRequest, Changed, GrantList, GrantView, History, ImportRequest,
    KeysView, Problem, ProviderList, RefreshRequest, RenewalView, Status, UserView,
};
use crate::metrics::CONTENT_TYPE;
use crate::refresh::grant::GrantKey;

/// What a reader gets at least, unless it says otherwise: enough for one API call.
const MIN_TTL: u64 = 10;
const LONGEST_MIN_TTL: u64 = 86_400;
/// How long a reader waits for a refresh, unless it says otherwise.
const WAIT: u64 = 10;
const LONGEST_WAIT: u64 = 60;
const PAGE: u64 = 100;
const LONGEST_PAGE: u64 = 1000;

/// What handlers share.
pub(super) struct Api<K> {
    pub(super) keeper: Arc<K>,
    pub(super) limits: Arc<Limits>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Api {
            keeper: Arc::clone(&self.keeper),
            limits: Arc::clone(&self.limits),
        }
    }
}

type Shared<K> = State<Api<K>>;
type Answer<T> = Result<Json<T>, Problem>;

/// Makes the router of a socket. The admin's routes are not on any other; there they are unknown.
pub(super) fn router<K: Keeper>(kind: &SocketKind, api: Api<K>) -> Router {
    let mut router = Router::new()
        .route("/healthz", get(healthz::<K>))
        .route("/v1/users/{user}", get(user::<K>).delete(delete_user::<K>))
        .route("/v1/users/{user}/activity", post(activity::<K>))
        .route("/v1/events", get(events::events::<K>))
        .route(
            "/v1/users/{user}/grants/{provider}",
            get(grant::<K>).put(import::<K>).delete(delete::<K>),
        )
        .route(
            "/v1/users/{user}/grants/{provider}/history",
            get(history::<K>),
        )
        .route(
            "/v1/users/{user}/grants/{provider}/refresh",
            post(refresh::<K>),
        );
    if *kind == SocketKind::Admin {
        router = router.merge(admin::<K>());
    }
    router
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            problem::method_not_allowed(method.as_str(), &request::shown(uri.path()))
        })
        .fallback(async |method: Method, uri: Uri| {
            problem::no_such_route(
                &request::shown(method.as_str()),
                &request::shown(uri.path()),
            )
        })
        .with_state(api)
}

fn admin<K: Keeper>() -> Router<Api<K>> {
    let mut router = Router::new()
        .route("/v1/grants", get(list::<K>))
        .route("/v1/status", get(status::<K>))
        .route("/v1/providers", get(providers::<K>))
        .route("/metrics", get(metrics::<K>))
        .route("/v1/audit", get(audit::<K>))
        .route("/v1/backup", post(backup::<K>))
        .route("/v1/export", post(export::export::<K>))
        .route("/v1/keys/rotate", post(rotate_key::<K>))
        .route(
            "/v1/providers/{provider}/refresh",
            get(renewal::<K>).post(renew::<K>),
        );
    for target in [
        "/v1/users/{user}",
        "/v1/users/{user}/grants/{provider}",
        "/v1/providers/{provider}",
    ] {
        router = router
            .route(&format!("{target}/pause"), post(pause::<K>))
            .route(&format!("{target}/resume"), post(resume::<K>));
    }
    router
}

/// Reads what the token route is asked for. It is answered without the router.
pub(super) fn token_request(call: &mut Call, query: &str) -> Result<TokenRequest, Problem> {
    let query = Query::read(query, &["min_ttl", "wait", "activity"])?;
    let min_ttl = query
        .whole("min_ttl", 0..=LONGEST_MIN_TTL)?
        .unwrap_or(MIN_TTL);
    Ok(TokenRequest {
        key: call.take_grant(Verb::Read)?,
        min_ttl: Duration::from_secs(min_ttl),
        wait: wait(&query)?,
        counts_as_activity: call.counts(&query)?,
    })
}

/// A longer `wait` than we hold connections for is cut, not refused: the caller is told to retry anyway.
fn wait(query: &Query) -> Result<Duration, Problem> {
    let wait = query.whole("wait", 0..=u64::MAX)?.unwrap_or(WAIT);
    Ok(Duration::from_secs(wait.min(LONGEST_WAIT)))
}

async fn refresh<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Result<Response, Problem> {
    let key = call.grant(Verb::Read)?;
    let query = Query::of(request.uri(), &["wait", "activity"])?;
    let (wait, counts_as_activity) = (wait(&query)?, call.counts(&query)?);
    let body: RefreshRequest = request::optional_object(request.into_body(), &api.limits).await?;
    let asked = TokenRequest {
        key,
        min_ttl: Duration::ZERO,
        wait,
        counts_as_activity,
    };
    let token = api.keeper.refresh(&asked, body.generation).await?;
    if let Some(read) = call.audited(Audited::READ, Some(&asked.key), "") {
        api.keeper.audit(read);
    }
    let json = [(hyper::header::CONTENT_TYPE, "application/json")];
    let body = TokenBody::new(&token).into_bytes();
    Ok((json, body).into_response())
}

async fn import<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Result<Response, Problem> {
    let key = call.grant(Verb::Import)?;
    let query = Query::of(request.uri(), &["replace", "hold"])?;
    let replace = query.flag("replace")?.unwrap_or(false);
    let hold = query.flag("hold")?.unwrap_or(false);
    let tokens: ImportRequest = request::object(request.into_body(), &api.limits).await?;
    let answer = api.keeper.import(key, tokens, replace, hold).await?;
    let created = answer.result == "created";
    let status = if created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(answer)).into_response())
}

async fn grant<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    uri: Uri,
) -> Answer<GrantView> {
    let key = call.grant(Verb::Read)?;
    Query::none(&uri)?;
    Ok(Json(api.keeper.grant(key).await?))
}

async fn history<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    uri: Uri,
) -> Answer<History> {
    let key = call.grant(Verb::Read)?;
    Query::none(&uri)?;
    Ok(Json(api.keeper.history(key).await?))
}

async fn user<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    uri: Uri,
) -> Answer<UserView> {
    let (namespace, user) = call.user_for(Verb::Read)?;
    Query::none(&uri)?;
    Ok(Json(call.visible(api.keeper.user(namespace, user).await?)?))
}

async fn delete<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    uri: Uri,
) -> Answer<Changed> {
    let key = call.grant(Verb::Revoke)?;
    Query::none(&uri)?;
    Ok(Json(api.keeper.delete(key, call.by()).await?))
}

async fn delete_user<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    uri: Uri,
) -> Answer<Changed> {
    let (namespace, user) = call.user_for(Verb::Revoke)?;
    Query::none(&uri)?;
    Ok(Json(
        api.keeper
            .delete_user(namespace, user, call.rule.providers.clone(), call.by())
            .await?,
    ))
}

/// A body for routes that take none; `{}` is as good.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

async fn activity<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Answer<UserView> {
    let (namespace, user) = call.user_for(Verb::Read)?;
    Query::none(request.uri())?;
    let Nothing {} = request::optional_object(request.into_body(), &api.limits).await?;
    if call.rule.providers.is_some() {
        // An app may wake only users of whom it may see something (I7).
        call.visible(api.keeper.user(namespace.clone(), user.clone()).await?)?;
    }
    Ok(Json(
        call.visible(api.keeper.activity(namespace, user).await?)?,
    ))
}

async fn pause<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Answer<Changed> {
    Query::none(request.uri())?;
    let target = target(&api, &call, request).await?;
    Ok(Json(api.keeper.pause(target, call.by()).await?))
}

async fn resume<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Answer<Changed> {
    let query = Query::of(request.uri(), &["release"])?;
    let release = query.flag("release")?.unwrap_or(false);
    let target = target(&api, &call, request).await?;
    Ok(Json(api.keeper.resume(target, release, call.by()).await?))
}

/// Returns what a path of the admin socket names: a grant, a user or a provider.
async fn target<K>(api: &Api<K>, call: &Call, request: Request) -> Result<Target, Problem> {
    let Nothing {} = request::optional_object(request.into_body(), &api.limits).await?;
    let namespace = call.namespace().to_owned();
    Ok(
        match (call.names.user.clone(), call.names.provider.clone()) {
            (Some(user), Some((provider, account))) => Target::Grant(GrantKey {
                namespace,
                user,
                provider,
                account,
            }),
            (Some(user), None) => Target::User { namespace, user },
            _ => Target::Provider(call.whole_provider()?),
        },
    )
}

async fn list<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    uri: Uri,
) -> Answer<GrantList> {
    let query = Query::of(
        &uri,
        &[
            "state",
            "reason",
            "ending",
            "failing",
            "provider",
            "user",
            "missing_scope",
            "cursor",
            "limit",
            "export",
        ],
    )?;
    if query.flag("export")?.unwrap_or(false)
        && let Some(listed) = call.audited(Audited::EXPORTED, None, "without secrets")
    {
        api.keeper.audit(listed);
    }
    let state = query.one_of("state", &["active", "paused", "needs-authorization"])?;
    let limit = query
        .whole("limit", 0..=u64::MAX)?
        .unwrap_or(PAGE)
        .clamp(1, LONGEST_PAGE);
    let request = ListRequest {
        // Without the header an admin sees all namespaces.
        namespace: call.namespace,
        user: query.name("user")?,
        state,
        reason: query.name("reason")?,
        ending: query.flag("ending")?.unwrap_or(false),
        failing: query.flag("failing")?.unwrap_or(false),
        provider: query.name("provider")?,
        missing_scope: query.name("missing_scope")?,
        cursor: query.name("cursor")?,
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
    };
    Ok(Json(api.keeper.list(request).await?))
}

async fn status<K: Keeper>(State(api): Shared<K>, uri: Uri) -> Answer<Status> {
    Query::none(&uri)?;
    Ok(Json(api.keeper.status().await?))
}

async fn providers<K: Keeper>(State(api): Shared<K>, uri: Uri) -> Answer<ProviderList> {
    Query::none(&uri)?;
    Ok(Json(api.keeper.providers().await?))
}

async fn metrics<K: Keeper>(State(api): Shared<K>, uri: Uri) -> Result<Response, Problem> {
    Query::none(&uri)?;
    let content_type = [(hyper::header::CONTENT_TYPE, CONTENT_TYPE)];
    Ok((content_type, api.keeper.metrics().await).into_response())
}

async fn audit<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    uri: Uri,
) -> Answer<AuditList> {
    let query = Query::of(&uri, &["action", "user", "cursor", "limit"])?;
    let limit = query
        .whole("limit", 0..=u64::MAX)?
        .unwrap_or(PAGE)
        .clamp(1, LONGEST_PAGE);
    let request = AuditRequest {
        action: query.name("action")?,
        user: query.name("user")?,
        namespace: call.namespace().to_owned(),
        cursor: query.name("cursor")?,
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
    };
    Ok(Json(api.keeper.audited(request).await?))
}

async fn backup<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Answer<BackupAnswer> {
    Query::none(request.uri())?;
    let body: BackupRequest = request::object(request.into_body(), &api.limits).await?;
    let detail = if body.last { "a final copy" } else { "a copy" };
    let answer = api.keeper.backup(body).await?;
    if let Some(copied) = call.audited(Audited::BACKED_UP, None, detail) {
        api.keeper.audit(copied);
    }
    Ok(Json(answer))
}

async fn rotate_key<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Answer<KeysView> {
    Query::none(request.uri())?;
    let Nothing {} = request::optional_object(request.into_body(), &api.limits).await?;
    let keys = api.keeper.rotate_key().await?;
    let detail = format!("to data key {}", keys.current);
    if let Some(begun) = call.audited(Audited::KEY_ROTATION, None, &detail) {
        api.keeper.audit(begun);
    }
    Ok(Json(keys))
}

async fn renew<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Answer<RenewalView> {
    let provider = call.whole_provider()?;
    let query = Query::of(request.uri(), &["dry_run"])?;
    let dry_run = query.flag("dry_run")?.unwrap_or(false);
    let Nothing {} = request::optional_object(request.into_body(), &api.limits).await?;
    if dry_run {
        return Ok(Json(api.keeper.renewal(provider, true).await?));
    }
    let renewal = api.keeper.renew(provider).await?;
    if let Some(renewed) = call.audited(Audited::RENEWED, None, &renewal.provider) {
        api.keeper.audit(renewed);
    }
    Ok(Json(renewal))
}

async fn renewal<K: Keeper>(
    State(api): Shared<K>,
    Extension(call): Extension<Call>,
    uri: Uri,
) -> Answer<RenewalView> {
    let provider = call.whole_provider()?;
    Query::none(&uri)?;
    Ok(Json(api.keeper.renewal(provider, false).await?))
}

async fn healthz<K: Keeper>(
    State(api): Shared<K>,
    uri: Uri,
) -> Answer<std::collections::BTreeMap<&'static str, &'static str>> {
    Query::none(&uri)?;
    api.keeper.healthy().await?;
    Ok(Json([("status", "ok")].into()))
}
