//! What a peer may do: by its uid, by its groups, or by the socket it came in on (I7).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::peer::{self, Peer, PeerError};
use super::quotas::Quota;

/// The rules in force; a reload stores new ones, and open connections follow with their next request.
pub type SharedRules = Arc<ArcSwap<Rules>>;

/// The kind of socket a connection came in on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// For all apps; peers are matched by uid and groups.
    Shared,
    /// An app's own, by the app's name: who can connect is that app.
    App(String),
    /// The admins': who can connect is an admin.
    Admin,
}

impl fmt::Display for SocketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketKind::Shared => f.write_str("shared"),
            SocketKind::App(app) => write!(f, "app {app}"),
            SocketKind::Admin => f.write_str("admin"),
        }
    }
}

/// How a rule tells its app from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RulePeer {
    /// By the uid on the shared socket.
    Uid(u32),
    /// By a primary or supplementary group on the shared socket.
    Gid(u32),
    /// By the app's own socket.
    Socket,
}

/// One `[app.NAME]`: who it is and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The app's name.
    pub app: String,
    /// Who it is.
    pub peer: RulePeer,
    /// Its one namespace.
    pub namespace: String,
    /// The providers it may use; `None` means all.
    pub providers: Option<Vec<String>>,
    /// May read tokens and state, refresh by generation and note activity.
    pub read: bool,
    /// May bring in grants.
    pub import: bool,
    /// May delete grants and revoke them at the provider.
    pub revoke: bool,
    /// May start logins.
    pub authorize: bool,
    /// Whether its reads keep users awake where a request does not say.
    pub counts_as_activity: bool,
    /// How much of freshd it gets.
    pub quota: Quota,
}

/// What a route asks permission for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Tokens, state, refresh by generation, activity.
    Read,
    /// Bring in grants.
    Import,
    /// Delete grants.
    Revoke,
}

impl Verb {
    /// Returns the word that `may = […]` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Read => "read",
            Verb::Import => "import",
            Verb::Revoke => "revoke",
        }
    }
}

impl Rule {
    /// Returns whether the rule allows `verb`.
    pub fn may(&self, verb: Verb) -> bool {
        match verb {
            Verb::Read => self.read,
            Verb::Import => self.import,
            Verb::Revoke => self.revoke,
        }
    }

    /// Returns whether the rule allows `provider`.
    pub fn allows_provider(&self, provider: &str) -> bool {
        self.providers
            .as_ref()
            .is_none_or(|allowed| allowed.iter().any(|name| name == provider))
    }
}

/// Why a peer gets nothing. `Display` is for the log: it may name apps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nobody can say who it is.
    Unknown(String),
    /// No rule names its uid or one of its groups.
    NoRule,
    /// Several rules match; the apps' names.
    Ambiguous(Vec<String>),
    /// The socket's app is no longer configured with a socket of its own.
    AppGone(String),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::Unknown(why) => f.write_str(why),
            Denied::NoRule => f.write_str("no [app] rule names its uid or one of its groups"),
            Denied::Ambiguous(apps) => write!(
                f,
                "it matches the rules of several apps ({}); give them sockets of their own (socket = true)",
                apps.join(", ")
            ),
            Denied::AppGone(app) => {
                write!(f, "[app.{app}] no longer has a socket of its own")
            }
        }
    }
}

impl From<&PeerError> for Denied {
    fn from(error: &PeerError) -> Self {
        Denied::Unknown(error.to_string())
    }
}

impl Denied {
    /// Returns what the peer itself is told: everything about itself, nothing about apps.
    pub fn detail(&self, peer: Option<&Peer>) -> String {
        let why = match self {
            Denied::Unknown(why) => return format!("this peer gets nothing, since {why}"),
            Denied::NoRule => {
                "matches no [app] rule; freshd's log shows the rule that would admit it"
            }
            Denied::Ambiguous(_) => {
                "matches the rules of several apps; freshd's log names them, and each needs a socket of its own"
            }
            Denied::AppGone(_) => {
                "came in on the socket of an app that is no longer configured; freshd's log names it"
            }
        };
        let peer = peer.map(Peer::to_string).unwrap_or_default();
        format!("this peer ({peer}) {why}")
    }

    /// Returns the lines of configuration that would admit the peer, where any would.
    pub fn remedy(&self, peer: &Peer) -> Option<String> {
        match self {
            Denied::Unknown(_) => None,
            Denied::NoRule => Some(format!("[app.NAME] unix-uid = {}", peer.uid)),
            Denied::Ambiguous(_) => Some("[app.NAME] socket = true".into()),
            Denied::AppGone(app) => Some(format!("[app.{app}] socket = true")),
        }
    }
}

/// All rules of one configuration.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Arc<Rule>>,
    admin: Arc<Rule>,
}

impl Rules {
    /// Makes rules of a configuration's apps.
    pub fn new(rules: Vec<Rule>) -> Self {
        Rules {
            rules: rules.into_iter().map(Arc::new).collect(),
            admin: Arc::new(admin()),
        }
    }

    /// Returns the apps' namespaces, in order. What is in another one no app can read.
    pub fn namespaces(&self) -> BTreeSet<&str> {
        let rules = self.rules.iter();
        rules.map(|rule| rule.namespace.as_str()).collect()
    }

    /// Returns what `peer` gets on `socket`.
    ///
    /// On the shared socket a uid's rule beats the groups' rules, and uid 0 is a uid like others. On an
    /// app's own socket and on the admin socket, being able to connect is what counts.
    ///
    /// # Errors
    ///
    /// No rule, several equally good ones, or the overflow uid, on any socket.
    pub fn match_peer(&self, peer: &Peer, socket: &SocketKind) -> Result<&Arc<Rule>, Denied> {
        if peer::is_overflow_uid(peer.uid) {
            return Err(Denied::from(&PeerError::Unmapped(peer.uid)));
        }
        match socket {
            SocketKind::Admin => Ok(&self.admin),
            SocketKind::App(app) => self
                .rules
                .iter()
                .find(|rule| rule.peer == RulePeer::Socket && rule.app == *app)
                .ok_or_else(|| Denied::AppGone(app.clone())),
            SocketKind::Shared => {
                let by_uid = self.only(|rule| rule == RulePeer::Uid(peer.uid))?;
                let found = match by_uid {
                    Some(rule) => Some(rule),
                    None => self
                        .only(|rule| matches!(rule, RulePeer::Gid(gid) if peer.is_in_group(gid)))?,
                };
                found.ok_or(Denied::NoRule)
            }
        }
    }

    fn only(&self, matches: impl Fn(RulePeer) -> bool) -> Result<Option<&Arc<Rule>>, Denied> {
        let found: Vec<_> = self
            .rules
            .iter()
            .filter(|rule| matches(rule.peer))
            .collect();
        match found[..] {
            [] => Ok(None),
            [rule] => Ok(Some(rule)),
            _ => Err(Denied::Ambiguous(
                found.iter().map(|rule| rule.app.clone()).collect(),
            )),
        }
    }
}

/// What whoever can connect to the admin socket may do; its reads keep nobody awake.
fn admin() -> Rule {
    Rule {
        app: "admin socket".into(),
        peer: RulePeer::Socket,
        namespace: "default".into(),
        providers: None,
        read: true,
        import: true,
        revoke: true,
        authorize: true,
        counts_as_activity: false,
        quota: Quota::UNLIMITED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(app: &str, peer: RulePeer) -> Rule {
        Rule {
            app: app.into(),
            peer,
            ..admin()
        }
    }

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer {
            uid,
            gid,
            groups: groups.to_vec(),
            pid: None,
        }
    }

    fn rules() -> Rules {
        Rules::new(vec![
            rule("crm", RulePeer::Uid(1000)),
            rule("mail", RulePeer::Gid(50)),
            rule("sync", RulePeer::Gid(51)),
            rule("own", RulePeer::Socket),
            rule("nobody", RulePeer::Gid(65534)),
            rule("nobody-either", RulePeer::Uid(65534)),
            rule("twice-a", RulePeer::Uid(77)),
            rule("twice-b", RulePeer::Uid(77)),
        ])
    }

    fn app(peer: &Peer, socket: &SocketKind) -> Result<String, Denied> {
        rules()
            .match_peer(peer, socket)
            .map(|rule| rule.app.clone())
    }

    #[test]
    fn a_uid_rule_beats_every_group_rule() {
        let peer = peer(1000, 50, &[51]);
        assert_eq!(app(&peer, &SocketKind::Shared), Ok("crm".into()));
    }

    #[test]
    fn primary_and_supplementary_groups_both_match() {
        assert_eq!(
            app(&peer(9, 50, &[]), &SocketKind::Shared),
            Ok("mail".into())
        );
        assert_eq!(
            app(&peer(9, 9, &[4, 51]), &SocketKind::Shared),
            Ok("sync".into())
        );
        assert_eq!(
            app(&peer(9, 50, &[50]), &SocketKind::Shared),
            Ok("mail".into())
        );
    }

    #[test]
    fn several_matching_rules_deny_and_only_the_log_names_them() {
        let who = peer(9, 50, &[51]);
        let denied = app(&who, &SocketKind::Shared).unwrap_err();
        assert_eq!(
            denied,
            Denied::Ambiguous(vec!["mail".into(), "sync".into()])
        );
        assert!(denied.to_string().contains("mail, sync"), "{denied}");
        assert!(
            denied.to_string().contains("sockets of their own"),
            "{denied}"
        );
        let told = denied.detail(Some(&who));
        assert!(
            !told.contains("mail") && told.contains("uid 9, gid 50, groups 51"),
            "{told}"
        );
        assert_eq!(
            denied.remedy(&who).as_deref(),
            Some("[app.NAME] socket = true")
        );
        assert!(matches!(
            app(&peer(77, 9, &[]), &SocketKind::Shared),
            Err(Denied::Ambiguous(_))
        ));
    }

    #[test]
    fn nobody_gets_anything_by_default_uid_0_included() {
        let root = peer(0, 0, &[0]);
        let denied = app(&root, &SocketKind::Shared).unwrap_err();
        assert_eq!(denied, Denied::NoRule);
        assert_eq!(
            denied.remedy(&root).as_deref(),
            Some("[app.NAME] unix-uid = 0")
        );
    }

    #[test]
    fn the_overflow_uid_and_gid_match_nothing_on_any_socket() {
        for socket in [
            SocketKind::Shared,
            SocketKind::App("own".into()),
            SocketKind::Admin,
        ] {
            let denied = app(&peer(65534, 50, &[]), &socket).unwrap_err();
            assert!(
                matches!(denied, Denied::Unknown(_)),
                "{denied:?} on {socket}"
            );
        }
        assert_eq!(
            app(&peer(9, 65534, &[65534]), &SocketKind::Shared),
            Err(Denied::NoRule)
        );
    }

    #[test]
    fn a_peer_the_kernel_does_not_name_is_told_why_it_gets_nothing() {
        let denied = Denied::from(&PeerError::Unmapped(65534));
        let told = denied.detail(None);
        assert!(
            told.starts_with("this peer gets nothing, since uid 65534 is the overflow uid"),
            "{told}"
        );
        assert_eq!(denied.remedy(&peer(65534, 0, &[])), None);
    }

    #[test]
    fn an_apps_own_socket_makes_whoever_connects_that_app_and_no_other() {
        assert_eq!(
            app(&peer(0, 0, &[]), &SocketKind::App("own".into())),
            Ok("own".into())
        );
        let denied = app(&peer(1000, 0, &[]), &SocketKind::App("crm".into())).unwrap_err();
        assert_eq!(denied, Denied::AppGone("crm".into()));
    }

    #[test]
    fn a_rule_without_provider_list_allows_all_and_an_empty_list_none() {
        let mut rule = rule("crm", RulePeer::Socket);
        assert!(rule.allows_provider("any"));
        rule.providers = Some(vec!["hubspot".into()]);
        assert!(rule.allows_provider("hubspot") && !rule.allows_provider("hubspot2"));
        rule.providers = Some(vec![]);
        assert!(!rule.allows_provider("hubspot"));
    }
}
