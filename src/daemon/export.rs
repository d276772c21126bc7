//! Exports with secrets, asked for on the admin socket: who may, and what is told of each.

use std::sync::Arc;

use futures_util::stream;
use hyper::HeaderMap;
use hyper::body::{Bytes, Frame};
use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::mpsc::{self, Sender};

use super::audit;
use super::keeper::Daemon;
use super::shared::Shared;
use crate::local_api::export::{ExportRequest, ExportStream};
use crate::local_api::keeper::Audited;
use crate::local_api::problem;
use crate::local_api::types::{EXPORTED_GRANTS, Problem};
use crate::store::Filter;
use crate::store::export::{Export, ExportError, Exported, Recipients, holds};

/// Pages that wait for their reader, besides the one that is being made.
const PAGES: usize = 1;

type Part = Result<Frame<Bytes>, std::io::Error>;

impl Daemon {
    /// Begins an export for the peer with this uid.
    ///
    /// An admin reads access tokens one by one, each told; refresh tokens of everybody are more. So root may, who reads
    /// the key anyway, and others only where the configuration says so.
    pub(super) async fn begin_export(
        &self,
        request: ExportRequest,
        namespace: Option<String>,
        uid: Option<u32>,
    ) -> Result<ExportStream, Problem> {
        let shared = self.0.clone();
        let by = uid.map_or_else(|| "unknown".to_owned(), |uid| format!("uid {uid}"));
        if uid != Some(0) && !shared.known.allow_export {
            tell(
                &shared,
                by,
                "with secrets, refused: allow-export is false".to_owned(),
            );
            return Err(problem::forbidden(
                "exports with secrets are for root on this socket; an admin allows them to every admin by daemon.allow-export = true, and a restart",
            ));
        }
        let to = Recipients::read(&request.recipients).map_err(problem::bad_request)?;
        if let Some(provider) = &request.provider {
            // One that was taken out of the configuration may have grants still.
            let there = holds(&shared.store, provider).await;
            if !there.map_err(|error| problem::store_unavailable(&error.to_string()))? {
                self.configured(provider)?;
            }
        }
        let held = shared.held.len();
        if held > 0 {
            let error = ExportError::Held(held).to_string();
            return Err(problem::store_unavailable(&error));
        }
        let filter = Filter {
            namespace,
            state: request.state,
            provider: request.provider,
            missing_scope: request.missing_scope,
            ..Filter::default()
        };
        let export = Export::begin(&shared.store, filter, &to, shared.clock.now());
        let export = export.map_err(|error| problem::store_unavailable(&error.to_string()))?;
        // Also of one that a kill cuts short something is kept.
        tell(
            &shared,
            by.clone(),
            format!("with secrets to {}, begun", to.names()),
        );
        let (pages, reader) = mpsc::channel(PAGES);
        // Detached: a reader who hangs up ends it, and is told of all the same.
        tokio::spawn(async move {
            let (exported, ended) = send_all(export, &pages).await;
            if let Err(error) = &ended {
                let _ = pages.send(Err(std::io::Error::other(error.clone()))).await;
            }
            tell(&shared, by, exported.detail(&to, &ended));
        });
        Ok(Box::pin(stream::unfold(reader, |mut reader| async move {
            let page: Part = reader.recv().await?;
            Some((page, reader))
        })))
    }
}

async fn send_all(mut export: Export, pages: &Sender<Part>) -> (Exported, Result<(), String>) {
    loop {
        let page = match export.next().await {
            Ok(Some(page)) => page,
            Ok(None) => {
                let exported = export.exported();
                // Who asked reads nothing of what is encrypted, but wants to know how much it is.
                let grants = HeaderValue::from(exported.grants);
                let trailers =
                    HeaderMap::from_iter([(HeaderName::from_static(EXPORTED_GRANTS), grants)]);
                let _ = pages.send(Ok(Frame::trailers(trailers))).await;
                return (exported, Ok(()));
            }
            Err(error) => return (export.exported(), Err(error.to_string())),
        };
        if pages.send(Ok(Frame::data(page.into()))).await.is_err() {
            return (export.exported(), Err("the reader hung up".to_owned()));
        }
    }
}

fn tell(shared: &Arc<Shared>, by: String, detail: String) {
    let told = Audited {
        action: Audited::EXPORTED,
        by,
        user: None,
        detail,
    };
    audit::tell(shared, told);
}
