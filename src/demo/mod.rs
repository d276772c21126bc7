//! `freshd demo`: the whole of freshd at work on one machine, in front of somebody's eyes.
//!
//! A real authorization server on loopback, the real daemon with a configuration
//! file, a key and a store in a temporary directory, and four users whose apps
//! speak to the daemon through its sockets. Nothing of it is left afterwards.
//!
//! | module | is |
//! |---|---|
//! | [`authorization_server`], [`families`] | the other side: HTTP, and the rules of its tokens |
//! | [`directory`] | the temporary directory and the configuration in it |
//! | [`client`], [`stage`] | how apps and admin speak to the daemon, and what is counted |
//! | [`cast`] | the users and their story |
//! | [`tally`] | whether the story went as told |
//! | [`screen`] | what is printed |

pub mod authorization_server;
pub mod cast;
pub mod client;
pub mod directory;
pub mod families;
pub mod screen;
pub mod stage;
pub mod tally;
