//! `POST /v1/export`: every grant with its tokens, encrypted to recipients. Admin socket only.

use std::pin::Pin;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper::header::{CONTENT_TYPE, TRAILER};
use serde::{Deserialize, Serialize};

use super::call::Call;
use super::keeper::Keeper;
use super::request::{self, Query};
use super::routes::Api;
use super::types::{EXPORTED_GRANTS, Problem};

/// The body of `POST /v1/export`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// Public keys of age (`age1…`); one at least.
    pub recipients: Vec<String>,
    /// Only this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only this provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Only grants whose scope lacks this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_scope: Option<String>,
}

/// Encrypted bytes as they come, and the trailer [`EXPORTED_GRANTS`]. An error cuts the connection, so that nobody takes a part for the whole.
pub type ExportStream = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>;

/// The route.
pub(super) async fn export<K: Keeper>(
    State(api): State<Api<K>>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Result<Response, Problem> {
    Query::none(request.uri())?;
    let body: ExportRequest = request::object(request.into_body(), &api.limits).await?;
    let stream = api.keeper.export(body, call.namespace, call.admin).await?;
    let headers = [
        (CONTENT_TYPE, "application/vnd.age"),
        (TRAILER, EXPORTED_GRANTS),
    ];
    Ok((headers, Body::new(StreamBody::new(stream))).into_response())
}
