//! One request's circumstances: by which rule, about whom, and what that rule allows (I7).

use std::sync::Arc;

use super::keeper::Audited;
use super::problem;
use super::quotas::Party;
use super::request::{Names, Query};
use super::rules::{Rule, Verb};
use super::types::{Problem, UserView};
use crate::refresh::grant::GrantKey;

/// One authorized request's circumstances.
#[derive(Clone)]
pub(super) struct Call {
    /// The rule its peer matches.
    pub(super) rule: Arc<Rule>,
    /// On whose account it is, where anybody counts.
    pub(super) party: Option<Party>,
    /// The namespace it named, where it may.
    pub(super) namespace: Option<String>,
    /// The names in its path.
    pub(super) names: Names,
    /// The peer's uid, on the admin socket.
    pub(super) admin: Option<u32>,
}

impl Call {
    pub(super) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(&self.rule.namespace)
    }

    pub(super) fn may(&self, verb: Verb) -> Result<(), Problem> {
        if self.rule.may(verb) {
            return Ok(());
        }
        let (app, verb) = (&self.rule.app, verb.name());
        let detail = format!(
            "the rule of app {app:?} does not allow {verb:?}; an admin adds it to may = […]"
        );
        Err(problem::forbidden(detail))
    }

    /// Returns the grant that the path names, if the rule allows `verb` there.
    pub(super) fn grant(&self, verb: Verb) -> Result<GrantKey, Problem> {
        self.clone().take_grant(verb)
    }

    /// The same, and the names in the path are gone.
    pub(super) fn take_grant(&mut self, verb: Verb) -> Result<GrantKey, Problem> {
        self.may(verb)?;
        let Names { user, provider } = std::mem::take(&mut self.names);
        let (provider, account) = provider.ok_or_else(no_provider)?;
        if !self.rule.allows_provider(&provider) {
            let app = &self.rule.app;
            return Err(problem::forbidden(format!(
                "the rule of app {app:?} does not allow provider {provider:?}; an admin adds it to providers = […]"
            )));
        }
        Ok(GrantKey {
            namespace: self.namespace().into(),
            user: user.ok_or_else(no_user)?,
            provider,
            account,
        })
    }

    /// Returns namespace and user, if the rule allows `verb`.
    pub(super) fn user_for(&self, verb: Verb) -> Result<(String, String), Problem> {
        self.may(verb)?;
        Ok((self.namespace().into(), self.user()?))
    }

    pub(super) fn user(&self) -> Result<String, Problem> {
        self.names.user.clone().ok_or_else(no_user)
    }

    pub(super) fn provider(&self) -> Result<(String, String), Problem> {
        self.names.provider.clone().ok_or_else(no_provider)
    }

    /// Returns the provider that the path names, all its accounts meant.
    pub(super) fn whole_provider(&self) -> Result<String, Problem> {
        let (provider, account) = self.provider()?;
        if account.is_empty() {
            return Ok(provider);
        }
        let detail = format!("provider \"{provider}:{account}\" must be without an account here");
        Err(problem::bad_request(detail))
    }

    /// Leaves what the rule allows to be seen; a user without any of it is not there.
    pub(super) fn visible(&self, mut view: UserView) -> Result<UserView, Problem> {
        view.grants
            .retain(|grant| self.rule.allows_provider(&grant.provider));
        if view.grants.is_empty() {
            return Err(problem::no_such_user(&view.namespace, &view.user));
        }
        Ok(view)
    }

    /// Returns who it is, for the log: `uid 1000` on the admin socket, elsewhere `app crm`.
    pub(super) fn by(&self) -> String {
        match self.admin {
            Some(uid) => format!("uid {uid}"),
            None => format!("app {}", self.rule.app),
        }
    }

    /// Returns what the audit tells of this, if an admin does it.
    pub(super) fn audited(
        &self,
        action: &'static str,
        key: Option<&GrantKey>,
        detail: &str,
    ) -> Option<Audited> {
        self.admin?;
        Some(Audited {
            action,
            by: self.by(),
            user: key.map(|key| (key.namespace.clone(), key.user.clone())),
            detail: key.map_or(detail, |key| &key.provider).to_owned(),
        })
    }

    /// Whether a read keeps the user awake: as the request says, and where it says nothing, as the rule does.
    pub(super) fn counts(&self, query: &Query) -> Result<bool, Problem> {
        Ok(query
            .flag("activity")?
            .unwrap_or(self.rule.counts_as_activity))
    }
}

fn no_user() -> Problem {
    problem::bad_request("the path names no user")
}

fn no_provider() -> Problem {
    problem::bad_request("the path names no provider")
}
