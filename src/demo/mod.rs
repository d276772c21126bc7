//! `freshd demo`

pub mod authorization_server;
pub mod client;
pub mod families;
