//! Authorization servers of each rotation class, which know the truth about every token they gave out.

use std::collections::BTreeMap;
use std::time::Duration;

/// How a server treats used refresh tokens. What the daemon believes of it is in its policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// The refresh token stays the same.
    None,
    /// The old one lives until one of its successors is used.
    Overlap,
    /// The old one may be presented again for so long after its first use, and at most so often; after that the
    /// family dies of it.
    Grace(Duration, u32),
    /// The old one dies at once, and the family of its being presented again.
    Strict,
    /// As strict, but only one use in five replaces the token.
    Periodic,
}

/// Why a family of tokens has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The user took the grant back.
    ByUser,
    /// The daemon revoked it (RFC 7009).
    ByDaemon,
    /// It was not used for too long.
    OfDisuse,
    /// A superseded refresh token was presented.
    OfReplay,
}

/// What the server says to a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A new access token, with a new refresh token where it was replaced.
    Tokens {
        access_token: String,
        refresh_token: Option<String>,
    },
    /// `invalid_grant`.
    Refused(Ending),
}

struct Token {
    parent: u32,
    first_used_at: Option<u64>,
    uses: u32,
    dead: bool,
}

struct Family {
    ended: Option<Ending>,
    tokens: BTreeMap<u32, Token>,
    issued: u32,
    used_at: u64,
}

/// A family remembers so many tokens; older ones count as superseded long ago.
const REMEMBERED: usize = 12;

pub struct Server {
    pub class: Class,
    pub idle_lifetime: Option<Duration>,
    /// When it last gave out a token; by so much later as the clock was set back unseen.
    pub served_at: u64,
    /// The number of its first family, so that no two servers give out the same token.
    first: usize,
    families: Vec<Family>,
}

impl Server {
    pub fn new(class: Class, idle_lifetime: Option<Duration>, nth: usize) -> Server {
        Server {
            class,
            idle_lifetime,
            served_at: 0,
            first: nth * 1_000_000,
            families: Vec::new(),
        }
    }

    /// A user authorizes: the first access and refresh token of a new family.
    pub fn authorize(&mut self, now: u64) -> (String, String) {
        let family = self.first + self.families.len();
        let first = Token {
            parent: 0,
            first_used_at: None,
            uses: 0,
            dead: false,
        };
        self.families.push(Family {
            ended: None,
            tokens: BTreeMap::from([(1, first)]),
            issued: 1,
            used_at: now,
        });
        (format!("a{family}.1"), format!("r{family}.1"))
    }

    /// Ends the family of a token, refresh or access.
    pub fn end(&mut self, token: &str, why: Ending) {
        let family = &mut self.families[parse(token).0 - self.first];
        family.ended = family.ended.or(Some(why));
    }

    /// How the family of a token has ended, if it has.
    pub fn ending(&self, token: &str) -> Option<Ending> {
        self.families[parse(token).0 - self.first].ended
    }

    /// Whether presenting this refresh token would be a replay that ends its family.
    pub fn is_superseded(&self, refresh_token: &str, now: u64) -> bool {
        let (family, n) = parse(refresh_token);
        let family = &self.families[family - self.first];
        family.ended.is_none() && self.is_dead(family.tokens.get(&n), now)
    }

    fn is_dead(&self, token: Option<&Token>, now: u64) -> bool {
        let Some(token) = token else { return true };
        match (self.class, token.first_used_at) {
            (Class::Grace(grace, replays), Some(at)) => {
                now > at + grace.as_millis() as u64 || token.uses > replays
            }
            _ => token.dead,
        }
    }

    pub fn present(&mut self, refresh_token: &str, now: u64, replaces: bool) -> Verdict {
        let (number, n) = parse(refresh_token);
        let dead = self.is_superseded(refresh_token, now);
        let (class, idle) = (self.class, self.idle_lifetime);
        let family = &mut self.families[number - self.first];
        if idle.is_some_and(|idle| now > family.used_at + idle.as_millis() as u64) {
            family.ended = family.ended.or(Some(Ending::OfDisuse));
        }
        if dead {
            family.ended = Some(Ending::OfReplay);
        }
        if let Some(why) = family.ended {
            return Verdict::Refused(why);
        }
        self.served_at = now;
        family.used_at = now;
        let parent = match family.tokens.get_mut(&n) {
            Some(token) => {
                token.uses += 1;
                token.first_used_at = token.first_used_at.or(Some(now));
                token.dead |= class == Class::Strict || (class == Class::Periodic && replaces);
                token.parent
            }
            None => 0,
        };
        if class == Class::Overlap {
            family.bury(parent);
        }
        family.issued += 1;
        let issued = family.issued;
        let new = match class {
            Class::None => false,
            Class::Periodic => replaces,
            _ => true,
        };
        if new {
            let token = Token {
                parent: n,
                first_used_at: None,
                uses: 0,
                dead: false,
            };
            family.tokens.insert(issued, token);
            while family.tokens.len() > REMEMBERED {
                family.tokens.pop_first();
            }
        }
        Verdict::Tokens {
            access_token: format!("a{number}.{issued}"),
            refresh_token: new.then(|| format!("r{number}.{issued}")),
        }
    }
}

impl Family {
    /// A successor was used: its ancestors are no longer needed.
    fn bury(&mut self, mut n: u32) {
        while let Some(token) = self.tokens.get_mut(&n) {
            if token.dead {
                return;
            }
            token.dead = true;
            n = token.parent;
        }
    }
}

/// Family and number of a token, as `r3.17` names them.
fn parse(token: &str) -> (usize, u32) {
    let (family, n) = token[1..].split_once('.').expect("a token of ours");
    (
        family.parse().expect("a family"),
        n.parse().expect("a number"),
    )
}
