//! What callers ask of the daemon, and whether they got what they were promised (I2, I4).

use std::rc::Rc;

use freshd::local_api::keeper::Token;
use freshd::local_api::types::Problem;
use freshd::refresh::grant::{GrantKey, PauseReason, Standing};
use freshd::refresh::token::TokenSet;

use crate::daemon::Daemon;
use crate::store::{Import, Imported, Store};
use crate::world::{World, world};

/// What a caller got.
#[derive(Clone, Copy)]
pub enum Answer {
    /// A token of this generation.
    Token(u64),
    NeedsAuthorization,
    NoSuchGrant,
    /// Not now.
    Refused,
}

impl World {
    /// Reads a grant's token.
    pub async fn read_token(self: &Rc<Self>, key: &GrantKey, counts: bool) -> Option<Answer> {
        let (world, key) = (self.clone(), key.clone());
        self.ask(|daemon| async move {
            let before = world.living(&key);
            let answer = daemon.token(&key, counts).await;
            world.witness_answer(&daemon, &key, before, answer)
        })
        .await
    }

    /// "The API refused this generation."
    pub async fn refused_by_api(self: &Rc<Self>, key: &GrantKey, generation: u64) {
        let (world, key) = (self.clone(), key.clone());
        let asked = self.ask(|daemon| async move {
            let before = world.living(&key);
            let answer = daemon.refused_by_api(&key, generation).await;
            world.witness_answer(&daemon, &key, before, answer);
        });
        asked.await;
    }

    /// The generation of a grant's token, if that lives.
    fn living(&self, key: &GrantKey) -> Option<u64> {
        let durable = self.durable.borrow();
        let row = durable.find(key)?;
        let lives = row.access_token.is_some() && row.grant.lives(self.wall());
        lives.then_some(row.grant.generation)
    }

    fn witness_answer(
        &self,
        daemon: &Daemon,
        key: &GrantKey,
        before: Option<u64>,
        answer: Result<Token, Problem>,
    ) -> Answer {
        let mut witness = self.witness.borrow_mut();
        let problem = match answer {
            Ok(token) => {
                let (access_token, access) = token.access();
                let lives = access.expires_at.is_none_or(|at| at > token.now);
                let held = daemon.held(key);
                witness.answers(access_token.expose(), held.as_deref(), lives);
                return Answer::Token(token.grant().generation);
            }
            Err(problem) => problem,
        };
        witness.stats.refused_readers += 1;
        // A newer token may have come between this caller's last look and its answer.
        if before.is_some() && before == self.living(key) && !daemon.is_deleting(key) {
            witness.broken(format!(
                "I4: a token of {key:?} lives and is withheld: {}",
                problem.detail
            ));
        }
        match problem.status {
            404 => Answer::NoSuchGrant,
            409 if problem.kind.ends_with("needs-authorization") => Answer::NeedsAuthorization,
            _ => Answer::Refused,
        }
    }

    /// Imports a token set; without the slot where the store has to withstand that by itself.
    pub async fn import(&self, key: &GrantKey, tokens: TokenSet, hold: bool) {
        let (key, no_slots) = (key.clone(), self.knobs.no_slots);
        let import = self.without_slot(&key, &tokens, hold);
        self.ask(|daemon| async move {
            if !no_slots {
                return daemon.import(&key, tokens, hold).await;
            }
            if let Ok(Imported::Created(grant) | Imported::Replaced(grant)) =
                Store::open(&world()).import(import).await
            {
                daemon.wrote(&grant);
            }
        })
        .await;
    }

    fn without_slot(&self, key: &GrantKey, tokens: &TokenSet, hold: bool) -> Import {
        let now = self.wall();
        let held = Standing::Paused(PauseReason::Held);
        Import {
            key: key.clone(),
            tokens: tokens.clone(),
            due_at: (!hold).then_some(now),
            standing: if hold { held } else { Standing::Active },
            replace: true,
            at: now,
        }
    }

    /// The user authorizes anew, and the app imports what that gives.
    pub async fn log_in(&self, key: &GrantKey, hold: bool) {
        let tokens = self.authorize(&key.provider);
        self.import(key, tokens, hold).await;
    }

    pub async fn delete(&self, key: GrantKey) {
        let asked = self.ask(|daemon| async move { daemon.delete(&key).await });
        asked.await;
    }
}
